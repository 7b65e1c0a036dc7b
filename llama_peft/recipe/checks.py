"""What the keys of a recipe get wrong together, where each alone is valid."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from llama_peft.recipe.schema import Recipe

KeyPath = tuple[str, ...]


class Fault(NamedTuple):
    """One thing wrong with a recipe: the keys it concerns (the first is shown) and why."""

    paths: tuple[KeyPath, ...]
    message: str


Rows = Iterator[tuple[str, ...]]
"""A message, then the keys that it concerns."""

SCHEDULE_NEEDS = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}


def pair_faults(recipe: Recipe) -> Iterator[Fault]:
    """Everything that valid keys get wrong together."""
    for check in (
        _task_faults,
        _model_faults,
        _lora_faults,
        _data_faults,
        _part_faults,
        _train_faults,
    ):
        for message, *keys in check(recipe):
            yield Fault(tuple(tuple(key.split(".")) for key in keys), message)


def _task_faults(recipe: Recipe) -> Rows:
    classification = recipe.kind.has_labels
    if recipe.kind.head is None and recipe.lora is None:
        yield "generative_qa has no head to train: set lora, as lora: {r: 16}", "lora", "task"
    if not recipe.kind.packs_prefix_trees and recipe.train.packing != "none":
        yield f"{recipe.task} trains without packing: remove it", "train.packing", "task"
    if recipe.kind.head is None and recipe.head.layer != -1:
        yield "generative_qa has no head: remove it", "head.layer", "task"
    if recipe.head.layer == "auto" and (recipe.lora is not None or not recipe.kind.caches_features):
        message = "auto is for a classification head alone: give a block's number, or remove lora"
        yield message, "head.layer", "lora", "task"
    validated = recipe.dataset.parts.validation is not None or recipe.dataset.validation_size > 0
    if recipe.head.layer == "auto" and not validated:
        keys = "head.layer", "dataset.validation_size", "dataset.parts.validation"
        yield "auto chooses by validation loss: set dataset.validation_size", *keys
    if recipe.head.layer == "auto" and recipe.head.features == "none":
        yield "auto chooses on features: remove none", "head.features", "head.layer"
    if not classification and recipe.dataset.labels is not None:
        yield "only classification has labels: remove it", "dataset.labels", "task"
    if not classification and recipe.prompt.verbalizers is not None:
        yield "only classification has verbalizers: remove it", "prompt.verbalizers", "task"
    if classification and recipe.dataset.format == "squad":
        yield "squad files hold questions, not classes", "dataset.format", "task"
    if classification and recipe.dataset.group_by in ("title", "context"):
        message = "classification groups rows by group (the column dataset.columns.group)"
        yield message, "dataset.group_by", "task"


def _model_faults(recipe: Recipe) -> Rows:
    quantization, labels = recipe.quantization, recipe.dataset.labels
    if quantization.load_in_4bit and quantization.load_in_8bit:
        keys = "quantization.load_in_8bit", "quantization.load_in_4bit"
        yield "a base is stored in 4 or in 8 bits: set load_in_4bit: false for 8", *keys
    if labels and recipe.prompt.verbalizers and len(labels) != len(recipe.prompt.verbalizers):
        message = f"{len(recipe.prompt.verbalizers)} verbalizers for {len(labels)} labels"
        yield message, "prompt.verbalizers", "dataset.labels"


def _not_regular(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return None


def _lora_faults(recipe: Recipe) -> Rows:
    lora = recipe.lora
    if lora is None:
        return
    if not lora.target_modules:
        yield "no layer gets an adapter", "lora.target_modules"
    for key, patterns in (
        ("target_modules", [lora.target_modules]),
        ("exclude_modules", [lora.exclude_modules]),
        ("rank_pattern", [*lora.rank_pattern]),
        ("alpha_pattern", [*lora.alpha_pattern]),
    ):
        for pattern in patterns:
            if isinstance(pattern, str) and (fault := _not_regular(pattern)):
                yield f"{pattern!r} is no regular expression: {fault}", f"lora.{key}"
    tokens = lora.trainable_token_indices
    if tokens is not None and not all(
        [tokens, *(tokens.values() if isinstance(tokens, dict) else [])]
    ):
        yield "names no token: remove it", "lora.trainable_token_indices"
    if isinstance(lora.target_modules, str) and lora.layers_to_transform is not None:
        keys = "lora.layers_to_transform", "lora.target_modules"
        yield "needs target_modules as a list of names", *keys
    if lora.layers_pattern is not None and lora.layers_to_transform is None:
        yield "needs layers_to_transform", "lora.layers_pattern", "lora.layers_to_transform"
    if lora.lora_bias and (lora.use_dora or not isinstance(lora.init_lora_weights, bool)):
        others = "lora.use_dora", "lora.init_lora_weights"
        message = "works without use_dora, and with init_lora_weights true or false only"
        yield message, "lora.lora_bias", *others
    quantized = recipe.quantization.load_in_4bit or recipe.quantization.load_in_8bit
    if quantized and str(lora.init_lora_weights).startswith("pissa"):
        others = "quantization.load_in_4bit", "quantization.load_in_8bit"
        message = f"{lora.init_lora_weights} needs a base that is not quantised"
        yield message, "lora.init_lora_weights", *others
    copied = [name for name in lora.modules_to_save or [] if "model.embed_tokens".endswith(name)]
    if copied and lora.trainable_token_indices is not None:
        keys = "lora.trainable_token_indices", "lora.modules_to_save"
        yield f"{copied[0]} trains whole: remove one of the two", *keys
    if lora.alora_invocation_tokens is not None and recipe.kind.head is not None:
        yield "works for generative_qa only", "lora.alora_invocation_tokens", "task"


def _data_faults(recipe: Recipe) -> Rows:
    data = recipe.dataset
    named = "train" in data.parts.model_fields_set
    if data.path is None and not named:
        message = (
            "say where the data are: dataset.path (a Hub name or a file) or dataset.parts.train"
        )
        yield message, "dataset.path", "dataset.parts"
    if data.path is None and data.name is not None:
        yield (
            "is the configuration of a Hub data set: set dataset.path",
            "dataset.name",
            "dataset.path",
        )
    if data.path == "tiny" and data.name is None:
        yield "path tiny needs dataset.name: reviews or passages", "dataset.name", "dataset.path"
    for part, value in data.parts.given().items():
        if value.isdecimal() != (data.path == "tiny"):
            wanted = "a number of rows" if data.path == "tiny" else "a file or a Hub split"
            yield f"must be {wanted}, not {value}", f"dataset.parts.{part}", "dataset.path"


def _part_faults(recipe: Recipe) -> Rows:
    parts, data = recipe.dataset.parts, recipe.dataset
    missing = {
        "test": parts.test is None and data.test_size == 0,
        "validation": parts.validation is None and data.validation_size == 0,
        "official": parts.official is None,
    }
    for split in recipe.eval.splits:
        if missing[split]:
            keys = [f"dataset.parts.{split}", f"dataset.{split}_size"]
            yield f"there is no {split} part: set dataset.parts.{split}", "eval.splits", *keys
    if recipe.train.early_stopping_patience is not None and missing["validation"]:
        keys = ["dataset.parts.validation", "dataset.validation_size"]
        message = "there is no validation part: set dataset.validation_size"
        yield message, "train.early_stopping_patience", *keys


def _train_faults(recipe: Recipe) -> Rows:
    train = recipe.train
    if recipe.task == "extractive_qa" and train.doc_stride >= train.max_length:
        message = f"must be below max_length ({train.max_length})"
        yield message, "train.doc_stride", "train.max_length", "task"
    needed = SCHEDULE_NEEDS.get(train.lr_scheduler_type, ())
    if needed and not any(name in train.lr_scheduler_kwargs for name in needed):
        message = f"{train.lr_scheduler_type} needs {' or '.join(needed)}"
        yield message, "train.lr_scheduler_kwargs", "train.lr_scheduler_type"
