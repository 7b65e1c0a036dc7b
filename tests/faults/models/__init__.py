"""Bases and adapters of every kind: those that are wrong are refused in one line, the others are right."""

from collections.abc import Iterator
from itertools import chain

from tests.faults.shop import Fault

from . import damaged, others, packed, shapes, texts

KINDS = (damaged, packed, shapes, others, texts)


def faults(full: bool) -> Iterator[Fault]:
    every = chain.from_iterable(kind.faults() for kind in KINDS)
    yield from sorted(every, key=lambda fault: not fault.cheap)
