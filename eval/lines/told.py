"""What the lines of predictions.jsonl say, as columns: all that a score needs, without the texts."""

from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..metrics.columns import (
    Column,
    Held,
    IntArray,
    Lists,
    Texts,
    Value,
    cut,
    held,
    joined,
    piece_of,
)
from ..metrics.measure import Said
from .line import PredictionLine

_NOTHING: Mapping[str, object] = {
    "id": "",
    "split": "",
    "prediction": "",
    "gold": "",
    "group": "",
    "probabilities": [],
    "no_answer_probability": np.nan,
}
"""What stands for None."""


class Told:
    """Columns of lines, in the order of the lines. Raises ValueError for values of several types."""

    def __init__(self, held: Mapping[str, Held]) -> None:
        self._held = held

    @classmethod
    def of(cls, lines: Iterable[PredictionLine], names: Iterable[str] = _NOTHING) -> "Told":
        """Return what lines say, or only the fields of these names. The lines are read once."""
        pieces: dict[str, list[Held]] = {name: [] for name in names}
        for piece in cut(lines):
            for name, own in pieces.items():
                found, nothing = (getattr(line, name) for line in piece), _NOTHING[name]
                own.append(piece_of([nothing if one is None else one for one in found]))
        return cls({name: joined(pieces.pop(name)) for name in [*pieces]})

    @property
    def ids(self) -> Texts:
        return self._texts("id")

    @property
    def splits(self) -> Texts:
        return self._texts("split")

    @cached_property
    def parts(self) -> list[str]:
        """The parts of the data that the lines belong to."""
        return sorted({*Column(self.ids, self.splits).values()})

    @cached_property
    def predictions(self) -> Column[Said]:
        return Column(self.ids, self._held["prediction"])

    @cached_property
    def golds(self) -> Column[Said]:
        return Column(self.ids, self._held["gold"])

    @cached_property
    def groups(self) -> Column[str]:
        """The groups of the examples that were not drawn alone."""
        groups = self._texts("group")
        return _known(Column(self.ids, groups), groups != "")

    @cached_property
    def units(self) -> Column[str]:
        """The group of each example, or its own id if it was drawn alone."""
        pairs = Column[str](self.ids, self._texts("group")).items()
        return Column(self.ids, held(group or f"id {id_}" for id_, group in pairs))

    @cached_property
    def probabilities(self) -> Column[list[float]]:
        """The probabilities of the labels, of the lines that hold some."""
        lists = self._held["probabilities"]
        assert isinstance(lists, Lists), "each line has a list"
        return _known(Column(self.ids, lists), np.diff(lists.ends, prepend=0) > 0)

    @cached_property
    def no_answer_probabilities(self) -> Column[float]:
        """The probabilities of no answer, of the lines that hold one."""
        held = self._held["no_answer_probability"]
        assert isinstance(held, np.ndarray), "each line has a number"
        return _known(Column(self.ids, held), held == held)  # nothing is NaN, which is not itself

    def at(self, places: IntArray) -> "Told":
        """Return what the lines at these places say."""
        every = {name: Column(self.ids, held).at(places).held for name, held in self._held.items()}
        return Told(every)

    def _texts(self, name: str) -> Texts:
        held = self._held[name]
        assert isinstance(held, np.ndarray), "texts are not lists"
        return held  # type: ignore[return-value]


def _known(column: Column[Value], is_known: NDArray[np.bool_]) -> Column[Value]:
    return column if is_known.all() else column.at(np.flatnonzero(is_known))
