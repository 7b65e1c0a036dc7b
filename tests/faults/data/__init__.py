"""Data that are wrong are refused in one line; other ways to write the same data give the same run."""

from collections.abc import Iterator
from itertools import chain

from tests.faults.shop import Fault

from . import labels, predicted, read, refused, scored

KINDS = (refused, labels, read, predicted, scored)


def faults(full: bool) -> Iterator[Fault]:
    every = chain.from_iterable(kind.faults() for kind in KINDS)
    yield from sorted(every, key=lambda fault: not fault.cheap)
