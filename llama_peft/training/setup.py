"""Prepares what a training needs: rows, base, head or adapter, and the Trainer of the task."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from llama_peft import data
from llama_peft.data import QuestionExample
from llama_peft.errors import UserError
from llama_peft.model import backbone, counts
from llama_peft.model.estimate import Batches, trains_trees
from llama_peft.model.fingerprint import base_fingerprint
from llama_peft.model.lora import add_lora, count_loaded
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import CHECKPOINTS, HISTORY
from llama_peft.tasks import LOWER_IS_BETTER
from llama_peft.tokens.prompts import PromptEncoder
from llama_peft.training.checkpoints import Origin
from llama_peft.training.resume import recipe_sum
from llama_peft.training.rows import ClassificationRow, Row, collator, encode_part, widest

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

    from llama_peft.training.loss_weights import LossWeights
    from llama_peft.training.trainer import SteadyTrainer

    Arguments = TypeVar("Arguments", bound=TrainingArguments)

log = logging.getLogger(__name__)

_OWN_KEYS = {
    "output_dir", "max_length", "doc_stride", "packing", "eval_steps", "save_total_limit",
    "early_stopping_patience", "early_stopping_threshold", "class_weights", "pos_weight",
    "torch_compile", "reuse_frozen_blocks",
}  # fmt: skip
"""Keys of `train` that TrainingArguments does not have, or gets in another form."""

CHECKED = 8
"""Rows in the batch whose tree rows are checked before the first step."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The data as a base reads them, before the base is here."""

    encoder: PromptEncoder
    rows: dict[str, Sequence[Row]]
    """Rows of token ids of the train and the validation part."""

    def widest(self, recipe: Recipe) -> Batches:
        """Return the batches that take the most, of a recipe whose batch size is a number."""
        return widest(recipe, self.rows, self.encoder.tokenizer.pad_token_id)


@dataclass(frozen=True, kw_only=True)
class Loaded(Encoded):
    """What a training reads."""

    recipe: Recipe
    """Its `head.layer` is a number, even if it was auto."""
    base: "PreTrainedModel"
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class Attached:
    """What a training changes, and the rows that it is fed."""

    model: "nn.Module"
    counted: counts.Counts
    rows: Mapping[str, Sequence[object]]
    """Token ids, or for a head alone the states of the frozen base."""
    collate: Callable[..., Mapping[str, object]]
    """From rows to a batch."""
    weights: "LossWeights | None"
    frozen: "Sequence[nn.Module]" = ()
    """Blocks whose states come with the batches, in place of being computed."""


def encode(recipe: Recipe, dataset: data.Dataset) -> Encoded:
    """Encode the data. Raises UserError if a row is longer than what the base can read."""
    encoder = PromptEncoder(backbone.load_tokenizer(recipe.model), recipe.prompt)
    rows = {
        part: encode_part(recipe, encoder, part, dataset.parts.get(part, []))
        for part in data.TRAINED_ON
    }
    _check_positions(recipe, rows)
    return Encoded(encoder=encoder, rows=rows)


def load(recipe: Recipe, encoded: Encoded, dataset: data.Dataset, folder: Path) -> Loaded:
    """Load the base; `head.layer: auto` becomes a number here."""
    encoder, rows = encoded.encoder, encoded.rows
    sums = (recipe_sum(recipe), data.content_sum(dataset))
    base = backbone.load(recipe, recipe.kind.name, len(dataset.labels))
    if recipe.head.layer == "auto":
        from llama_peft.training.features.layer_choice import choose

        texts = cast("dict[str, Sequence[ClassificationRow]]", rows)
        head = choose(recipe, base, texts, folder)
        recipe = recipe.changed(head=head)
        base = backbone.load(recipe, recipe.kind.name, len(dataset.labels))
    origin = Origin(base_fingerprint(recipe), *sums)
    return Loaded(recipe=recipe, encoder=encoder, rows=rows, base=base, origin=origin)


def _check_positions(recipe: Recipe, rows: Mapping[str, Sequence[Row]]) -> None:
    """Raise UserError if a row is longer than what the base can read; warn if only the limit is."""
    most = backbone.positions(backbone.load_config(recipe.model))
    limit = recipe.train.max_length
    if most is None or limit <= most:
        return
    for part, its in rows.items():
        lengths = [_length(row) for row in its]
        if long := sum(length > most for length in lengths):
            raise UserError(
                f"{part}: {long:,} of {len(its):,} rows are longer than the {most:,} positions of "
                f"{recipe.model.model_name_or_path} (the longest has {max(lengths):,} tokens): set "
                f"train.max_length to {most} or less"
            )
    log.warning(
        "train.max_length %d is more than the %d positions of the base; no row of the training is "
        "longer than these, and a longer text will be cut to them in an evaluation",
        *(limit, most),
    )


def _length(row: Row) -> int:
    """Return how many positions a row takes. A prefix tree takes those of its longest example."""
    depths = cast("Mapping[str, Sequence[int]]", row).get("position_ids")
    return len(row["input_ids"]) if depths is None else max(depths) + 1


def attach(loaded: Loaded, folder: Path) -> Attached:
    """Return the base with LoRA and a copy of its head, or the head alone, ready to train."""
    from llama_peft.training.loss_weights import loss_weights

    recipe, base = loaded.recipe, loaded.base
    model = trained_module(recipe, base)
    rows: Mapping[str, Sequence[object]] = loaded.rows
    collate: Callable[..., Mapping[str, object]]
    collate = collator(recipe, loaded.encoder.tokenizer.pad_token_id)
    if recipe.on_states:
        from llama_peft.training.features.head import collate as collate_states

        texts = cast("dict[str, Sequence[ClassificationRow]]", loaded.rows)
        rows, model = _features(recipe, base, texts, folder)
        collate = collate_states
    frozen: Sequence[nn.Module] = ()
    if recipe.train.reuse_frozen_blocks and recipe.lora is not None:
        from llama_peft.training.features.frozen_blocks import frozen_blocks, with_states

        frozen = frozen_blocks(base)
        collate = with_states(recipe, base, len(frozen), loaded.rows, collate, folder)
    counted = count_loaded(base, recipe.kind.name)
    log.info(counted.describe())
    weights = loss_weights(recipe, loaded.rows)
    return Attached(
        model=model, counted=counted, rows=rows, collate=collate, weights=weights, frozen=frozen
    )


def trained_module(recipe: Recipe, base: "PreTrainedModel") -> "nn.Module":
    """Return the module that Trainer trains: the base with LoRA, or its head alone."""
    if trains_trees(recipe) and not recipe.train.use_cpu:
        from llama_peft.prefix_tree.mask import use_kernel

        text = base.config.get_text_config()
        use_kernel(text, base.device, base.dtype, recipe.model.attn_implementation)
    if recipe.packs_batches:
        from llama_peft.prefix_tree.mask import install

        install(base)
    if recipe.lora is not None:
        adapted = add_lora(base, recipe.lora, recipe.kind.name, recipe)
        # PEFT would write its own card into each checkpoint, on top of a README.md of the user.
        adapted.create_or_update_model_card = lambda folder: None
        return adapted
    return _head_only(base, str(recipe.kind.head))


def _head_only(model: "PreTrainedModel", name: str) -> "nn.Module":
    """Return a module whose only parameters are the head's, with the frozen base behind it.

    Trainer refuses a quantised model without adapters, and would save all of it in each checkpoint.
    No input and no weight of the base needs a gradient, so its forward pass builds no graph and
    keeps no activations.
    """
    from torch import nn

    class HeadOnly(nn.Module):
        accepts_loss_kwargs = False

        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, getattr(model, name).requires_grad_(True))
            self._frozen = (model,)  # in a tuple, so that its weights are not this module's

        def forward(self, **batch: "Tensor") -> object:
            return self._frozen[0](**batch)

    return HeadOnly()


def _features(
    recipe: Recipe,
    base: "PreTrainedModel",
    rows: Mapping[str, Sequence[ClassificationRow]],
    folder: Path,
) -> "tuple[dict[str, Sequence[object]], nn.Module]":
    """Return the parts as states, and the head that reads them.

    Of several processes one computes them, and the others wait for its lock.
    """
    from llama_peft.features.cache import cache_folder
    from llama_peft.training.features.head import FeatureHead, states_of

    cache = cache_folder(folder)
    found: dict[str, Sequence[object]] = {
        part: states_of(recipe, base, part, its, cache) if its else [] for part, its in rows.items()
    }
    return found, FeatureHead(base.score, recipe.kind.problem_type)


def compile_and_check(
    loaded: Loaded, attached: Attached, dataset: data.Dataset, trainer: "SteadyTrainer"
) -> None:
    """Compile the blocks of the base, if the recipe asks for it, and compare tree rows, which they then
    compute, with plain rows by plain blocks.

    With a wrong mask the training would run without an error. Both are computed under the trainer's
    autocast, without which blocks would be compiled once more.
    """
    recipe, base, model = loaded.recipe, loaded.base, attached.model
    if recipe.on_states:
        return
    from llama_peft.prefix_tree.loss import check_batch, self_check
    from llama_peft.system.compiling.blocks import as_they_are, compile_blocks
    from llama_peft.training.features.frozen_blocks import check_states
    from llama_peft.training.processes.batch import IDS, ORIGINS, STATES

    if recipe.train.torch_compile:
        compile_blocks(base)
    found = None
    if recipe.packs_batches:
        batch = attached.collate(attached.rows["train"][:CHECKED])
        given = {key: value for key, value in batch.items() if key not in (IDS, STATES, ORIGINS)}
        if "packed" in given:
            with trainer.accelerator.autocast():
                found = check_batch(model, given, base.dtype, as_they_are(base))
    elif recipe.packs_rows:
        # The first questions share a few passages, so their row has branches.
        examples = [one for one in dataset.parts["train"][:6] if isinstance(one, QuestionExample)]
        encoded, limit = loaded.encoder.encode(examples), recipe.train.max_length
        fitting = [one for one in encoded if len(one.prompt) + len(one.completion) <= limit]
        if fitting:
            with trainer.accelerator.autocast():
                found = self_check(model, fitting, limit, as_they_are(base))
    if attached.frozen:
        few = attached.collate(attached.rows["train"][: CHECKED if recipe.kind.head else 1])
        check_states(few, trainer.model, trainer.prediction_step, base.dtype)
    if found is not None:
        log.info("self-check: the loss is %.5f as a tree, and %.5f in plain rows", *found)


def build_trainer(
    recipe: Recipe,
    model: "nn.Module",
    encoder: PromptEncoder,
    train_rows: Sequence[object],
    validation_rows: Sequence[object],
    collate: Callable[..., Mapping[str, object]],
    folder: Path,
    step: Mapping[str, int] | None = None,
    weights: "LossWeights | None" = None,
) -> "SteadyTrainer":
    """Return a Trainer that writes the history and keeps the best checkpoint.

    step: the values of `train` that make up a step, if they are not the recipe's.
    """
    from transformers import TrainingArguments

    from llama_peft.training.trainer import SteadyTrainer

    arguments = training_arguments(recipe, bool(validation_rows), folder) | dict(step or {})
    callbacks = _callbacks(recipe, bool(arguments["load_best_model_at_end"]), folder)
    parts = {"model": model, "data_collator": collate, "callbacks": callbacks}
    if recipe.kind.head is None:
        arguments["max_length"] = recipe.train.max_length
        trainer = _answer_trainer(arguments, train_rows, validation_rows, encoder, **parts)
    else:
        trainer = SteadyTrainer(
            args=_on_one_gpu(TrainingArguments(**arguments)),
            train_dataset=train_rows,
            eval_dataset=validation_rows or None,
            **parts,
        )
    trainer.weigh(weights)
    trainer.computes_in = backbone.dtype_name(recipe)
    return trainer


def _on_one_gpu(arguments: "Arguments") -> "Arguments":
    """Make one process train on one GPU, also if it sees several.

    Trainer would copy the model to each of them (DataParallel), or only multiply the batch by their
    number. Several GPUs need a process each: torchrun or accelerate launch.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _answer_trainer(
    arguments: Mapping[str, object],
    train_rows: Sequence[object],
    validation_rows: Sequence[object],
    encoder: PromptEncoder,
    **parts: object,
) -> "SteadyTrainer":
    """Return TRL's SFTTrainer for questions and answers, with a float32 adapter."""
    from trl import SFTConfig

    from llama_peft.training.tree_trainer import TreeDataset, TreeTrainer

    trainer = TreeTrainer(
        args=_on_one_gpu(
            SFTConfig(**arguments, packing=False, dataset_kwargs={"skip_prepare_dataset": True})
        ),
        train_dataset=TreeDataset(train_rows),
        eval_dataset=TreeDataset(validation_rows) if validation_rows else None,
        processing_class=encoder.tokenizer,
        **parts,
    )
    for parameter in trainer.model.parameters():
        # SFTTrainer has just cast the adapter to bfloat16, where small updates vanish.
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _callbacks(recipe: Recipe, keeps_best: bool, folder: Path) -> "list[TrainerCallback]":
    from transformers import EarlyStoppingCallback

    from llama_peft.training.callbacks import CheckOptimizer, FindBest, History

    callbacks: list[TrainerCallback] = [CheckOptimizer(), FindBest(), History(folder / HISTORY)]
    if recipe.train.early_stopping_patience is not None and keeps_best:
        train = recipe.train
        callbacks.append(
            EarlyStoppingCallback(train.early_stopping_patience, train.early_stopping_threshold)
        )
    return callbacks


def training_arguments(recipe: Recipe, validates: bool, folder: Path) -> dict[str, object]:
    """Return arguments of TrainingArguments. Validation and saving happen at the same steps."""
    given = recipe.train.model_dump(exclude=_OWN_KEYS)
    place, dtype = backbone.place_of(recipe), backbone.dtype_name(recipe)
    steps, metric = recipe.train.eval_steps, recipe.train.metric_for_best_model
    strategy = "epoch" if steps is None else "steps"
    return {
        **given,
        "output_dir": str(folder / CHECKPOINTS),
        "use_cpu": place.type == "cpu",
        "bf16": dtype == "bfloat16" and place.type != "cpu",
        "fp16": dtype == "float16" and place.type != "cpu",
        "optim": fast_optimizer(recipe.train.optim, place.type),
        "accelerator_config": {"non_blocking": place.type == "cuda"},  # from pinned memory
        "eval_strategy": strategy if validates else "no",
        "save_strategy": strategy,
        "eval_steps": steps,
        "per_device_eval_batch_size": recipe.validation_batch_size,
        "save_steps": steps or 500,
        # A head alone keeps no activations of the backbone, so there is nothing to compute again.
        "activation_checkpointing": recipe.train.activation_checkpointing
        and recipe.lora is not None,
        "load_best_model_at_end": validates,
        "metric_for_best_model": f"eval_{metric}" if validates else None,
        "greater_is_better": metric not in LOWER_IS_BETTER if validates else None,
        "restore_callback_states_from_checkpoint": True,  # early stopping continues to count
        "save_total_limit": None,  # SealCheckpoints removes old ones, after the new one is sealed
        # States all have one size, so their batches can be random.
        "train_sampling_strategy": "random" if recipe.on_states else "group_by_length",
        "label_names": list(recipe.kind.label_keys),
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,  # would log NaN as 0.0
        "logging_first_step": True,
        "ddp_find_unused_parameters": False,
        "disable_tqdm": True,  # `show_progress` has a bar of ours
        "project": recipe.name,
    }


def fast_optimizer(optim: str, device: str) -> str:
    """Return the name of torch's AdamW in one kernel, on a GPU; its state is the same."""
    return "adamw_torch_fused" if (optim, device) == ("adamw_torch", "cuda") else optim
