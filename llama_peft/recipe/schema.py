"""Every knob of a recipe, once: its type, its default and what it does.

The names are those of TrainingArguments, SFTConfig, LoraConfig and BitsAndBytesConfig, so that what
a user knows from there holds here. What two keys get wrong together is in `recipe_checks`;
`recipe` reads files into these classes.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from llama_peft.recipe.fields import (
    Column,
    ContextTemplate,
    Count,
    DType,
    EvalSteps,
    Instruction,
    Labels,
    Layer,
    LoraInit,
    MaxSteps,
    Names,
    NoAnswer,
    NotNegative,
    Optimizer,
    PartName,
    Positive,
    QuestionTemplate,
    RunName,
    Scheduler,
    Seed,
    Share,
    Size,
    Splits,
    Text,
    TextTemplate,
    Warmup,
)
from llama_peft.tasks import TASKS, Task, TaskKind


class Section(BaseModel):
    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Model(Section):
    """The base model."""

    model_name_or_path: Text
    "Hub id or folder of the base model; `tiny` is the embedded one."
    revision: Text = "main"
    "Branch, tag or commit of the base model on the Hub."
    dtype: DType | None = None
    "Type of the weights that are not quantised; null takes what this machine multiplies fastest."
    attn_implementation: Literal["sdpa", "eager", "flex_attention"] | None = None
    "How attention is computed; null takes sdpa where the model has it (Gemma 2 has not)."


class Quantization(Section):
    """BitsAndBytesConfig: how the frozen base is stored."""

    load_in_4bit: bool = True
    "Store the base in 4 bits a weight."
    load_in_8bit: bool = False
    "Store the base in 8 bits a weight; needs load_in_4bit: false."
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    "The 4-bit number format."
    bnb_4bit_use_double_quant: bool = True
    "Quantise the quantisation constants too, which saves 0.4 bits a weight."
    bnb_4bit_compute_dtype: DType | None = None
    "Type that 4-bit weights are multiplied in; null takes model.dtype."


LORA_EXCLUDED = {
    "task_type": "follows from the recipe's task",
    "peft_type": "always LoRA",
    "auto_mapping": "written by peft on saving",
    "peft_version": "written by peft on saving",
    "base_model_name_or_path": "is model.model_name_or_path",
    "revision": "is model.revision",
    "inference_mode": "false in training, true on loading",
    "runtime_config": "an object, never saved",
    "megatron_config": "an object; no Megatron layers here",
    "megatron_core": "no Megatron layers here",
    "loftq_config": "an object; LoftQ quantises a full-precision base itself",
    "eva_config": "an object; needs a pass over the data before training",
    "corda_config": "an object; needs a pass over the data before training",
    "lora_ga_config": "an object; needs gradients before training",
    "velora_config": "an object",
    "kasa_config": "an object",
    "monteclora_config": "an object",
    "arrow_config": "an object; routes between adapters trained before",
    "layer_replication": "builds a taller model, another than the one that is compared",
    "target_parameters": "for mixtures of experts; the families here have none",
    "use_bdlora": "an object; for serving many adapters at once",
}


class Lora(Section):
    """LoraConfig, in every key that a YAML file can hold."""

    r: Count = 16
    "Rank of the adapter."
    lora_alpha: Count = 32
    "The adapter's output is scaled by lora_alpha / r."
    lora_dropout: Share = 0.0
    "Dropout on the adapter's input."
    target_modules: Text | list[Text] = [
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    ]
    "Names of the linear layers that get an adapter, a regular expression, or all-linear."
    exclude_modules: Text | list[Text] | None = None
    "Names, or a regular expression, of layers that get none."
    bias: Literal["none", "all", "lora_only"] = "none"
    "Which biases train."
    use_rslora: bool = False
    "Scale by lora_alpha / sqrt(r) instead."
    use_dora: bool = False
    "Learn magnitude and direction apart (DoRA)."
    use_qalora: bool = False
    "Quantisation-aware LoRA (GPTQ bases only)."
    qalora_group_size: Count = 16
    "Input features pooled together by use_qalora."
    lora_bias: bool = False
    "A bias on the adapter's second matrix."
    init_lora_weights: LoraInit = True
    "How it starts: true (no change at first), false, gaussian, olora, orthogonal, pissa, ..."
    layers_to_transform: Size | list[Size] | None = None
    "Numbers of the layers that get an adapter; null is all."
    layers_pattern: Text | list[Text] | None = None
    "Name of the list of layers, where it is not the usual one."
    rank_pattern: dict[str, Count] = {}
    "Ranks of single layers that differ from r, by name or regular expression."
    alpha_pattern: dict[str, Count] = {}
    "lora_alpha of single layers, by name or regular expression."
    modules_to_save: list[Text] | None = None
    "Further modules to train and save whole; the head is always among them."
    trainable_token_indices: list[Size] | dict[str, list[Size]] | None = None
    "Ids of tokens whose embeddings train."
    alora_invocation_tokens: list[Size] | None = None
    "Token ids after which the adapter acts (activated LoRA; generative_qa only)."
    ensure_weight_tying: bool = False
    "Keep adapters on tied layers tied."
    fan_in_fan_out: bool = False
    "The layers store their weight transposed (GPT-2's do)."

    def peft_kwargs(self) -> dict[str, object]:
        """The keys for `LoraConfig(**...)`."""
        return self.model_dump(mode="json")


class Head(Section):
    """The head of a classification or extractive_qa model."""

    pooling: Literal["last", "mean"] = "last"
    "Which states the classification head reads: the last token's, or the mean of all."
    layer: Layer = -1
    "The block whose states the head reads, through the final norm: -1 is the last, k the k-th; auto tries all."
    features: Literal["prefix_tree", "length_sorted", "none"] = "prefix_tree"
    "How a classification head alone gets its states: once, or with none in every epoch."


class Columns(Section):
    """Names of the columns; of several, the first that the data has is taken."""

    text: Column = ["text", "sentence", "content", "review"]
    "What is classified."
    label: Column = ["label", "labels", "class"]
    "Its class, by name or by number."
    id: Column | None = "id"
    "A name for the row; null, or where there is no such column: its part and number."
    question: Column = "question"
    "The question."
    context: Column = ["context", "passage"]
    "The passage that a question is about."
    answers: Column = ["answers", "answer"]
    "The right answers; none or an empty one means that the passage does not say."
    title: Column = "title"
    "The article that a passage is from."
    group: Column = "group"
    "What dataset.group_by: group keeps together."

    def names(self, key: str) -> list[str]:
        """The names to look for, in order, as what the recipe calls `key`."""
        value: str | list[str] | None = getattr(self, key)
        return [value] if isinstance(value, str) else value or []


class Parts(Section):
    """Where each part is: a file; with dataset.path a Hub split or (tiny) a number of rows."""

    train: PartName = "train"
    "What is trained on; validation and test are cut from it where they are not given."
    validation: PartName | None = None
    "For early stopping and thresholds."
    test: PartName | None = None
    "What results are measured on."
    official: PartName | None = None
    "A published evaluation set, reported beside the test part."

    def given(self) -> dict[str, str]:
        return {name: str(value) for name, value in self if value is not None}


class Data(Section):
    """Where examples come from and how they are split."""

    path: Text | None = None
    "A Hub data set, one file to train on, or `tiny` (generated); null: dataset.parts names files."
    name: Text | None = None
    "The configuration of a Hub data set; for `tiny`: reviews or passages."
    revision: Text | None = None
    "Branch, tag or commit of a Hub data set."
    parts: Parts = Parts()
    format: Literal["auto", "csv", "tsv", "json", "jsonl", "parquet", "squad"] = "auto"
    "Format of the files; auto goes by the file name and, for .json, by its shape."
    quoting: Literal["auto", "minimal", "none"] = "auto"
    "Quotes in CSV and TSV: minimal reads them, none takes them as text; auto is none for TSV only."
    columns: Columns = Columns()
    labels: Labels | None = None
    "The names of labels 0, 1, ...; null takes those of the data."
    test_size: Share = 0.2
    "Share of train that becomes test where no test part is given."
    validation_size: Share = 0.1
    "Share of the remaining train that becomes validation where none is given."
    stratify: bool = True
    "Keep the shares of the labels when cutting (classification without group_by)."
    group_by: Literal["title", "context", "group"] | None = None
    "Rows equal in this stay in one part; questions on one passage always do."
    seed: Seed = 42
    "Seed of the cuts and samples."
    max_train_samples: Count | None = None
    "Train on a random sample of this size."
    max_eval_samples: Count | None = None
    "Cut every other part to a random sample of this size."


class Prompt(Section):
    """All text around the data."""

    template: TextTemplate = "{text}"
    "What a classification head reads."
    zero_shot: TextTemplate = "Text: {text}\nLabel:"
    "What the untouched model continues with a verbalizer."
    verbalizers: Names | None = None
    "Each label as a continuation, in the order of the labels; null is a space and its name."
    system: Text | None = None
    "System message, for models with a chat template."
    instruction: Instruction = (
        "Answer the question from the passage. "
        "If the passage does not answer it, say unanswerable.\n\n"
    )
    "What generative_qa starts with."
    context: ContextTemplate = "Passage: {context}\n\n"
    "The passage, in generative_qa."
    question: QuestionTemplate = "Question: {question}\nAnswer:"
    "The question, in generative_qa."
    no_answer: NoAnswer = "unanswerable"
    "What stands for no answer, in generative_qa."


class Train(Section):
    """TrainingArguments and SFTConfig. bf16 and fp16 are missing: they follow from model.dtype."""

    output_dir: Text | None = None
    "The run folder; null is runs/<name of the recipe>."
    num_train_epochs: Positive = 3.0
    "Passes over the train part."
    max_steps: MaxSteps = -1
    "Optimizer steps; -1 is what num_train_epochs says."
    learning_rate: Positive = 2e-4
    "Highest learning rate."
    per_device_train_batch_size: Count = 16
    "Examples (with packing: rows) a step on each device."
    per_device_eval_batch_size: Count = 32
    "Examples at once in evaluation."
    gradient_accumulation_steps: Count = 1
    "Batches a step."
    weight_decay: NotNegative = 0.0
    "Weight decay."
    warmup_steps: Warmup = 0.03
    "Steps in which the learning rate rises; below 1, their share of all steps."
    lr_scheduler_type: Scheduler = "cosine"
    "How the learning rate falls."
    lr_scheduler_kwargs: dict[str, int | float | str] = {}
    "What the schedule needs beside that, as min_lr."
    max_grad_norm: NotNegative = 1.0
    "Gradients are clipped to this norm; 0 is no clipping."
    optim: Optimizer = "adamw_torch"
    "Optimizer."
    max_length: Count = 512
    "Longest input in tokens; with packing, tokens a row."
    doc_stride: Count = 128
    "Tokens that two windows of a long passage share (extractive_qa)."
    packing: Literal["none", "prefix_tree"] = "none"
    "prefix_tree computes a shared passage once for all its questions (generative_qa)."
    activation_checkpointing: bool = False
    "Compute activations again in the backward pass: less memory, 1.45 times the time."
    logging_steps: Count = 10
    "Steps between two points of the loss curve."
    eval_steps: EvalSteps | None = None
    "Steps between two validations; below 1, their share of all steps; null is each epoch."
    save_total_limit: Count = 2
    "Checkpoints to keep."
    early_stopping_patience: Count | None = None
    "Stop after so many validations without a better loss."
    seed: Seed = 42
    "Seed of the head, the adapter and the order of examples."
    use_cpu: bool = False
    "Train on the CPU even where there is a GPU."
    dataloader_num_workers: Size = 0
    "Processes that prepare batches."
    report_to: list[Text] = []
    "Where the loss curve also goes: tensorboard, wandb, trackio, ..."

    @property
    def validation_batch_size(self) -> int:
        """Rows at once in training's validation. A tree row holds many examples, so there as many as are trained on."""
        packed = self.packing == "prefix_tree"
        return self.per_device_train_batch_size if packed else self.per_device_eval_batch_size


class Eval(Section):
    """What is measured; batches are train.per_device_eval_batch_size long."""

    splits: Splits = ["test"]
    "The parts that results are measured on."
    limit: Count | None = None
    "Measure on so many examples only."
    num_fewshot: Size = 0
    "Worked examples in the prompt of an untuned model."
    fewshot_from: Literal["train", "passage"] = "train"
    "The same ones from train, or earlier questions on the same passage with their gold answers."
    max_new_tokens: Count = 32
    "Longest answer, in tokens (generative_qa)."
    decoding: Literal["prefix_tree", "plain"] = "prefix_tree"
    "prefix_tree computes what prompts share once; plain, its slower twin, takes each prompt alone."
    n_best_size: Count = 20
    "Starts and ends that are combined (extractive_qa)."
    max_answer_length: Count = 30
    "Longest answer, in tokens (extractive_qa)."


class Hub(Section):
    """Where the adapter and its card go."""

    push_to_hub: bool = False
    "Push the run when it is trained; `make NAME` pushes it again when it is measured."
    hub_model_id: Text | None = None
    "Repository; null is the recipe's name (behind the base's, if that is a Llama), under your account."
    hub_private_repo: bool = True
    "Create it as a private one."
    language: Text | None = None
    "Language of the data, for the card: en, de, ..."


class Recipe(Section):
    """One task on one model, resolved: what a run folder's recipe.yaml holds."""

    name: RunName = "run"
    "Name of the run; where it is not given, that of the file."
    task: Task
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

    @property
    def kind(self) -> TaskKind:
        """The row of `tasks` that the task names."""
        return TASKS[self.task]

    @property
    def run_folder(self) -> str:
        return self.train.output_dir or f"runs/{self.name}"
