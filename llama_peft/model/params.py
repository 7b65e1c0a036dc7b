"""What `llama-peft params` reports: counts of a recipe or a model, without torch, in a second."""

import json
from pathlib import Path
from typing import Any

from llama_peft import tiny
from llama_peft.errors import UserError
from llama_peft.model import counts
from llama_peft.recipe import Recipe, is_recipe_name, load_recipe
from llama_peft.tasks import TASKS


def report(recipe_or_model: str, overrides: list[str]) -> dict[str, int | str]:
    """Parameters by name: the base, with each head, what 4-bit packs, and for a recipe its adapter and what trains."""
    if not is_recipe_name(recipe_or_model):
        if overrides:
            raise UserError("overrides are for recipes; a model has no keys to override")
        config = read_config(recipe_or_model)
        return _heads(recipe_or_model, config)
    recipe = load_recipe(recipe_or_model, overrides)
    config = read_config(recipe.model.model_name_or_path, recipe.model.revision)
    return {**_heads(recipe.model.model_name_or_path, config), **_trained(recipe, config)}


def _heads(name: str, config: dict[str, Any]) -> dict[str, int | str]:
    base = _count(config)
    return {
        "model": name,
        "base": base.base,
        **{kind.name: _count(config, kind.name).total for kind in TASKS.values() if kind.head},
        "quantized_in_4bit": base.quantized,
    }


def _trained(recipe: Recipe, config: dict[str, Any]) -> dict[str, int | str]:
    layer = recipe.head.layer
    if isinstance(layer, int) and layer > 0:  # the blocks above are never loaded
        config = {**config, "num_hidden_layers": layer}
    lora = None if recipe.lora is None else recipe.lora.peft_kwargs()
    counted = _count(config, recipe.task, len(recipe.dataset.labels or "ab"), lora)
    labels = len(recipe.dataset.labels or ())
    classes = {"labels": labels or "2, assumed: dataset.labels names none"}
    return {
        "task": recipe.task,
        **(classes if recipe.kind.has_labels else {}),
        "head": counted.head,
        "adapter": counted.adapter,
        "trainable": counted.trainable,
        "total": counted.total,
    }


def _count(config: dict[str, Any], *arguments: Any) -> counts.Counts:
    try:
        return counts.count(config, *arguments)
    except counts.UncountedFamily as error:
        known = ", ".join(counts.FAMILIES)
        raise UserError(f"{error}; counted from the config are {known}") from None
    except counts.BadConfig as error:
        raise UserError(f"config.json: {error}") from None


def read_config(name: str, revision: str = "main") -> dict[str, Any]:
    """A model's config.json. Raises UserError where there is none to be had."""
    if name == "tiny":
        name = str(tiny.MODEL_DIR)
    path = Path(name)
    if path.is_dir():
        file = path / "config.json"
    else:
        from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
        from huggingface_hub.utils import httpx

        try:
            if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
                HfApi().model_info(
                    name, revision=revision, timeout=10
                )  # a download tries for half a minute
            file = Path(hf_hub_download(name, "config.json", revision=revision))
        except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
            raise UserError(
                f"{name}: no such folder, and no config.json from the Hub "
                f"({str(error).strip().splitlines()[0]}); gated models need `hf auth login`"
            ) from None
    try:
        config: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable as a model's config: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{file}: not readable as a model's config: it holds no names and values")
    return config
