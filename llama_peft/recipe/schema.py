"""All keys of a recipe, each once: its type, its default and what it does.

The names are those of TrainingArguments, SFTConfig, LoraConfig and BitsAndBytesConfig. The sections
about the model are in `model_sections`. `checks` refuses keys that do not fit together.
"""

# ruff: noqa: RUF012  (pydantic copies a default, so it may be a list or a dict)

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic.fields import FieldInfo

from llama_peft.recipe import templates
from llama_peft.recipe.fields import (
    Column,
    ContextTemplate,
    Count,
    CountOrAuto,
    DataName,
    Delimiter,
    Encoding,
    EpochsOrAuto,
    EvalSteps,
    Folder,
    Instruction,
    Labels,
    LabelTemplate,
    LabelWeights,
    MaxSteps,
    Names,
    NoAnswer,
    NotNegative,
    Optimizer,
    PartName,
    PositiveOrAuto,
    QuestionTemplate,
    RepoName,
    RunName,
    Scheduler,
    Seed,
    Share,
    Size,
    SizeOrAuto,
    Splits,
    Text,
    TextTemplate,
    Warmup,
    later,
)
from llama_peft.recipe.ladder import Ladder
from llama_peft.recipe.model_sections import Head, Lora, Model, Quantization, Section, section_of
from llama_peft.recipe.strict_yaml import KeyPath
from llama_peft.tasks import TASKS, NamedTask, TaskKind


class Columns(Section):
    """Names of the columns. From a list of names, the one that the data have is taken."""

    text: Column = ["text", "sentence", "content", "review"]
    "The text that is classified. If the data have all columns of your list, each is a part of it."
    label: Column = ["label", "labels", "class"]
    "The class of the text, by name or by number. In regression, the number to learn."
    id: Column | None = "id"
    "A unique name of the row. If null or if there is no such column, part and number are taken."
    question: Column = "question"
    "The question."
    context: Column | None = ["context", "passage"]
    "The passage that a question is about. null means that questions have none (generative_qa)."
    answers: Column = ["answers", "answer"]
    "The right answers. An empty list or an empty text means that the passage has no answer."
    answer_start: Column = later("answer_start")
    "Where an answer starts in its passage, in characters, if `answers` holds only its text."
    title: Column = "title"
    "The article that contains the passage."
    group: Column = "group"
    "The group of the row, for dataset.group_by: group."

    def names(self, key: str) -> list[str]:
        """Return the names to look for, in order, for one key of this section."""
        value: str | list[str] | None = getattr(self, key)
        return [value] if isinstance(value, str) else list(dict.fromkeys(value or []))


GIVEN = "given"
"""The place of a part whose rows come from Python, as `data.load(recipe, {"train": rows})`."""


class Parts(Section):
    """Where each part is: files, a split of a Hub data set, or `given` for rows from Python.

    With dataset.path: tiny, it is a number of rows.
    """

    train: PartName = "train"
    "The training examples. Missing validation and test parts are cut from them."
    validation: PartName | None = None
    "The examples for early stopping and thresholds."
    test: PartName | None = None
    "The examples that results are computed on."
    official: PartName | None = None
    "A published evaluation set, which is reported beside the test part."

    def given(self) -> dict[str, str]:
        """Return the parts that have a place."""
        return {name: str(value) for name, value in self if value is not None}


class Data(Section):
    """Where examples come from and how they are split."""

    path: DataName | None = None
    "A Hub data set, `tiny` (generated), or what to train on: a file, a folder, *.parquet or a URL."
    name: Text | None = None
    "The configuration of a Hub data set. For `tiny`: reviews, mixed-reviews or passages."
    revision: Text | None = None
    "Branch, tag or commit of a Hub data set."
    streaming: bool = later(False)
    "Fetch only as many rows of a Hub data set as max_train_samples and max_eval_samples ask for."
    parts: Parts = Parts()
    format: Literal["auto", "csv", "tsv", "json", "jsonl", "parquet", "squad"] = "auto"
    "Format of the files. auto decides by the name of the file and, for .json, by its content."
    quoting: Literal["auto", "minimal", "none"] = "auto"
    "Quotes in CSV and TSV: minimal removes them, none keeps them. auto means none only for TSV."
    delimiter: Delimiter | None = later(None)
    "The character between the cells of CSV and TSV. null means a comma, or a tab for TSV."
    encoding: Encoding = later("utf-8")
    "The encoding of text files, by any name that Python knows: latin-1, cp1252, utf-16, ..."
    decimal: Literal[".", ","] = later(".")
    "What stands before the fraction of a number to learn (task: regression) that is text, as in 4,5."
    on_bad_rows: Literal["refuse", "drop"] = later("refuse")
    "Rows that cannot be used: refuse them all, or drop them and record how many, and why."
    columns: Columns = Columns()
    labels: Labels | None = None
    "The names of labels 0, 1, ... null takes the names in the data."
    label_positions: bool | None = later(None)
    "Whether the numbers 0, 1, ... in data mean `labels` by their order. null: if `labels` are given."
    single_label: bool = later(True)
    "false: a row has any number of labels, as a list or in a column of 0 and 1 for each label."
    label_separator: Text = later(",")
    "What separates the labels in a cell of text, if a row has any number of labels."
    test_size: Share = 0.2
    "Share of train that becomes the test part, if there is no other test part."
    validation_size: Share = 0.1
    "Share of the remaining train that becomes the validation part, if there is no other one."
    stratify: bool = True
    "Give each part the same shares of the labels (classification without group_by)."
    group_by: Literal["title", "context", "group"] | None = None
    "Rows with the same value here stay in one part. Questions on one passage always do."
    seed: Seed = 42
    "Seed of the random cuts and samples."
    max_train_samples: Count | None = None
    "Train on a random sample of this size."
    max_eval_samples: Count | None = None
    "Reduce every other part to a random sample of this size."
    sampling: Literal["random", "nested"] = later("random")
    "nested: samples of whole passages, or with the shares of the labels, each inside larger ones."


class Prompt(Section):
    """The text around the data."""

    template: TextTemplate = "{text}"
    "The text that a head reads: {text}, or for several columns their names: {premise} {hypothesis}."
    zero_shot: TextTemplate = "Text: {text}\nLabel:"
    "The prompt that the base model, before any training, continues with a verbalizer."
    verbalizers: Names | None = None
    "The continuation for each label, in the order of the labels. null means a space and the name."
    zero_shot_label: LabelTemplate = later(
        "Text: {text}\nDoes the label {label} fit this text? Answer yes or no.\nAnswer:"
    )
    "The prompt about each label, if a row has any number of labels. verbalizers: no and yes."
    system: Text | None = None
    "The system message, for models with a chat template."
    instruction: Instruction = (
        "Answer the question from the passage. "
        "If the passage does not answer it, say unanswerable.\n\n"
    )
    "The beginning of the prompt, in generative_qa."
    context: ContextTemplate = "Passage: {context}\n\n"
    "The passage in the prompt, in generative_qa."
    question: QuestionTemplate = "Question: {question}\nAnswer:"
    "The question in the prompt, in generative_qa."
    no_answer: NoAnswer = "unanswerable"
    "The words that mean that there is no answer, in generative_qa."

    @property
    def fields(self) -> tuple[str, ...]:
        """Return the columns that a text is made of; none if its one column may have any name."""
        for template in (self.template, self.zero_shot):
            if (names := templates.names(template)) != [templates.ONE_TEXT]:
                return tuple(names)
        return ()

    def of_fields(self, fields: Sequence[str], asks_each_label: bool = False) -> "Prompt":
        """Return the prompt for texts of these fields: a line for each, unless the recipe says.

        asks_each_label: whether zero-shot asks about one label after the other.
        """
        usual, lines = Prompt(), templates.lines(fields)
        changed = {}
        if self.template == usual.template:
            changed["template"] = lines
        if self.zero_shot == usual.zero_shot:
            changed["zero_shot"] = f"{lines}\nLabel:"
        if asks_each_label and self.zero_shot_label == usual.zero_shot_label:
            changed["zero_shot_label"] = usual.zero_shot_label.replace("Text: {text}", lines)
        return self.model_copy(update=changed)


class Train(Section):
    """TrainingArguments and SFTConfig. bf16 and fp16 are missing, because model.dtype decides."""

    output_dir: Folder | None = None
    "The run folder. null means runs/<name of the recipe>."
    num_train_epochs: EpochsOrAuto = "auto"
    "Passes over the train part. auto: 3, or up to 8 until there are 1000 steps or no gain is left."
    max_steps: MaxSteps = -1
    "Number of optimizer steps. With -1, num_train_epochs decides."
    learning_rate: PositiveOrAuto = "auto"
    "The highest learning rate. auto: 2e-4, more for a base of less than 1B or a head alone."
    per_device_train_batch_size: CountOrAuto = 16
    "Examples in a batch on each device; with packing, rows. auto: as many of a step's as fit."
    per_device_eval_batch_size: Count = 32
    "Examples in a batch in evaluation."
    gradient_accumulation_steps: Count = 1
    "Batches in one optimizer step. If the batch size is auto: examples in one step."
    weight_decay: NotNegative = 0.0
    "Weight decay."
    warmup_steps: Warmup = 0.03
    "Steps in which the learning rate rises. A number below 1 is a share of all steps."
    lr_scheduler_type: Scheduler = "cosine"
    "How the learning rate falls."
    lr_scheduler_kwargs: dict[str, int | float | str] = {}
    "Further arguments of the schedule, for example min_lr."
    max_grad_norm: NotNegative = 1.0
    "Gradients are clipped to this norm. 0 means no clipping."
    optim: Optimizer = "adamw_torch"
    "The optimizer."
    class_weights: LabelWeights | None = later(None)
    "Weights of classes in the loss, 1 if not named. balanced: rows / (classes * rows of the class)."
    pos_weight: LabelWeights | None = later(None)
    "With several labels a row, weights of the rows that have one. balanced: rows without it / with."
    max_length: Count = 512
    "Longest input, in tokens. With packing, tokens in a row."
    doc_stride: Count = 128
    "Number of tokens that two windows of a long passage share (extractive_qa)."
    packing: Literal["none", "prefix_tree"] = "none"
    "prefix_tree computes what texts of a batch, or questions of a row, share once, without padding."
    activation_checkpointing: bool | Literal["auto"] = False
    "Compute activations again in the backward pass: 1.45 times as long. auto: if they do not fit."
    torch_compile: bool = later(False)
    "Compile each block of the base into fewer kernels. The first steps then take a minute longer."
    reuse_frozen_blocks: bool = later(False)
    "Compute the blocks below the lowest one with LoRA once for each row, and keep that on disk."
    logging_steps: Count = 10
    "Steps between two points of the loss curve."
    eval_steps: EvalSteps | None = None
    "Steps between two validations. Below 1, it is a share of all steps. null means each epoch."
    save_total_limit: Count = 2
    "Number of checkpoints to keep."
    early_stopping_patience: Count | None = None
    "Stop after this number of validations without a better one. 2 if num_train_epochs is auto."
    early_stopping_threshold: NotNegative = later(0.0)
    "A validation is better only if it gains more than this."
    metric_for_best_model: Literal[
        "loss", "accuracy", "f1", "subset_accuracy", "f1_micro", "mae", "pearson", "exact"
    ] = later("loss")
    "What the best validation is best in. All but loss is a score of what the model predicts there."
    seed: Seed = 42
    "Seed of the head, the adapter and the order of examples."
    use_cpu: bool = False
    "Train on the CPU even if there is a GPU."
    dataloader_num_workers: Size = 0
    "Number of processes that prepare batches."
    report_to: list[Text] = []
    "Services that also get the loss curve: tensorboard, wandb, trackio, ..."


class Eval(Section):
    """How a model is evaluated. The batch size is train.per_device_eval_batch_size."""

    splits: Splits = ["test"]
    "The parts that results are computed on."
    limit: Count | None = None
    "Evaluate on a random sample of this size."
    num_fewshot: SizeOrAuto = 0
    "Solved examples in the prompt of a model that is not fine-tuned. auto: chosen on validation."
    fewshot_from: Literal["train", "passage"] = "train"
    "Their source: train (the same for all prompts), or earlier questions on the same passage."
    max_new_tokens: Count = 32
    "Longest answer, in tokens (generative_qa)."
    decoding: Literal["prefix_tree", "plain"] = "prefix_tree"
    "prefix_tree computes the shared beginning of prompts once. plain computes each prompt alone."
    fit_no_answer_threshold: bool = later(False)
    "Fit above which probability of no_answer a tuned model gives no answer (generative_qa)."
    n_best_size: Count = 20
    "Number of best starts and best ends that are combined (extractive_qa)."
    max_answer_length: Count = 30
    "Longest answer, in tokens (extractive_qa)."


class Hub(Section):
    """Where the adapter and its card are pushed to."""

    push_to_hub: bool = False
    "Push the run after training. `make NAME` pushes it again after evaluation."
    hub_model_id: RepoName | None = None
    "The repository. null takes your account and the recipe's name, after the name of a Llama base."
    hub_private_repo: bool = True
    "Create a private repository."
    language: Text | None = None
    "Language of the data, for the card: en, de, ..."


class Recipe(Section):
    """One task on one model, with every key. It is stored as recipe.yaml of a run folder."""

    name: RunName = "run"
    "Name of the run. If it is missing, the name of the file is taken."
    task: NamedTask
    "What the model learns."
    model: Model
    quantization: Quantization = Quantization()
    lora: Lora | None = None
    head: Head = Head()
    dataset: Data = Data()
    prompt: Prompt = Prompt()
    train: Train = Train()
    eval: Eval = Eval()
    hub: Hub = Hub()
    ladder: Ladder = later(Ladder())

    @property
    def kind(self) -> TaskKind:
        """Return the row of `llama_peft.tasks` for this task."""
        several = self.task == "classification" and not self.dataset.single_label
        return TASKS["multi_label_classification" if several else self.task]

    @property
    def fits_threshold(self) -> bool:
        """Return whether thresholds that are fitted on validation decide what a run says."""
        return self.kind.fits_threshold or self.eval.fit_no_answer_threshold

    @property
    def on_states(self) -> bool:
        """Return whether a head alone trains on states that are computed once."""
        alone = self.kind.caches_features and self.lora is None
        return alone and self.head.features != "none"

    @property
    def packs_rows(self) -> bool:
        """Return whether a row of the data set is a tree of many examples."""
        return self.train.packing == "prefix_tree" and self.kind.head is None

    @property
    def packs_batches(self) -> bool:
        """Return whether the rows of a batch, which a head reads, are computed as trees."""
        return self.train.packing == "prefix_tree" and self.kind.head is not None

    @property
    def train_batch_size(self) -> int:
        """Return the rows of a batch; as long as it is auto, one."""
        given = self.train.per_device_train_batch_size
        return 1 if given == "auto" else given

    @property
    def validation_batch_size(self) -> int:
        """Return the batch size of validation. Tree rows are large, so it is that of training."""
        return self.train_batch_size if self.packs_rows else self.train.per_device_eval_batch_size

    def changed(self, **values: Mapping[str, object] | Section | str | None) -> "Recipe":
        """Return the recipe with other values, unchecked. A mapping holds values of a section."""
        inner = {name: dict(its) for name, its in values.items() if isinstance(its, Mapping)}
        made = {name: getattr(self, name).model_copy(update=its) for name, its in inner.items()}
        return self.model_copy(update=values | made)

    def with_train(self, values: Mapping[str, float | bool | str]) -> "Recipe":
        """Return the recipe with other values of `train`."""
        return self.changed(train=values)

    def in_float32(self) -> "Recipe":
        """Return the recipe whose base is loaded as it is: not packed, and in float32."""
        unpacked = {"load_in_4bit": False, "load_in_8bit": False}
        return self.changed(model={"dtype": "float32"}, quantization=unpacked)

    @property
    def run_folder(self) -> str:
        """Return the folder that the run is written to."""
        return self.train.output_dir or f"runs/{self.name}"


def fields(section: type[Section] = Recipe, above: KeyPath = ()) -> dict[KeyPath, FieldInfo]:
    """Return every key of a recipe by its path. Sections are included."""
    result = {}
    for name, field in section.model_fields.items():
        result[(*above, name)] = field
        if inner := section_of(field.annotation):
            result |= fields(inner, (*above, name))
    return result
