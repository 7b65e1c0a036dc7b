"""What the lines of predictions.jsonl say, as columns: all that a score needs, without the texts."""

from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np

from llama_peft.system.sequences.arrays import LongArray

from ..metrics.columns import (
    Column,
    Filling,
    Flags,
    Held,
    IntArray,
    Lists,
    Texts,
    Value,
    cut,
    held,
    texts,
)
from ..metrics.measure import Said
from .line import PredictionLine

_NOTHING: Mapping[str, object] = {
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

    def __init__(self, ids: Texts, held: Mapping[str, Held]) -> None:
        self.ids = ids
        self._held = held

    @classmethod
    def of(cls, lines: Iterable[PredictionLine], names: Iterable[str] = _NOTHING) -> "Told":
        """Return what lines say: their ids, and the fields of these names. They are read once."""
        columns = {name: Filling() for name in names}
        ids: list[Texts] = []
        for piece in cut(lines):
            ids.append(texts(line.id for line in piece))
            for name, own in columns.items():
                found, nothing = (getattr(line, name) for line in piece), _NOTHING[name]
                own.add([nothing if one is None else one for one in found])
        every = np.concatenate([texts([]), *ids])
        return cls(texts(every), {name: columns.pop(name).held() for name in [*columns]})

    @cached_property
    def _splits(self) -> Column[str]:
        return Column(self.ids, self._held["split"])

    def of_part(self, part: str) -> IntArray:
        """Return the places of the lines that belong to a part of the data."""
        return self._splits.of(part)

    @cached_property
    def parts(self) -> list[str]:
        """The parts of the data that the lines belong to."""
        return sorted({*self._splits.values()})

    @cached_property
    def predictions(self) -> Column[Said]:
        return Column(self.ids, self._held["prediction"])

    @cached_property
    def golds(self) -> Column[Said]:
        return Column(self.ids, self._held["gold"])

    @cached_property
    def groups(self) -> Column[str]:
        """The groups of the examples that were not drawn alone."""
        return Column[str](self.ids, self._held["group"]).known("")

    @cached_property
    def units(self) -> Column[str]:
        """The group of each example, or its own id if it was drawn alone."""
        pairs = Column[str](self.ids, self._held["group"]).items()
        return Column(self.ids, held(group or f"id {id_}" for id_, group in pairs))

    @cached_property
    def probabilities(self) -> Column[list[float]]:
        """The probabilities of the labels, of the lines that hold some."""
        lists = self._held["probabilities"]
        assert isinstance(lists, Lists), "each line has a list"
        return _known(Column(self.ids, lists), np.diff(lists.ends[:], prepend=0) > 0)

    @cached_property
    def no_answer_probabilities(self) -> Column[float]:
        """The probabilities of no answer, of the lines that hold one."""
        held = self._held["no_answer_probability"]
        assert isinstance(held, LongArray), "each line has a number"
        return _known(Column(self.ids, held), ~np.isnan(held[:]))

    def at(self, places: IntArray) -> "Told":
        """Return what the lines at these places say."""
        if len(places) == len(self.ids) and (places[1:] > places[:-1]).all():
            return self  # all lines, in their order
        every = {name: Column(self.ids, held).at(places).held for name, held in self._held.items()}
        return Told(self.ids[places], every)


def _known(column: Column[Value], is_known: Flags) -> Column[Value]:
    return column if is_known.all() else column.at(np.flatnonzero(is_known))
