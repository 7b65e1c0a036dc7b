"""The trained weights of a run: written once training ends, and loaded back onto the base."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llama_peft.errors import UserError
from llama_peft.model import backbone, bounds, lora, preflight
from llama_peft.model.fingerprint import base_fingerprint
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import (
    ADAPTER,
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    ADAPTER_WEIGHTS,
    DATA_SUMS,
    HEAD,
    RECIPE,
    SPLIT,
)
from llama_peft.run_folder.record import TrainingRecord, write_record
from llama_peft.run_folder.run import Run
from llama_peft.system import files
from llama_peft.system.numbers import check_finite
from llama_peft.system.seal import damaged, file_sums
from llama_peft.tasks import LANGUAGE_MODELLING
from llama_peft.tokens.prompts import PromptEncoder

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class TunedModel:
    """A base with a trained head or adapter, ready to predict."""

    recipe: Recipe
    labels: tuple[str, ...]
    """The names of labels 0, 1, ...; empty for questions."""
    model: "PreTrainedModel"
    encoder: PromptEncoder


def save_weights(
    model: "nn.Module",
    recipe: Recipe,
    folder: Path,
    record: Callable[[dict[str, str]], TrainingRecord],
) -> TrainingRecord:
    """Export a trained model as `adapter/` in PEFT's layout or as `head.safetensors`, and seal it
    with training.json.

    record: makes the record of the training from the sums of the exported files.
    """
    check_finite(
        _trained(model, recipe),
        f"{folder}: nothing is exported, because the trained weights are not numbers",
        "lower train.learning_rate, and train again with --fresh",
    )
    save = _save_head if recipe.lora is None else _save_adapter
    exported = save(model, recipe, folder)
    sealed = [*exported, *(folder / name for name in (RECIPE, SPLIT, DATA_SUMS))]
    written = record(file_sums(folder, sealed))
    write_record(folder, written)
    return written


def _trained(model: "nn.Module", recipe: Recipe) -> "Mapping[str, Tensor]":
    """The tensors that a run exports."""
    from peft import get_peft_model_state_dict

    if recipe.lora is None:
        state: Mapping[str, Tensor] = getattr(model, str(recipe.kind.head)).state_dict()
    else:
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def _save_adapter(model: "nn.Module", recipe: Recipe, folder: Path) -> list[Path]:
    with files.scratch(folder) as scratch:
        # Saving embedding layers "auto" would ask the Hub for the base's vocabulary.
        model.save_pretrained(scratch, safe_serialization=True, save_embedding_layers=False)
        _name_base(scratch, recipe)
        # Not PEFT's own card, which lacks our numbers. The record of the training is written later,
        # so after a kill between the two moves the adapter is exported again.
        files.move(folder, ADAPTER_FILES, scratch.name, ADAPTER)
    return [folder / ADAPTER / name for name in ADAPTER_FILES]


def _name_base(folder: Path, recipe: Recipe) -> None:
    """Write the base as the recipe names it: PEFT writes the folder that it loaded the base from."""
    config = json.loads(files.read_text(folder, ADAPTER_CONFIG))
    config["base_model_name_or_path"] = recipe.model.model_name_or_path
    files.write_text(folder, ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True))


def _save_head(model: "nn.Module", recipe: Recipe, folder: Path) -> list[Path]:
    from safetensors.torch import save_file

    name = str(recipe.kind.head)
    state = getattr(model, name).state_dict()
    tensors = {f"{name}.{key}": value.detach().cpu().contiguous() for key, value in state.items()}
    with files.new_file(folder, HEAD) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    return [folder / HEAD]


def load_tuned(run: Run, full_precision: bool = False) -> TunedModel:
    """Load the base of a run as its recipe says, or in float32, and put the exported weights on it.

    Raises UserError if the base at hand is not the one that the run was trained on.
    """
    recipe = run.recipe.in_float32() if full_precision else run.recipe
    preflight.check_named(recipe, False, run.folder)
    found = base_fingerprint(recipe)
    if found != run.record.base_fingerprint:
        raise UserError(
            f"{run.folder}: this run was trained on another {recipe.model.model_name_or_path} "
            f"({run.record.base_fingerprint}) than the one that is here now ({found})"
        )
    model = backbone.load(recipe, recipe.kind.name, len(run.labels))
    try:
        if recipe.lora is not None:
            model = attach_adapter(model, run.adapter)
        else:
            attach_head(model, run.folder / HEAD, str(recipe.kind.head))
    finally:
        _check_unchanged(run)
    encoder = PromptEncoder(backbone.load_tokenizer(recipe.model), recipe.prompt)
    return TunedModel(recipe=recipe, labels=run.labels, model=model.eval(), encoder=encoder)


def _check_unchanged(run: Run) -> None:
    """Raise UserError if the weights that were just loaded are not those of the opened run."""
    weights = (*ADAPTER_FILES, HEAD)
    sums = {name: its for name, its in run.record.files.items() if Path(name).name in weights}
    try:
        unchanged = not damaged(run.folder, sums)
    except (OSError, UserError):
        unchanged = False
    if not unchanged:
        raise UserError(
            f"{run.folder}: this run is being trained again, or was just now; use it when the "
            "training has ended"
        )


def attach_adapter(model: "PreTrainedModel", folder: Path) -> "PeftModel":
    """The base with the adapter of a folder.

    Raises UserError unless the file and the base have the same tensors: PEFT loads an adapter of
    another depth without a warning.
    """
    from peft import LoraConfig, PeftConfig, PeftModel, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    missing = [name for name in ADAPTER_FILES if not files.is_file(folder, name)]
    if missing:
        pickled = (folder / "adapter_model.bin").exists()
        why = "pickled adapters are not loaded" if pickled else "the run may be in training again"
        raise UserError(f"{folder}: {missing[0]} is missing; {why}")
    bounds.check_numbers(folder, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if type(config) is not LoraConfig:
            raise UserError(f"{folder}: this is not a LoRA adapter")
        lora.check_adapter(model, config, str(folder / ADAPTER_CONFIG))
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    except (
        RuntimeError,
        LookupError,
        ImportError,
        AttributeError,
        TypeError,
        ValueError,
        SafetensorError,
    ) as error:  # PEFT raises many errors for an adapter of another base
        lines = str(error).strip().splitlines()
        reason = lines[-1].strip() if lines else "it is damaged"
        raise UserError(f"{folder}: this adapter does not fit the base: {reason}") from None
    _check_tensors(adapted, folder)
    if lora.widen_saved(adapted):  # PEFT has just rounded them to the type of the base
        set_peft_model_state_dict(adapted, load_file(files.inside(folder, ADAPTER_WEIGHTS)))
    return adapted


def attach_below_head(model: "PreTrainedModel", run: Run) -> "PeftModel":
    """A causal model with a run's adapter, but without the run's own head.

    Blocks above the one that the head reads have no adapter. Raises UserError if the adapter changes
    the base itself (`lora.init_lora_weights: pissa` and its like).
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    settings, head = run.recipe.lora, run.recipe.kind.head
    if settings is None or not isinstance(settings.init_lora_weights, bool):
        raise UserError(f"{run.folder}: its adapter cannot be put on the base without the head")
    if head is None:
        return attach_adapter(model, run.adapter)
    adapted = lora.add_lora(model, settings, LANGUAGE_MODELLING, run.recipe)
    held = load_file(files.inside(run.adapter, ADAPTER_WEIGHTS))
    state = {name: value for name, value in held.items() if f".{head}." not in name}
    unknown = set_peft_model_state_dict(adapted, state).unexpected_keys
    if unknown:
        raise UserError(f"{run.adapter}: the base has no place for {unknown[0]}")
    return adapted.eval()


def replace_weights(tuned: TunedModel, run: Run) -> TunedModel:
    """The same base with the weights of another run of the same shape. The first model cannot be
    used afterwards.

    The old weights become NaN first, so that every score comes from the new files or is NaN.
    """
    recipe, model = run.recipe, tuned.model
    if recipe.lora is None:
        head = getattr(model, str(recipe.kind.head))
        _erase(head.state_dict())
        attach_head(model, run.folder / HEAD, str(recipe.kind.head))
    else:
        _replace_adapter(model, run.adapter)
    return TunedModel(recipe=recipe, labels=run.labels, model=model, encoder=tuned.encoder)


def _replace_adapter(model: "PeftModel", folder: Path) -> None:
    from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    bounds.check_numbers(folder, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    if _settings(PeftConfig.from_pretrained(str(folder))) != _settings(model.active_peft_config):
        raise UserError(f"{folder / ADAPTER_CONFIG}: the settings of this adapter are different")
    _check_tensors(model, folder)
    _erase(get_peft_model_state_dict(model, save_embedding_layers=False))
    set_peft_model_state_dict(model, load_file(files.inside(folder, ADAPTER_WEIGHTS)))


def _settings(config: "PeftConfig") -> dict[str, object]:
    """The settings of an adapter that change its scores."""
    unused = {"revision", "base_model_name_or_path", "inference_mode", "modules_to_save"}
    kept = {key: value for key, value in config.to_dict().items() if key not in unused}
    # PEFT lists the head again each time that it reads the config.
    return {**kept, "modules_to_save": set(config.modules_to_save or ())}


def _erase(tensors: "Mapping[str, Tensor]") -> None:
    for tensor in tensors.values():
        tensor.data.fill_(float("nan"))


def _check_tensors(model: "PeftModel", folder: Path) -> None:
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    places: Mapping[str, tuple[int, ...]] = {key: tuple(v.shape) for key, v in state.items()}
    with safe_open(files.inside(folder, ADAPTER_WEIGHTS), "pt") as file:
        held = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    if places != held:
        odd = sorted(set(places.items()) ^ set(held.items()))[0][0]
        raise UserError(f"{folder}: this adapter does not fit the base; it first differs at {odd}")


def attach_head(model: "PreTrainedModel", path: Path, name: str) -> None:
    """Put the weights of a file into the model's head. Raises UserError if they have another shape."""
    from safetensors.torch import load_file

    tensors = load_file(files.inside(path.parent, path.name))
    state = {key.removeprefix(f"{name}."): value for key, value in tensors.items()}
    check_finite(state, f"{path}: its weights are not numbers", "use another copy of it")
    try:
        getattr(model, name).load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: this head does not fit the base: {reason}") from None
