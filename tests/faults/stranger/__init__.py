"""What a stranger planted or a user left: it does no harm, and nothing of the user's is lost."""

from collections.abc import Iterator
from itertools import chain

from tests.faults.shop import Fault

from . import card, checkpoints, endless, foreign, links, numbers, terminal, unclear
from .case import as_faults

KINDS = (links, foreign, terminal, card, endless, numbers, checkpoints, unclear)


def faults(full: bool) -> Iterator[Fault]:
    yield from as_faults(chain.from_iterable(kind.cases() for kind in KINDS))
