"""Weights in the loss of classification, so that rare labels count.

The loss of a step is what torch's `CrossEntropyLoss(weight=...)` or `BCEWithLogitsLoss(
pos_weight=...)` gives on all rows of the step at once, however many batches, pieces and processes
they are computed in. So every piece gives its part of the sum, and the whole step's divisor is
known before its first piece.

The validation loss, by which checkpoints are chosen, has the same weights: it is the weighted mean
over the whole validation part. Without them it would prefer the checkpoint that is best on common
labels, which the weights were set against.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from llama_peft.data import label_key
from llama_peft.model.heads import class_loss
from llama_peft.recipe import Recipe
from llama_peft.training.rows import ClassificationRow, Row


class LossWeights:
    """The weights of a training, and the loss that they give.

    by_label: a weight for each label, in their order. several: whether a row can have several
    labels. validation: the targets of the validation part.
    """

    def __init__(self, by_label: Mapping[str, float], several: bool, validation: Tensor) -> None:
        self.by_label = dict(by_label)
        self._weight_C = torch.tensor(list(by_label.values()))
        self._problem = "multi_label_classification" if several else None
        self._terms_per_row = self.terms(validation) / max(1, len(validation))

    def terms(self, labels: Tensor) -> Tensor:
        """Return over how much the loss of these rows is a mean: the sum of the weights of their
        classes, or the number of their rows times that of the labels.
        """
        if self._problem is not None:
            return torch.tensor(float(labels.numel()))
        return self._weight_C.to(labels.device)[labels].sum()

    def loss(self, logits_BC: Tensor, labels: Tensor, terms: Tensor | int | None) -> Tensor:
        """Return the part of a step's loss that these rows make up. terms: those of the step.

        None in validation: then the mean of the returned losses, each counted by its rows, is the
        weighted mean over the validation part.
        """
        weight_C = self._weight_C.to(logits_BC.device)
        summed = class_loss(logits_BC, labels, self._problem, weight_C, "sum")
        if terms is None:
            terms = self._terms_per_row.to(logits_BC.device) * len(labels)
        return summed / terms


def loss_weights(recipe: Recipe, rows: Mapping[str, Sequence[Row]]) -> LossWeights | None:
    """Return the weights that the recipe asks for, or None if it asks for none.

    rows: of the train part, which decides what is balanced, and of the validation part.
    """
    several = recipe.kind.side == "label_sets"
    asked = recipe.train.pos_weight if several else recipe.train.class_weights
    if asked is None:
        return None
    labels = recipe.dataset.labels or []
    if asked == "balanced":
        train = _targets(rows["train"])
        weight_C = _balanced_pos_weight(train) if several else _balanced(train, len(labels))
        found = weight_C.tolist()
    else:
        named = {label_key(name): weight for name, weight in asked.items()}
        found = [named.get(label_key(name), 1.0) for name in labels]
    weights = dict(zip(labels, found, strict=True))
    return LossWeights(weights, several, _targets(rows["validation"]))


def _targets(rows: Sequence[Row]) -> Tensor:
    """Return numbers of classes (N,), or 0.0 or 1.0 for each label (N, C)."""
    found = [row["labels"] for row in cast("Sequence[ClassificationRow]", rows)]
    return torch.tensor(found) if found else torch.zeros(0, dtype=torch.long)


def _balanced(labels_N: Tensor, num_labels: int) -> Tensor:
    """Return n / (k * count) of each class, as scikit-learn's `class_weight="balanced"`: n rows, and
    k classes that occur. A class that does not occur gets 1.
    """
    count_C = labels_N.bincount(minlength=num_labels).double()
    weight_C = len(labels_N) / ((count_C > 0).sum() * count_C)
    return weight_C.where(count_C > 0, 1.0)


def _balanced_pos_weight(labels_NC: Tensor) -> Tensor:
    """Return rows without the label / rows with it, of each label; 1 if there are none of either."""
    with_C = labels_NC.double().sum(dim=0)
    without_C = len(labels_NC) - with_C
    return (without_C / with_C).where((with_C > 0) & (without_C > 0), 1.0)
