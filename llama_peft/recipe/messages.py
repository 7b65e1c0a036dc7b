"""The words for faults of a recipe: where it is, what is wrong, and which key or value was meant."""

import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic_core import ErrorDetails

from llama_peft.recipe.checks import Fault
from llama_peft.recipe.model_sections import section_of
from llama_peft.recipe.schema import fields
from llama_peft.recipe.strict_yaml import KeyPath

_TYPE_NAMES: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
}
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "model.model_name_or_path": ("model", "model_name", "model_id", "base_model", "name", "path"),
    "model.dtype": ("torch_dtype", "precision"),
    "model.attn_implementation": ("attention", "attn"),
    "quantization.bnb_4bit_quant_type": ("quant_type",),
    "quantization.bnb_4bit_use_double_quant": ("double_quant", "use_double_quant"),
    "quantization.bnb_4bit_compute_dtype": ("compute_dtype",),
    "lora.r": ("rank", "lora_r", "lora_rank"),
    "lora.lora_alpha": ("alpha",),
    "lora.lora_dropout": ("dropout",),
    "lora.target_modules": ("targets", "modules", "lora_target_modules"),
    "lora.use_dora": ("dora",),
    "lora.use_rslora": ("rslora",),
    "dataset.path": ("dataset", "dataset_name", "data", "file"),
    "dataset.name": ("config", "config_name", "subset"),
    "dataset.labels": ("classes", "label_names"),
    "dataset.validation_size": ("val_size", "dev_size"),
    "dataset.parts": ("split", "splits", "files"),
    "dataset.parts.validation": ("val", "valid"),
    "prompt.system": ("system_prompt", "system_message"),
    "train.num_train_epochs": ("epochs", "num_epochs"),
    "train.max_steps": ("steps", "num_steps"),
    "train.learning_rate": ("lr",),
    "train.per_device_train_batch_size": ("batch_size", "train_batch_size", "micro_batch_size"),
    "train.per_device_eval_batch_size": ("eval_batch_size",),
    "train.gradient_accumulation_steps": ("gradient_accumulation", "grad_accum"),
    "train.warmup_steps": ("warmup_ratio", "warmup"),
    "train.lr_scheduler_type": ("scheduler", "lr_scheduler"),
    "train.max_grad_norm": ("gradient_clipping", "grad_clip"),
    "train.optim": ("optimizer",),
    "train.class_weights": ("class_weight", "label_weights", "weights"),
    "train.pos_weight": ("pos_weights", "positive_weight"),
    "train.max_length": ("max_seq_length", "max_seq_len", "seq_length", "model_max_length"),
    "train.activation_checkpointing": ("gradient_checkpointing",),
    "train.early_stopping_patience": ("early_stopping", "patience"),
    "train.use_cpu": ("no_cuda", "cpu"),
    "eval.num_fewshot": ("fewshot", "shots", "num_shots"),
    "eval.max_new_tokens": ("max_tokens",),
    "hub.hub_model_id": ("model_id", "repo_id", "repo"),
    "hub.hub_private_repo": ("private",),
    "hub.push_to_hub": ("push",),
}
"""Names that other libraries use, or used before, for a key of ours."""


def report_lines(faults: Sequence[Fault], places: Mapping[KeyPath, str]) -> list[str]:
    """Return one line for each fault, in the order of the file: place, key, what is wrong."""
    numbered = []
    for fault in faults:
        path = fault.paths[0]
        above = (path[:end] for end in range(len(path), 0, -1))
        place = next((places[key] for key in above if key in places), "")
        line = re.match(r"line (\d+): ", place)
        text = f"{place}{'.'.join(path)}: {fault.message}"
        numbered.append((int(line[1]) if line else 10**6, text))
    return [text for _, text in sorted(numbered)]


def of_pydantic(detail: ErrorDetails, path: KeyPath, values: Mapping[str, object]) -> str:
    """Return our words for one refusal of pydantic."""
    if detail["type"] == "extra_forbidden":
        return f"unknown key; {_meant_key(path)}"
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    field = fields()[path]
    expected = describe(field.annotation, field.metadata)
    if detail["type"] == "missing":
        return f"missing: it must be {expected}"
    value: object = values
    for part in path:
        assert isinstance(value, Mapping), "pydantic found the key in it"
        value = value[part]
    return f"must be {expected}, not {_shown(value)}{_meant_value(field.annotation, value)}"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _meant_value(annotation: object, value: object) -> str:
    names = [name for name in get_args(annotation) if isinstance(name, str)]
    near = difflib.get_close_matches(value, names, n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]}?" if near else ""


def _meant_key(path: KeyPath) -> str:
    """Return which key an unknown key probably means, or else the keys of its section."""
    here = [key for key in fields() if key[:-1] == path[:-1]]
    names = next((keys for keys in _candidates(path, here) if keys), None)
    if names is not None:
        return f"did you mean {either(['.'.join(key) for key in names])}?"
    return f"valid here: {', '.join(key[-1] for key in here)}"


def _candidates(path: KeyPath, here: Sequence[KeyPath]) -> Iterator[list[KeyPath]]:
    """Yield the keys that may be meant, the surest first.

    A name that is only similar to a key of another section is never suggested: it is a guess.
    """
    name = path[-1]
    known_as = [tuple(key.split(".")) for key, others in OTHER_NAMES.items() if name in others]
    yield [key for key in known_as if key in here]
    yield [key for key in fields() if key[-1] == name]
    yield known_as
    yield [(*path[:-1], near) for near in difflib.get_close_matches(name, [k[-1] for k in here], 1)]


def either(names: Sequence[str]) -> str:
    """Return "a", "a or b" or "a, b or c"."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def describe(annotation: object, metadata: Sequence[object] = ()) -> str:
    """Return what a key may hold: the words in its metadata, or else words for its type."""
    for item in metadata:
        if isinstance(item, str):
            return item
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        return either([describe(argument) for argument in arguments])
    if origin is Literal:
        names = [item if isinstance(item, str) else json.dumps(item) for item in arguments]
        return f"one of {', '.join(names)}" if names[1:] else names[0]
    if origin is list:
        return f"a list in which each item is {describe(arguments[0])}"
    if origin is dict:
        return f"a mapping in which each value is {describe(arguments[1])}"
    if section_of(annotation):
        return "a section of keys"
    return _TYPE_NAMES[annotation]
