"""Checks of keys that are valid alone and wrong together."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from llama_peft.recipe import templates
from llama_peft.recipe.fields import is_number
from llama_peft.recipe.schema import GIVEN, Columns, Lora, Prompt, Recipe
from llama_peft.recipe.strict_yaml import KeyPath


class Fault(NamedTuple):
    """One thing that is wrong with a recipe: its keys, of which the first is shown, and why."""

    paths: tuple[KeyPath, ...]
    message: str


Problems = Iterator[tuple[str, ...]]
"""A message, and after it the keys that it concerns."""

SCHEDULE_NEEDS = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}


def pair_faults(recipe: Recipe) -> Iterator[Fault]:
    """Yield every fault of keys that do not fit together."""
    for check in (
        _task_faults,
        _layer_choice_faults,
        _classification_faults,
        _passage_faults,
        _position_faults,
        _field_faults,
        _model_faults,
        _lora_faults,
        _data_faults,
        _part_faults,
        _train_faults,
        _ladder_faults,
    ):
        for message, *keys in check(recipe):
            yield Fault(tuple(tuple(key.split(".")) for key in keys), message)


def _task_faults(recipe: Recipe) -> Problems:
    if recipe.kind.head is None and recipe.lora is None:
        message = f"{recipe.task} has no head to train: set lora, for example lora: {{r: 16}}"
        yield message, "lora", "task"
    if recipe.kind.head is None and recipe.head.layer != -1:
        yield f"{recipe.task} has no head: remove this key", "head.layer", "task"
    if recipe.kind.head is not None and recipe.eval.fit_no_answer_threshold:
        yield "works for generative_qa only", "eval.fit_no_answer_threshold", "task"
    lora = recipe.lora
    if lora and lora.alora_invocation_tokens is not None and recipe.kind.head is not None:
        yield "works for generative_qa only", "lora.alora_invocation_tokens", "task"


def _layer_choice_faults(recipe: Recipe) -> Problems:
    """Check that `head.layer: auto` has cached features and a validation part to choose by."""
    if recipe.head.layer != "auto":
        return
    data = recipe.dataset
    if recipe.lora is not None or recipe.kind.side != "labels":
        message = (
            "auto works only for a classification head without lora, with one label a row: "
            "give the number of a block, or remove lora"
        )
        yield message, "head.layer", "lora", "task"
    if data.parts.validation is None and data.validation_size == 0:
        message = "auto chooses by validation loss: set dataset.validation_size"
        yield message, "head.layer", "dataset.validation_size", "dataset.parts.validation"
    if recipe.head.features == "none":
        message = "head.layer: auto needs cached features: remove none"
        yield message, "head.features", "head.layer"


def _classification_faults(recipe: Recipe) -> Problems:
    data, verbalizers = recipe.dataset, recipe.prompt.verbalizers
    if recipe.task != "classification" and not data.single_label:
        yield (
            "only classification has single_label: remove this key",
            "dataset.single_label",
            "task",
        )
    if recipe.task != "regression" and data.decimal != ".":
        yield "only regression has decimal: remove this key", "dataset.decimal", "task"
    if recipe.kind.has_labels:
        if data.format == "squad":
            yield "squad files hold questions, not classes", "dataset.format", "task"
        if data.group_by in ("title", "context"):
            message = f"{recipe.task} can only group by group (the column dataset.columns.group)"
            yield message, "dataset.group_by", "task"
        yield from _verbalizer_faults(recipe)
    for key, value, has_it in (
        ("dataset.labels", data.labels, recipe.kind.names_labels),
        ("prompt.verbalizers", verbalizers, recipe.kind.has_labels),
    ):
        if value is not None and not has_it:
            yield f"only classification has {key.split('.')[1]}: remove this key", key, "task"


def _position_faults(recipe: Recipe) -> Problems:
    if recipe.dataset.label_positions and recipe.dataset.labels is None:
        message = "there are no names in dataset.labels that numbers could mean: list them in order"
        yield message, "dataset.label_positions"


def _field_faults(recipe: Recipe) -> Problems:
    """Check that templates name the columns of a text: all of them, and no others."""
    columns = recipe.dataset.columns.names("text")
    if "text" not in recipe.kind.columns or len(columns) < 2:
        columns = []
    braces = [name for name in columns if re.search("[{}]", name)]
    if braces:
        yield f"{braces[0]}: a column of texts cannot have braces in its name", "dataset.columns"
    for key in ("template", "zero_shot", "zero_shot_label"):
        names = templates.names(getattr(recipe.prompt, key))
        if key == "zero_shot_label":
            names.remove(templates.LABEL)
        if names == [templates.ONE_TEXT]:
            continue
        keys = f"prompt.{key}", "dataset.columns.text"
        unknown = [name for name in names if name not in columns]
        left_out = [name for name in columns if name not in names]
        if columns == Columns().names("text") or not columns:
            message = (
                f"names {templates.listed(names)}: set dataset.columns.text: [{', '.join(names)}]"
            )
            yield message if len(names) > 1 else "must contain {text} exactly once", *keys
        elif unknown:
            listed = ", ".join(columns)
            message = (
                f"names {templates.listed(unknown)}, which dataset.columns.text ({listed}) does not"
            )
            yield message, *keys
        elif left_out:
            message = f"leaves out {templates.listed(left_out)}, which dataset.columns.text names"
            yield message, *keys


def _passage_faults(recipe: Recipe) -> Problems:
    """Check what questions without a passage cannot have."""
    if recipe.dataset.columns.context is not None or recipe.kind.has_labels:
        return
    key = "dataset.columns.context"
    if recipe.kind.finds_spans:
        yield f"{recipe.task} finds answers in a passage: name its column", key, "task"
    if recipe.prompt.instruction == Prompt().instruction:
        message = (
            "speaks of a passage, which the questions do not have: write your own, for example "
            '"Answer the question.\\n\\n"'
        )
        yield message, "prompt.instruction", key
    if recipe.dataset.group_by == "context":
        yield "there is no passage to group by", "dataset.group_by", key
    if recipe.eval.fewshot_from == "passage":
        yield "there is no passage: set it to train", "eval.fewshot_from", key


def _verbalizer_faults(recipe: Recipe) -> Problems:
    """Check that there is a verbalizer for each label, for no and yes, or for each number."""
    side, labels, words = recipe.kind.side, recipe.dataset.labels, recipe.prompt.verbalizers
    if side == "labels" and labels and words and len(labels) != len(words):
        message = f"there are {len(words)} verbalizers for {len(labels)} labels"
        yield message, "prompt.verbalizers", "dataset.labels"
    if side == "label_sets" and words and len(words) != 2:
        message = "each label is asked for by itself: give two, for no and for yes"
        yield message, "prompt.verbalizers", "dataset.single_label"
    if side == "numbers" and (len(words or ()) < 2 or not all(map(is_number, words or ()))):
        message = (
            "for zero-shot, list the numbers that the base can answer with, in quotes, for example "
            '["0", "1", "2", "3", "4", "5"]'
        )
        yield message, "prompt.verbalizers", "task"


def _model_faults(recipe: Recipe) -> Problems:
    quantization = recipe.quantization
    if quantization.load_in_4bit and quantization.load_in_8bit:
        message = "the base is stored in 4 bits or in 8 bits: for 8, set load_in_4bit: false"
        yield message, "quantization.load_in_8bit", "quantization.load_in_4bit"
    if recipe.model.attn_implementation == "varlen":
        if recipe.model.dtype == "float32":
            message = "varlen computes in 16 bits: remove model.dtype or this key"
            yield message, "model.attn_implementation", "model.dtype"
        if recipe.train.packing != "prefix_tree":
            message = "varlen computes prefix trees only: set train.packing: prefix_tree"
            yield message, "model.attn_implementation", "train.packing"
        if recipe.on_states:
            message = (
                "a head alone reads states that varlen does not compute: remove this key, or set "
                "head.features: none"
            )
            yield message, "model.attn_implementation", "head.features", "lora"


def _lora_faults(recipe: Recipe) -> Problems:
    lora = recipe.lora
    if lora is None:
        return
    yield from _pattern_faults(lora)
    yield from _token_faults(lora)
    if not lora.target_modules:
        yield "names no layer that gets an adapter", "lora.target_modules"
    if isinstance(lora.target_modules, str) and lora.layers_to_transform is not None:
        keys = "lora.layers_to_transform", "lora.target_modules"
        yield "needs target_modules as a list of names", *keys
    if lora.layers_pattern is not None and lora.layers_to_transform is None:
        yield "needs layers_to_transform", "lora.layers_pattern", "lora.layers_to_transform"
    if lora.lora_bias and (lora.use_dora or not isinstance(lora.init_lora_weights, bool)):
        others = "lora.use_dora", "lora.init_lora_weights"
        message = "works only without use_dora and with init_lora_weights true or false"
        yield message, "lora.lora_bias", *others
    quantized = recipe.quantization.load_in_4bit or recipe.quantization.load_in_8bit
    if quantized and str(lora.init_lora_weights).startswith("pissa"):
        others = "quantization.load_in_4bit", "quantization.load_in_8bit"
        message = (
            f"{lora.init_lora_weights} needs a base that is not quantised: "
            "set quantization.load_in_4bit: false, and no load_in_8bit"
        )
        yield message, "lora.init_lora_weights", *others
    chosen = lora.layers_to_transform
    upper = [chosen] if isinstance(chosen, int) else chosen or [0]
    if recipe.train.reuse_frozen_blocks and min(upper) == 0:
        message = "needs LoRA on upper blocks only: set lora.layers_to_transform, without block 0"
        yield message, "train.reuse_frozen_blocks", "lora.layers_to_transform"
    ranks = [lora.r, *lora.rank_pattern.values()]
    if lora.init_lora_weights == "orthogonal" and any(rank % 2 for rank in ranks):
        message = "orthogonal needs even ranks: change lora.r or lora.rank_pattern"
        yield message, "lora.init_lora_weights", "lora.r", "lora.rank_pattern"


def _pattern_faults(lora: Lora) -> Problems:
    """Check every regular expression that PEFT would compile."""
    for key, patterns in (
        ("target_modules", [lora.target_modules]),
        ("exclude_modules", [lora.exclude_modules]),
        ("rank_pattern", [*lora.rank_pattern]),
        ("alpha_pattern", [*lora.alpha_pattern]),
    ):
        for pattern in patterns:
            if isinstance(pattern, str) and (problem := _regex_problem(pattern)):
                yield f"{pattern!r} is not a regular expression: {problem}", f"lora.{key}"


def _regex_problem(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return None


def _token_faults(lora: Lora) -> Problems:
    tokens = lora.trainable_token_indices
    if tokens is None:
        return
    if not all([tokens, *(tokens.values() if isinstance(tokens, dict) else [])]):
        yield "names no token: remove this key", "lora.trainable_token_indices"
    whole = [name for name in lora.modules_to_save or [] if "model.embed_tokens".endswith(name)]
    if whole:
        message = f"{whole[0]} is already trained whole (modules_to_save): remove one of the two"
        yield message, "lora.trainable_token_indices", "lora.modules_to_save"


def _data_faults(recipe: Recipe) -> Problems:
    data = recipe.dataset
    if data.path is None and "train" not in data.parts.model_fields_set:
        message = (
            "say where the data are: set dataset.path (a Hub name or a file) or dataset.parts.train"
        )
        yield message, "dataset.path", "dataset.parts"
    if data.path is None and data.name is not None:
        message = "is the configuration of a Hub data set: set dataset.path"
        yield message, "dataset.name", "dataset.path"
    yield from _streaming_faults(recipe)
    if data.path == "tiny" and data.name is None:
        message = "path tiny needs dataset.name: set it to reviews, mixed-reviews or passages"
        yield message, "dataset.name", "dataset.path"
    for part, value in data.parts.given().items():
        if value != GIVEN and value.isdecimal() != (data.path == "tiny"):
            expected = "a number of rows" if data.path == "tiny" else "a file or a Hub split"
            yield f"must be {expected}, not {value}", f"dataset.parts.{part}", "dataset.path"


def _streaming_faults(recipe: Recipe) -> Problems:
    data = recipe.dataset
    if not data.streaming:
        return
    if data.path in (None, "tiny"):
        yield "works for data sets on the Hub only: remove this key", "dataset.streaming"
    for key, parts in (
        ("max_train_samples", ["train"]),
        ("max_eval_samples", [part for part in data.parts.given() if part != "train"]),
    ):
        if parts and getattr(data, key) is None:
            message = f"needs dataset.{key}: the number of rows to take of {', '.join(parts)}"
            yield message, "dataset.streaming", f"dataset.{key}"


def _part_faults(recipe: Recipe) -> Problems:
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
    train, keys = recipe.train, ["dataset.parts.validation", "dataset.validation_size"]
    for key, asked in (
        ("early_stopping_patience", train.early_stopping_patience is not None),
        ("metric_for_best_model", train.metric_for_best_model != "loss"),
    ):
        if asked and missing["validation"]:
            message = "there is no validation part: set dataset.validation_size"
            yield message, f"train.{key}", *keys


def _train_faults(recipe: Recipe) -> Problems:
    train = recipe.train
    if recipe.task == "extractive_qa" and train.doc_stride >= train.max_length:
        message = f"must be below max_length ({train.max_length})"
        yield message, "train.doc_stride", "train.max_length", "task"
    yield from _weight_faults(recipe)
    metrics = ("loss", *recipe.kind.scores)
    if train.metric_for_best_model not in metrics:
        message = f"{recipe.task} can choose by {', '.join(metrics[:-1])} or {metrics[-1]}"
        yield message, "train.metric_for_best_model", "task", "dataset.single_label"
    needed = SCHEDULE_NEEDS.get(train.lr_scheduler_type, ())
    if needed and not any(name in train.lr_scheduler_kwargs for name in needed):
        message = f"{train.lr_scheduler_type} needs {' or '.join(needed)}"
        yield message, "train.lr_scheduler_kwargs", "train.lr_scheduler_type"


def _weight_faults(recipe: Recipe) -> Problems:
    """Check that weights are those of the task. Their names are checked with the data."""
    for key, side, what in (
        ("class_weights", "labels", "classification with one label a row"),
        ("pos_weight", "label_sets", "classification with several labels a row"),
    ):
        if getattr(recipe.train, key) is not None and recipe.kind.side != side:
            message = f"only {what} has {key}: remove this key"
            yield message, f"train.{key}", "task", "dataset.single_label"


def _ladder_faults(recipe: Recipe) -> Problems:
    ladder, labels = recipe.ladder, recipe.kind.has_labels
    for key in ("encoder", "full"):
        if getattr(ladder, key) and not labels:
            message = "works for texts with labels or numbers only: remove this key"
            yield message, f"ladder.{key}", "task"
    others = ("no-answer", "bm25") if labels else ("majority", "tf-idf", "head", "encoder", "full")
    if strange := [name for name in ladder.rungs or () if name in others]:
        yield f"{recipe.task} has no rung {strange[0]}: remove it", "ladder.rungs", "task"
    for rung in ("encoder", "full", "hosted"):
        if rung in (ladder.rungs or ()) and not getattr(ladder, rung):
            yield f"has the rung {rung}: set ladder.{rung}", "ladder.rungs", f"ladder.{rung}"
