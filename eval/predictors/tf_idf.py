"""A linear model on the words and the pieces of words of a text: a cheap baseline that reads it.

Features: words and pairs of words, and pieces of 2 to 5 characters within words, each weighted by
TF-IDF with logarithmic counts. At most 100,000 of each kind are kept, the most frequent ones.
Model: logistic regression, one for each label if a text can have several, and ridge regression for
numbers. How strongly it is regularised is chosen by cross-validation in three parts.
"""

import pickle
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline

from llama_peft.data import Example, Label, TextExample
from llama_peft.inference.predict import Prediction, labels_above, texts
from llama_peft.recipe import Recipe
from llama_peft.recipe.templates import filled
from llama_peft.tasks import Side

_FEATURES = 100_000
_CHOSEN_ON = 10_000
"""Examples that the strength is chosen on, at most; the model is then fitted on all of them."""
_FEWEST = 30
"""On fewer examples nothing is chosen, and the strength stays as it is."""
_STRENGTHS = (1.0, 3.0, 10.0, 30.0)
"""The inverse strengths of the regularisation that are tried."""
_USUAL = 10.0
_FOLDS = 3


@dataclass(frozen=True, kw_only=True)
class TfIdf:
    """The baseline on one task."""

    recipe: Recipe
    labels: tuple[str, ...]
    train: Sequence[TextExample]

    @property
    def side(self) -> Side:
        return self.recipe.kind.side

    def fit(self) -> int:
        """Fit it, and return the bytes that it takes on disk."""
        return len(pickle.dumps(self.fitted))

    @cached_property
    def fitted(self) -> Pipeline:
        """The features and the model. The same examples give the same model."""
        features = _features()
        rows = features.fit_transform([self.text(one) for one in self.train])
        truths = [one.label for one in self.train]
        chosen = self._strength(rows, truths)
        with warnings.catch_warnings(action="ignore"):  # a label that no example has
            model = self._model(chosen).fit(rows, self._targets(truths))
        return make_pipeline(features, model)

    def predict(self, examples: Sequence[Example], batch_size: int) -> Iterator[list[Prediction]]:
        """Yield all predictions at once, because no memory is saved by batches."""
        asked = texts(examples)
        read = [self.text(one) for one in asked]
        if self.side == "numbers":
            numbers = self.fitted.predict(read).tolist()
            yield [
                Prediction(id=one.id, prediction=float(number))
                for one, number in zip(asked, numbers, strict=True)
            ]
            return
        rows = map(self._shares, self.fitted.predict_proba(read).tolist())
        yield [self._prediction(one.id, row) for one, row in zip(asked, rows, strict=True)]

    def text(self, example: Example) -> str:
        """Return what is read of an example: the fields that the head's template names."""
        (one,) = texts([example])
        return filled(self.recipe.prompt.template, one.values)

    def _prediction(self, id_: str, shares: tuple[float, ...]) -> Prediction:
        if self.side == "label_sets":
            given = labels_above(shares, self.labels)
            return Prediction(id=id_, prediction=given, probabilities=shares)
        best = self.labels[shares.index(max(shares))]
        return Prediction(id=id_, prediction=best, probabilities=shares)

    def _shares(self, row: Sequence[float]) -> tuple[float, ...]:
        """Return the probability of every label: 0 for one that no example of the train part has."""
        if self.side == "label_sets":
            return tuple(row)
        known: Mapping[int, float] = dict(zip(self.fitted[-1].classes_.tolist(), row, strict=True))
        return tuple(known.get(number, 0.0) for number in range(len(self.labels)))

    def _targets(self, truths: Sequence[Label]) -> object:
        """Return what is right as scikit-learn wants it."""
        if self.side != "label_sets":
            return np.array(truths)
        sets = [truth if isinstance(truth, tuple) else () for truth in truths]
        return np.array(
            [[number in own for number in range(len(self.labels))] for own in sets], int
        )

    def _model(self, strength: float) -> BaseEstimator:
        if self.side == "numbers":
            return Ridge(alpha=1 / strength)
        model = LogisticRegression(C=strength, max_iter=300)
        return OneVsRestClassifier(model) if self.side == "label_sets" else model

    def _strength(self, rows: csr_matrix, truths: Sequence[Label]) -> float:
        """Return the strength that predicts best in cross-validation on a sample of the examples."""
        if len(truths) < _FEWEST:
            return _USUAL
        seed = self.recipe.dataset.seed
        size = min(len(truths), _CHOSEN_ON)
        taken = random.Random(seed).sample(range(len(truths)), size)
        targets, folds = self._targets([truths[one] for one in taken]), KFold(_FOLDS)
        scoring = {"labels": "accuracy", "label_sets": "f1_micro", "numbers": "r2"}[self.side]

        def score(strength: float) -> float:
            with warnings.catch_warnings(action="ignore"):  # a part without one of the labels
                found = cross_val_score(
                    self._model(strength),
                    rows[taken],
                    targets,
                    cv=folds,
                    scoring=scoring,
                    error_score=0.0,
                )
            return float(found.mean())

        return max(_STRENGTHS, key=score)


def _features() -> FeatureUnion:
    """Return the vectorisers of a text. They keep what only one text holds: that helps."""
    shared = {"sublinear_tf": True, "max_features": _FEATURES}
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\b\w+\b|[^\w\s]", **shared)
    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), **shared)
    return FeatureUnion([("words", words), ("pieces", pieces)])
