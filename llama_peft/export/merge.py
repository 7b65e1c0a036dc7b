"""A run as one whole model: its adapter merged into the base's full-precision weights, for tools that know no adapters.

The 4-bit weights are never merged into: rounding them again would lose most of what the adapter learned. The base is loaded
anew in float32, merged there, and written in the type that its checkpoint has; what was written is loaded back by plain
transformers and held against the unmerged model.
"""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.run_folder.run import Run, open_run
from llama_peft.run_folder.self_check import Scores, sample_scores
from llama_peft.run_folder.weights import TunedModel, load_tuned
from llama_peft.system.disk import disk_trouble

log = logging.getLogger(__name__)

_TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
"""How far a score may be from the unmerged model's, relative to the largest: what rounding to the type can cost."""


def merge(run: Path, output: Path) -> float:
    """Write the merged model and its tokenizer; returns the largest relative difference of its scores from the unmerged ones.

    Raises UserError if there is nothing to merge, or if the merged model gives other scores; then nothing is left.
    """
    opened = open_run(run)
    _refuse(opened, output)
    loaded = load_tuned(opened, full_precision=True)
    expected = sample_scores(loaded)
    dtype = _stored_dtype(loaded.recipe)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(loaded, partial, dtype)
        difference = _relative_difference(_reloaded(loaded, partial), expected)
        if not difference <= _TOLERANCE[dtype]:
            raise UserError(
                f"{run}: the merged model gives other scores (largest relative difference: {difference:.2g}), "
                "so nothing is written"
            )
        partial.rename(output)
    except Exception as error:
        reason = disk_trouble(error)
        if reason is None:
            raise
        raise UserError(
            f"{output}: this folder cannot be written: {reason}; make room, or name another --output"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("merged in float32 and written in %s", dtype)
    return difference


def _refuse(run: Run, output: Path) -> None:
    recipe = run.recipe
    reason = ""
    if output.exists():
        reason = f"{output} is there already; name a new folder"
    elif recipe.lora is None:
        reason = "it is a head alone, its base is untouched: there is nothing to merge"
    elif recipe.lora.lora_bias:
        reason = "its adapter has biases (lora.lora_bias), and the base has none to add them to"
    elif recipe.task == "extractive_qa":
        reason = "a span head's scores need the reading of llama_peft, so no other tool could use the merged model"
    elif recipe.kind.has_labels and recipe.head.pooling == "mean":
        reason = "its head reads the mean over all tokens, and every other tool would give it the last one"
    if reason:
        raise UserError(f"{run.folder} cannot be merged: {reason}")


def _stored_dtype(recipe: Recipe) -> str:
    """The type of the base's checkpoint."""
    stored = str(getattr(backbone.load_config(recipe.model), "dtype", None))
    name = stored.removeprefix("torch.")
    return name if name in _TOLERANCE else "float32"


def _write(loaded: TunedModel, folder: Path, dtype: str) -> None:
    """Merge in place and save as the family's own class, head included, beside the base's own tokenizer."""
    import torch
    from transformers import AutoTokenizer

    adapted: Any = loaded.model
    whole = adapted.merge_and_unload()
    if loaded.recipe.kind.has_labels:
        whole.config.id2label = dict(enumerate(loaded.labels))
        whole.config.label2id = {label: number for number, label in enumerate(loaded.labels)}
        del whole.config.head_pooling  # a setting of ours; the last token is what every class reads
    whole.to(getattr(torch, dtype)).save_pretrained(folder)
    model = loaded.recipe.model
    AutoTokenizer.from_pretrained(
        backbone.source(model), revision=model.revision, trust_remote_code=False
    ).save_pretrained(folder)


def _reloaded(loaded: TunedModel, folder: Path) -> TunedModel:
    """The run with the model that plain transformers makes of the folder, in float32."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    causal = loaded.recipe.kind.head is None
    auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    place = loaded.model.device
    model, info = auto.from_pretrained(folder, dtype="float32", output_loading_info=True)
    backbone.check_loading(str(folder), info, None)
    return replace(loaded, model=model.to(place).eval())


def _relative_difference(found: TunedModel, expected: Scores) -> float:
    """The largest difference of a score, relative to the largest score."""
    rows = zip(sample_scores(found), expected, strict=True)
    differences = [abs(a - b) for row, other in rows for a, b in zip(row, other, strict=True)]
    return max(differences) / max(abs(score) for row in expected for score in row)
