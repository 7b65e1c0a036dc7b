"""`head.layer: auto`: chooses the block whose states a head alone reads.

The validation loss of a linear probe decides. The states of a sample of rows, at every layer and
with every pooling, are computed in one pass. The run folder keeps the choice.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from llama_peft.errors import UserError
from llama_peft.features.cache import cache_folder, compute, sums_of
from llama_peft.features.states import Key
from llama_peft.recipe import Head, Recipe
from llama_peft.run_folder.layout import LAYER_CHOICE
from llama_peft.run_folder.record import Stored
from llama_peft.system.files import read_summed, write_summed
from llama_peft.training.features.head import States
from llama_peft.training.rows import ClassificationRow as Row

if TYPE_CHECKING:
    import numpy
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

POOLINGS: tuple[Literal["last", "mean"], ...] = ("last", "mean")
SAMPLE = 2000
"""How many train rows a layer is chosen on."""


class Candidate(Stored):
    """A layer and a pooling, with the validation loss of a probe on their states."""

    layer: int
    pooling: Literal["last", "mean"]
    loss: float


class Choice(Stored):
    """head.json: all candidates, the best one first."""

    tried: list[Candidate]
    rows: int
    """How many train rows each probe was fitted on."""


class _Labelled(NamedTuple):
    features: "numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]]"
    labels: list[int]


def choose(
    recipe: Recipe, model: "PreTrainedModel", rows: Mapping[str, Sequence[Row]], run: Path
) -> Head:
    """Return the head section with the best candidate in the place of `layer: auto`, and log it."""
    found = _kept(run)
    if found is None:
        found = _tried(recipe, model, rows, cache_folder(run))
        write_summed(run, LAYER_CHOICE, found.model_dump(mode="json"))
    best = found.tried[0]
    listed = ", ".join(f"{one.layer} {one.pooling} {one.loss:.4f}" for one in found.tried[:5])
    log.info(
        "head.layer auto: %d candidates were tried on %d rows; validation loss of the best: %s",
        *(len(found.tried), found.rows, listed),
    )
    return recipe.head.model_copy(update={"layer": best.layer, "pooling": best.pooling})


def _kept(run: Path) -> Choice | None:
    """Return an earlier choice; None if there is none, or if it is damaged."""
    try:
        return Choice.model_validate(read_summed(run, LAYER_CHOICE))
    except (OSError, ValueError):
        return None


def _tried(
    recipe: Recipe, model: "PreTrainedModel", rows: Mapping[str, Sequence[Row]], folder: Path
) -> Choice:
    """Return every layer and pooling with its validation loss, the best one first."""
    depth = model.config.get_text_config().num_hidden_layers
    places = [(layer, pooling) for layer in range(1, depth + 1) for pooling in POOLINGS]
    keys = tuple(Key(*place) for place in places)
    sampler = random.Random(recipe.dataset.seed)
    sample = {part: sampler.sample(its, min(SAMPLE, len(its))) for part, its in rows.items() if its}
    if "validation" not in sample:
        raise UserError("head.layer: auto needs a validation part: set dataset.validation_size")
    folders = {
        part: compute(recipe, model, part, its, folder, keys) for part, its in sample.items()
    }
    sums = {part: sums_of(its) for part, its in sample.items()}
    tried = []
    for layer, pooling in places:
        key = Key(layer, pooling)
        parts = {part: States(its, folders[part], key, sums[part]) for part, its in sample.items()}
        loss = probe_loss(parts["train"], parts["validation"])
        tried.append(Candidate(layer=layer, pooling=pooling, loss=loss))
    tried.sort(key=lambda one: (one.loss, -one.layer))
    return Choice(tried=tried, rows=len(sample["train"]))


def probe_loss(train: States, validation: States) -> float:
    """Return the validation cross-entropy of a logistic regression on standardised states."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    fitted_on, held_out = _labelled(train), _labelled(validation)
    probe.fit(*fitted_on)
    # A rare class may be missing from the sample of train rows.
    known = [i for i, label in enumerate(held_out.labels) if label in set(fitted_on.labels)]
    probabilities = probe.predict_proba(held_out.features[known])
    return float(
        log_loss([held_out.labels[i] for i in known], probabilities, labels=probe.classes_)
    )


def _labelled(states: States) -> _Labelled:
    items = [states[i] for i in range(len(states))]
    features = torch.stack([item["features"] for item in items])
    labels = [item["labels"] for item in items]
    return _Labelled(
        features.float().numpy(), [label for label in labels if isinstance(label, int)]
    )
