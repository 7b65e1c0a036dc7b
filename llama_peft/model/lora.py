"""LoRA beside the frozen base, and the parameters of a loaded model counted."""

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from llama_peft.errors import UserError
from llama_peft.model import counts
from llama_peft.model.backbone import first_line
from llama_peft.recipe import Lora, Recipe
from llama_peft.tasks import TASKS, Task

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def add_lora(model: "PreTrainedModel", lora: Lora, task: Task, recipe: Recipe) -> "PeftModel":
    """The model with LoRA in float32 and, in `modules_to_save`, a trainable copy of its head.

    Raises UserError where a target names no linear layer of the backbone: PEFT says nothing if another target matches.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    check_targets(model, lora)
    head = TASKS[task].head
    keys = lora.peft_kwargs()
    if head:
        keys["modules_to_save"] = [*(lora.modules_to_save or []), head]
        if lora.target_modules == "all-linear":  # would put LoRA on the head as well
            excluded = lora.exclude_modules or []
            if isinstance(excluded, str):
                keys["exclude_modules"] = f"({excluded})|(.*\\.)?{head}"
            else:
                keys["exclude_modules"] = [*excluded, head]
    # The task type only names the class that loads the adapter back; the head is already in modules_to_save.
    task_type = TaskType(TASKS[task].peft_task_type)
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
        # PEFT checks its keys against a base only now, each in its own way.
        raise UserError(f"lora: PEFT cannot put this on the base: {first_line(error)}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def check_targets(model: "PreTrainedModel", lora: Lora) -> None:
    """Refuse names and numbers that match nothing, each on its own: PEFT passes over them."""
    import torch

    _check_names(model, lora)

    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = lora.target_modules
    for target in [targets] if isinstance(targets, str) else targets:
        if not any(
            counts.matches(name, target if target is targets else [target]) for name in names
        ):
            known = sorted({name.split(".")[-1] for name in names if ".layers." in name})
            raise UserError(
                f"lora.target_modules: {target!r} matches no linear layer; this model has {', '.join(known)}"
            )


def _check_names(model: "PreTrainedModel", lora: Lora) -> None:
    modules = [name for name, _ in model.named_modules() if name]
    excluded = [] if isinstance(lora.exclude_modules, str) else lora.exclude_modules or []
    for key, names in (
        ("modules_to_save", lora.modules_to_save or []),
        ("exclude_modules", excluded),
    ):
        for name in names:
            if not any(module.endswith(name) for module in modules):
                raise UserError(f"lora.{key}: {name!r} is no module of this model")
    saved = [
        module
        for module in modules
        if any(module.endswith(name) for name in lora.modules_to_save or [])
    ]
    for module in saved:
        if any(module.startswith(f"{other}.") for other in saved):
            raise UserError(f"lora.modules_to_save: {module} stands within another one of them")
    biases = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
    if lora.bias != "none" and any(".layers." in name for name in biases):
        raise UserError(
            f"lora.bias: {lora.bias} would change the base's own biases: set it to none"
        )
    for key, patterns in (
        ("rank_pattern", lora.rank_pattern),
        ("alpha_pattern", lora.alpha_pattern),
    ):
        for name in patterns:
            if not any(re.match(rf"(.*\.)?({name})$", module) for module in modules):
                raise UserError(f"lora.{key}: {name!r} matches no module of this model")
    blocks = model.config.get_text_config().num_hidden_layers
    chosen = lora.layers_to_transform
    for layer in [chosen] if isinstance(chosen, int) else chosen or []:
        if layer >= blocks:
            raise UserError(
                f"lora.layers_to_transform: {layer} is beyond the model's last block, {blocks - 1}"
            )


def live_counts(model: "PreTrainedModel", head: str | None) -> tuple[int, int]:
    """(all, trainable) parameters of a loaded model: packed weights by their true size, a wrapped head once."""
    total = trainable = 0
    for name, parameter in model.named_parameters():
        if head and f"{head}.original_module." in name:
            continue  # PEFT keeps the untrained copy beside the trained one
        state = getattr(parameter, "quant_state", None)  # 4-bit weights hold two numbers a byte
        size = parameter.numel() if state is None else state.shape.numel()
        total += size
        trainable += size if parameter.requires_grad else 0
    return total, trainable


def count_loaded(model: "PreTrainedModel", task: Task) -> counts.Counts:
    """The counts of a base as it is about to train, LoRA and head in place, checked against the config's.

    Raises RuntimeError where they differ: something was loaded, wrapped or frozen other than meant.
    """

    config = model.config.to_dict()
    labels = getattr(model.config, "num_labels", 2)
    total, trainable = live_counts(model, TASKS[task].head)
    try:
        expected = counts.count(config, task, labels)
    except counts.UncountedFamily:
        # Not from the mapping: GPT-2 calls it n_embd, and Gemma 3's stands in the text model's own config.
        hidden = {"hidden_size": model.config.get_text_config().hidden_size}
        head = counts.head_size(hidden, task, labels)
        expected = counts.Counts(base=total - trainable, backbone=total - trainable, head=head)
    counted = replace(expected, adapter=trainable - expected.head)
    if counted.total != total:
        raise RuntimeError(f"counted {total:,} parameters, {counted.total:,} expected")
    return counted
