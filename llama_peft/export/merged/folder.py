"""Merges a run's adapter into its base in full precision, for tools that cannot load adapters.

The adapter is never merged into 4-bit weights: rounding them again would lose most of what it
learned. The base is loaded in float32, merged there, and written in the precision of its
checkpoint. Then transformers alone loads the written model, whose scores must be those of the
unmerged one.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.run_folder.run import Run, open_run
from llama_peft.run_folder.self_check import Scores, sample_scores
from llama_peft.run_folder.weights import TunedModel, load_tuned
from llama_peft.system.disk import disk_trouble
from llama_peft.system.files import new_folder

log = logging.getLogger(__name__)

_TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
"""The largest relative difference from the unmerged model's scores that rounding can cause."""


def merge(run: Path, output: Path, base: str | None = None) -> float:
    """Write the merged model and its tokenizer. Returns the largest relative difference of its
    scores from the unmerged ones.

    Raises UserError if there is nothing to merge, or if the merged model gives other scores; then
    nothing is written.
    """
    opened = open_run(run, base)
    _check_mergeable(opened, output)
    loaded = load_tuned(opened, full_precision=True)
    expected = sample_scores(loaded)
    dtype = _stored_dtype(loaded.recipe)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(output.parent, output.name) as partial:
            _write(loaded, partial, dtype)
            difference = _relative_difference(_reloaded(loaded, partial), expected)
            if not difference <= _TOLERANCE[dtype]:
                raise UserError(
                    f"{run}: the merged model gives other scores (largest relative difference: "
                    f"{difference:.2g}), so nothing is written"
                )
    except Exception as error:
        reason = disk_trouble(error)
        if reason is None:
            raise
        raise UserError(
            f"{output}: this folder cannot be written: {reason}; make room, or name another "
            "--output"
        ) from error
    log.info("merged in float32 and written in %s", dtype)
    return difference


def _check_mergeable(run: Run, output: Path) -> None:
    """Raise UserError if the merged model would not give the scores of the run in other tools."""
    recipe = run.recipe
    reason = ""
    if os.path.lexists(output):
        reason = f"{output} exists already; name a new folder with --output"
    elif recipe.lora is None:
        reason = "it is a head alone, which did not change the base, so there is nothing to merge"
    elif recipe.lora.lora_bias:
        reason = "its adapter has biases (lora.lora_bias), but the base has none to add them to"
    elif recipe.kind.finds_spans:
        reason = "it has a span head, whose scores only llama_peft can read"
    elif recipe.kind.has_labels and recipe.head.pooling == "mean":
        reason = "its head reads the mean over all tokens; other tools would give it the last token"
    if reason:
        raise UserError(f"{run.folder}: this run cannot be merged: {reason}")


def _stored_dtype(recipe: Recipe) -> str:
    """The precision of the base's checkpoint."""
    stored = str(getattr(backbone.load_config(recipe.model), "dtype", None))
    name = stored.removeprefix("torch.")
    return name if name in _TOLERANCE else "float32"


def _write(loaded: TunedModel, folder: Path, dtype: str) -> None:
    """Merge in place, and save the model with its head, beside the tokenizer of the base."""
    import torch
    from transformers import AutoTokenizer

    whole = loaded.model.merge_and_unload()
    if loaded.recipe.kind.names_labels:
        whole.config.id2label = dict(enumerate(loaded.labels))
        whole.config.label2id = {label: number for number, label in enumerate(loaded.labels)}
    if loaded.recipe.kind.has_labels:
        del whole.config.head_pooling  # our own setting; every other tool reads the last token
    whole.to(getattr(torch, dtype)).save_pretrained(folder)
    model = loaded.recipe.model
    AutoTokenizer.from_pretrained(
        backbone.source(model), revision=model.revision, trust_remote_code=False
    ).save_pretrained(folder)


def _reloaded(loaded: TunedModel, folder: Path) -> TunedModel:
    """The run with the model that transformers alone loads from the folder, in float32."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    causal = loaded.recipe.kind.head is None
    auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    place = loaded.model.device
    model, info = auto.from_pretrained(folder, dtype="float32", output_loading_info=True)
    backbone.check_loading(str(folder), info, None)
    return replace(loaded, model=model.to(place).eval())


def _relative_difference(found: TunedModel, expected: Scores) -> float:
    """The largest difference from the expected scores, relative to the largest of them."""
    rows = zip(sample_scores(found), expected, strict=True)
    differences = [abs(a - b) for row, other in rows for a, b in zip(row, other, strict=True)]
    return max(differences) / max(abs(score) for row in expected for score in row)
