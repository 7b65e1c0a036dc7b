"""Adds LoRA beside the frozen base, and counts the parameters of a loaded model."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from llama_peft.errors import UserError
from llama_peft.model import bounds, counts
from llama_peft.model.backbone import first_line
from llama_peft.recipe import Lora, Recipe
from llama_peft.tasks import TASKS, Task

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

Values = TypeVar("Values")

_HEADS = tuple(kind.head for kind in TASKS.values() if kind.head)


class LiveCounts(NamedTuple):
    """Parameters of a loaded model: all of them, and those that train."""

    total: int
    trainable: int


def add_lora(model: "PreTrainedModel", lora: Lora, task: Task, recipe: Recipe) -> "PeftModel":
    """Return the model with LoRA in float32 and a trainable copy of its head (`modules_to_save`).

    Raises UserError if a target names no linear layer of the backbone; PEFT reports this only if no
    target matches.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    check_targets(model, lora)
    # The task type only names the class that loads the adapter; the head is in modules_to_save.
    task_type = TaskType(TASKS[task].peft_task_type)
    keys = _peft_keys(lora, TASKS[task].head, _outside_text(model))
    try:
        adapted = get_peft_model(
            model,
            LoraConfig(task_type=task_type, revision=recipe.model.revision, **keys),
            autocast_adapter_dtype=True,
        )
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        ImportError,
        re.error,
    ) as error:
        # PEFT checks its keys against a base only now, each key in its own way.
        raise UserError(f"lora: PEFT cannot put this on the base: {first_line(error)}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    widen_saved(adapted)
    _leave_casts_to_autocast(adapted)
    return adapted


def _leave_casts_to_autocast(adapted: "PeftModel") -> None:
    """Keep adapters from widening their inputs to float32 where autocast narrows them again.

    On a base that is not packed PEFT does so in every layer, and the backward pass would keep those
    copies. The bits are the same. Without autocast an adapter in float32 needs its input so.
    """
    from peft.tuners.lora import LoraLayer

    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module._cast_input_dtype = partial(_unless_autocast, module._cast_input_dtype)
            if any(
                module.use_dora.values()
            ):  # its sums are float32, and so would be all that follows
                module.register_forward_hook(lambda _, args, output: output.to(args[0].dtype))


def _unless_autocast(
    cast: "Callable[[torch.Tensor, torch.dtype], torch.Tensor]",
    given: "torch.Tensor",
    dtype: "torch.dtype",
) -> "torch.Tensor":
    import torch

    return given if torch.is_autocast_enabled(given.device.type) else cast(given, dtype)


def widen_saved(adapted: "PeftModel") -> bool:
    """Make what trains whole (`modules_to_save`) compute in float32 on a base of a narrower type.

    Its input is widened, and its output gets the type of the base again, which the next layer reads.
    The heads do so themselves. Returns whether there is such a module.
    """
    import torch
    from peft.utils import ModulesToSaveWrapper

    found = False
    for name, module in adapted.named_modules():
        if not isinstance(module, ModulesToSaveWrapper) or name.endswith(_HEADS):
            continue
        narrow = next(module.original_module.parameters()).dtype
        if narrow == torch.float32:
            continue

        for copy in module.modules_to_save.values():
            copy.float().register_forward_pre_hook(
                lambda _, args, kwargs: _cast((args, kwargs), torch.float32), with_kwargs=True
            )
            copy.register_forward_hook(lambda _, __, output, to=narrow: _cast(output, to))
            found = True
    return found


def _cast(values: "Values", dtype: "torch.dtype") -> "Values":
    """Return tensors, or tuples and dicts of them, with all that are not integers in a type."""
    import torch
    from torch.utils._pytree import tree_map_only

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    found: Values = tree_map_only(torch.Tensor, cast, values)
    return found


def _peft_keys(lora: Lora, head: str | None, outside: str | None) -> dict[str, object]:
    """Return the keys of LoraConfig; a head trains whole and gets no LoRA.

    outside: from `_outside_text`.
    """
    keys = lora.peft_kwargs()
    excluded = lora.exclude_modules or []
    if head is not None:
        keys["modules_to_save"] = [*(lora.modules_to_save or []), head]
        if lora.target_modules == "all-linear":  # this would put LoRA on the head as well
            excluded = _with_names(excluded, [head])
    if outside is not None:
        excluded = f"({_with_names(excluded, [], whole=True)})|{outside}" if excluded else outside
    keys["exclude_modules"] = excluded or None
    return keys


def _with_names(
    excluded: str | list[str], names: list[str], whole: bool = False
) -> str | list[str]:
    """Return what is excluded with more names: a list, or an expression if it is one or `whole`."""
    if isinstance(excluded, str):
        return "|".join([f"({excluded})", *(rf"(.*\.)?{name}" for name in names)])
    every = [*excluded, *names]
    return "|".join(rf"(.*\.)?{re.escape(name)}" for name in every) if whole else every


def _outside_text(model: "PreTrainedModel") -> str | None:
    """Return the expression of all modules outside the language model of a base that also sees.

    The layers of a vision tower have the same names, and read nothing here. None if a base has no
    other part.
    """
    own = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is own)
    inside = (f"{prefix}.", "lm_head", *_HEADS) if prefix else ("",)
    if all(name.startswith(inside) for name in _linear_names(model)):
        return None
    return rf"(?!{re.escape(prefix)}\.|lm_head$).*"


def _linear_names(model: "PreTrainedModel") -> list[str]:
    import torch

    modules = model.named_modules()
    return [name for name, module in modules if isinstance(module, torch.nn.Linear)]


def check_adapter(model: "PreTrainedModel", config: "LoraConfig", source: str) -> None:
    """Refuse settings of a stranger's adapter with which PEFT would work for ever.

    Raises UserError; `source` starts its message.
    """
    bounds.check_patterns(config.to_dict(), _module_names(model), f"{source}: ")
    for key in ("layer_replication", "monteclora_config", "arrow_config"):
        if getattr(config, key):
            raise UserError(f"{source}: adapters with {key} are not loaded")
    rounds = str(config.init_lora_weights).partition("_niter_")[2]  # pissa_niter_16
    if len(rounds) > len("999") or config.init_lora_weights == "loftq":
        raise UserError(
            f"{source}: init_lora_weights: {str(config.init_lora_weights)[:40]!r} computes the first "
            "weights again for too long: set it to true, because the file replaces them"
        )


def _module_names(model: "PreTrainedModel") -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def check_targets(model: "PreTrainedModel", lora: Lora) -> None:
    """Refuse each name or number in a recipe that matches nothing; PEFT ignores those."""
    modules, outside = _module_names(model), _outside_text(model)
    bounds.check_patterns(lora.model_dump(), modules, "lora.")
    _check_names(modules, lora)
    _check_nesting(modules, lora)
    _check_biases(model, lora)
    _check_layers(model, lora)
    linear = _linear_names(model)
    if outside is not None:
        linear = [name for name in linear if not re.fullmatch(outside, name)]
    targets = lora.target_modules
    for target in [targets] if isinstance(targets, str) else targets:
        wanted = target if target is targets else [target]
        if not any(counts.matches(name, wanted) for name in linear):
            known = sorted({name.split(".")[-1] for name in linear if ".layers." in name})
            raise UserError(
                f"lora.target_modules: {target!r} matches no linear layer of this model: "
                f"use {', '.join(known)}"
            )


def _check_names(modules: Sequence[str], lora: Lora) -> None:
    """Refuse names that no module ends with, and patterns that match no module."""
    excluded = [] if isinstance(lora.exclude_modules, str) else lora.exclude_modules or []
    for key, names in (
        ("modules_to_save", lora.modules_to_save or []),
        ("exclude_modules", excluded),
    ):
        for name in names:
            if not any(module.endswith(name) for module in modules):
                raise UserError(f"lora.{key}: this model has no module {name!r}: remove this name")
    for key, values in (
        ("rank_pattern", lora.rank_pattern),
        ("alpha_pattern", lora.alpha_pattern),
    ):
        for name in values:
            if not any(re.match(rf"(.*\.)?({name})$", module) for module in modules):
                raise UserError(f"lora.{key}: {name!r} matches no module of this model: remove it")


def _check_nesting(modules: Sequence[str], lora: Lora) -> None:
    """Refuse to save a module inside of another one: PEFT would keep two copies."""
    saved = [
        module
        for module in modules
        if any(module.endswith(name) for name in lora.modules_to_save or [])
    ]
    for module in saved:
        if any(module.startswith(f"{other}.") for other in saved):
            raise UserError(
                f"lora.modules_to_save: {module} is inside of another one of them: remove one"
            )


def _check_biases(model: "PreTrainedModel", lora: Lora) -> None:
    biases = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
    if lora.bias != "none" and any(".layers." in name for name in biases):
        raise UserError(
            f"lora.bias: {lora.bias} would change the base's own biases: set it to none"
        )


def _check_layers(model: "PreTrainedModel", lora: Lora) -> None:
    blocks = model.config.get_text_config().num_hidden_layers
    chosen = lora.layers_to_transform
    for layer in [chosen] if isinstance(chosen, int) else chosen or []:
        if layer >= blocks:
            raise UserError(
                f"lora.layers_to_transform: there is no block {layer}: "
                f"the last block of this model is {blocks - 1}"
            )


def live_counts(model: "PreTrainedModel", head: str | None) -> LiveCounts:
    """Return the parameters of a loaded model.

    Packed weights count by their true size, and a head that PEFT wraps counts once.
    """
    total = trainable = 0
    for name, parameter in model.named_parameters():
        if head and f"{head}.original_module." in name:
            continue  # PEFT keeps the untrained copy beside the trained one
        state = getattr(parameter, "quant_state", None)  # a byte holds two 4-bit weights
        size = parameter.numel() if state is None else state.shape.numel()
        total += size
        trainable += size if parameter.requires_grad else 0
    return LiveCounts(total, trainable)


def count_loaded(model: "PreTrainedModel", task: Task) -> counts.Counts:
    """Return the counts of a base that is about to train, with LoRA and head in place.

    Raises RuntimeError if they differ from those of its config: then something was loaded, wrapped
    or frozen in a wrong way.
    """
    labels = getattr(model.config, "num_labels", 2)
    live = live_counts(model, TASKS[task].head)
    try:
        expected = counts.count(model.config.to_dict(), task, labels)
    except counts.UncountedFamily:
        # Not from the mapping: GPT-2 names it n_embd, and Gemma 3 has it in its text config.
        hidden = model.config.get_text_config().hidden_size
        head = TASKS[task].head_size(hidden, labels)
        frozen = live.total - live.trainable
        expected = counts.Counts(base=frozen, backbone=frozen, head=head)
    counted = replace(expected, adapter=live.trainable - expected.head)
    if counted.total != live.total:
        raise RuntimeError(
            f"the loaded model has {live.total:,} parameters, but {counted.total:,} are expected"
        )
    return counted
