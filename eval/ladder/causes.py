"""Why a training may have learned too little: what its loss curve and its data say, and what to try."""

import json
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from pydantic import ConfigDict

from llama_peft.recipe import Recipe, load_recipe
from llama_peft.run_folder.layout import HISTORY, RECIPE
from llama_peft.run_folder.record import Stored
from llama_peft.system.files import read_text

from ..results import SystemResults

_STILL_FALLING = 0.97
"""The loss still falls if that of the last fifth is below this share of that of the fifth before."""
_WORTH = 0.005
"""... and if what it fell by then is at least this share of the loss of the first fifth: a loss that has
reached zero may halve for ever.
"""
_RISEN = 1.05
"""Validation has risen if the last loss is above this multiple of the best one."""
_UNEVEN = 0.8
"""The share of the commonest label above which labels are very uneven."""


class Cause(NamedTuple):
    """What probably went wrong, and the one override to try."""

    why: str
    override: str


class _Entry(Stored):
    """A line of history.jsonl."""

    model_config = ConfigDict(strict=False)

    step: int = 0
    epoch: float | None = None
    loss: float | None = None
    eval_loss: float | None = None


def cause_of(run: Path, system: SystemResults) -> Cause | None:
    """Return the likeliest cause of a low score; None if the curve shows none."""
    recipe = load_recipe(run / RECIPE)
    entries = _history(run)
    return _too_short(recipe, entries) or _too_long(entries) or _uneven(recipe, system)


def _history(run: Path) -> list[_Entry]:
    try:
        lines = read_text(run, HISTORY).splitlines()
        return [_Entry.model_validate(json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError):
        return []


def _too_short(recipe: Recipe, entries: list[_Entry]) -> Cause | None:
    """Whether the loss was still falling when the training ended."""
    losses = [one.loss for one in entries if one.loss is not None]
    fifth = len(losses) // 5
    if fifth < 1:
        steps = max((one.step for one in entries), default=0)
        if not 0 < steps < 50:
            return None
        return Cause(f"the training had only {steps} steps", _longer(recipe, 4))
    last, before = fmean(losses[-fifth:]), fmean(losses[-2 * fifth : -fifth])
    fell = before - last >= max((1 - _STILL_FALLING) * before, _WORTH * fmean(losses[:fifth]))
    if not fell or _validation_rose(entries):
        return None
    return Cause("the loss was still falling when the training ended", _longer(recipe, 2))


def _longer(recipe: Recipe, times: int) -> str:
    train = recipe.train
    if train.max_steps > 0:
        return f"train.max_steps={times * train.max_steps}"
    return f"train.num_train_epochs={times * train.num_train_epochs:g}"


def _validation_rose(entries: list[_Entry]) -> bool:
    losses = [one.eval_loss for one in entries if one.eval_loss is not None]
    return len(losses) > 1 and losses[-1] > _RISEN * min(losses)


def _too_long(entries: list[_Entry]) -> Cause | None:
    """Whether the loss on validation rose again long before the end."""
    known = [one for one in entries if one.eval_loss is not None and one.epoch]
    if not _validation_rose(entries) or not known:
        return None
    best = min(known, key=lambda one: one.eval_loss or 0.0)
    epochs = f"{best.epoch:.3g} epoch{'' if best.epoch == 1 else 's'}"
    why = f"the loss on validation rose again after {epochs}"
    return Cause(why, f"train.num_train_epochs={best.epoch:.3g}")


def _uneven(recipe: Recipe, system: SystemResults) -> Cause | None:
    """Whether one label is so common that always saying it is nearly right."""
    counts = Counter(system.gold_labels.values())
    if not counts or recipe.train.class_weights is not None:
        return None
    label, count = counts.most_common(1)[0]
    share = count / sum(counts.values())
    if share < _UNEVEN:
        return None
    why = f"{share:.0%} of the examples are {label!r}, and the loss weighs every example alike"
    return Cause(why, "train.class_weights=balanced")
