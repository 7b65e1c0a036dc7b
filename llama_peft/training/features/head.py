"""A head alone, trained on states that are computed once.

The published baseline ran the frozen backbone again in every epoch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from llama_peft.features.cache import compute, sums_of
from llama_peft.features.shards import Stored, Sums
from llama_peft.features.states import Key
from llama_peft.model import heads
from llama_peft.recipe import Recipe
from llama_peft.training.rows import ClassificationRow as Row
from llama_peft.training.rows import Target


class FeatureRow(TypedDict):
    """The pooled state (D,) of a text, and what is learned of it."""

    ids: list[str]
    features: Tensor
    labels: Target


class FeatureBatch(TypedDict):
    """Feature rows as tensors, and the example ids of each row."""

    features: Tensor
    labels: Tensor
    ids: list[list[str]]


class States(Dataset[FeatureRow]):
    """The states of one part's rows, in the order of the rows. sums: those of the rows, if known."""

    def __init__(
        self, rows: Sequence[Row], folder: Path, key: Key, sums: Sums | None = None
    ) -> None:
        self._rows = rows
        self._states = Stored(folder, key.name)
        self._places = self._states.places(sums_of(rows) if sums is None else sums)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> FeatureRow:
        row, features = self._rows[index], self._states[int(self._places[index])]
        return FeatureRow(ids=row["ids"], features=features, labels=row["labels"])


class FeatureHead(nn.Module):
    """The head alone, on states that are computed already."""

    accepts_loss_kwargs = False

    def __init__(self, score: nn.Module, problem_type: str | None = None) -> None:
        super().__init__()
        self.score = score.requires_grad_(True)
        self.problem_type = problem_type

    def forward(self, features: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.score(features)
        loss = None if labels is None else heads.class_loss(logits, labels, self.problem_type)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def collate(rows: Sequence[FeatureRow]) -> FeatureBatch:
    """Return states and labels as a batch."""
    return FeatureBatch(
        features=torch.stack([row["features"] for row in rows]),
        labels=torch.tensor([row["labels"] for row in rows]),
        ids=[row["ids"] for row in rows],
    )


def states_of(
    recipe: Recipe, model: PreTrainedModel, part: str, rows: Sequence[Row], cache: Path
) -> States:
    """Return the states of a part's rows, from the cache or computed and added to it.

    Raises UserError if the disk is too small.
    """
    # The loaded model ends at the chosen layer, which is named as in the states of all layers.
    key = Key(model.config.get_text_config().num_hidden_layers, recipe.head.pooling)
    return States(rows, compute(recipe, model, part, rows, cache, (key,)), key)
