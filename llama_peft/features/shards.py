"""States on disk: shards in a folder, each with the states of some texts, and the order of the texts.

states-00000.safetensors ...    a tensor (N, D) for each layer and pooling; or one (T, D) with the
                                states of all tokens, one text after the other, and their `lengths`
sums.json                       the sum of each whole shard: a killed pass continues after them
order.json                      the sums of the texts' token ids, in the order of the states
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llama_peft.system.files import (
    JsonObject,
    inside,
    new_file,
    read_json,
    read_text,
    remove_file,
    sha256,
    sha256_of,
    sum_of,
    write_text,
)
from llama_peft.system.seal import SEAL, is_sealed, seal

SUMS, ORDER, LENGTHS = "sums.json", "order.json", "lengths"
WORD = 16
"""Characters of a sum in a name, and of a text's."""
Sums: TypeAlias = NDArray[numpy.bytes_]
"""The sum of a text's token ids, 16 bytes each."""


class Spent(NamedTuple):
    """What the passes of a shard took: its file says so."""

    seconds: float
    tokens: int


def sums_of(texts: Iterable[Sequence[int]]) -> Sums:
    """Return the sum of each text's token ids: these depend on the prompt and on max_length."""
    sums = (sha256_of(json.dumps(ids))[:WORD].encode() for ids in texts)
    return numpy.fromiter(sums, f"S{WORD}")


def words(sums: Sums) -> list[str]:
    """Return sums as JSON holds them."""
    return [one.decode() for one in sums.tolist()]


class Stored:
    """The states by one name of a sealed folder, memory-mapped."""

    def __init__(self, folder: Path, name: str) -> None:
        self._from = folder, name
        shards = [_mapped(path) for path in _shards(folder)]
        self._shards = [shard[name] for shard in shards]
        self._ends = [shard[LENGTHS].cumsum(0) if LENGTHS in shard else None for shard in shards]
        self._starts = [0, *accumulate(map(_count, shards))]
        self._order = _order(folder)
        spent = [_spent(path) for path in _shards(folder)]
        self.seconds_a_token = sum(one.seconds for one in spent) / sum(one.tokens for one in spent)
        """What the states took when they were computed."""
        self._ranks = numpy.argsort(self._order, kind="stable")

    def __reduce__(self) -> tuple[type["Stored"], tuple[Path, str]]:
        """Another process maps the files itself."""
        return Stored, self._from

    def places(self, texts: Sums) -> "NDArray[numpy.int64]":
        """Return the number of the state of each text; of equal ones the last. Raises KeyError if a
        text is not here.
        """
        found = self._nearest(texts)
        if not (self._order[found] == texts).all():
            raise KeyError("no states of some text are here")
        return found

    def _nearest(self, texts: Sums) -> "NDArray[numpy.int64]":
        return self._ranks[numpy.searchsorted(self._order, texts, "right", sorter=self._ranks) - 1]

    def of(self, text: Sums) -> Tensor | None:
        """Return the states of one text; None if they are not here."""
        place = int(self._nearest(text)[0])
        return self[place] if self._order[place] == text[0] else None

    def __getitem__(self, place: int) -> Tensor:
        """Return the state (D,) of the text with this number, or those (T, D) of its tokens."""
        shard = bisect_right(self._starts, place) - 1
        number, ends = place - self._starts[shard], self._ends[shard]
        if ends is None:
            return self._shards[shard][number]
        first = int(ends[number - 1]) if number else 0
        return self._shards[shard][first : int(ends[number])]


def holds(folder: Path, texts: Sums, names: set[str]) -> bool:
    """Return whether a folder is whole, with the states of all texts by all names.

    Raises what the libraries raise for a damaged one.
    """
    if not numpy.isin(texts, _order(folder)).all():
        return False
    # To look at the seal reads every byte.
    return names <= _mapped(inside(folder, _shard_name(0))).keys() and is_sealed(folder)


def clear(folder: Path) -> None:
    """Remove the shards of a damaged folder, and its seal."""
    for path in (*_shards(folder), folder / SEAL):
        remove_file(folder, path.name)


def finish(folder: Path, texts: Sums) -> None:
    """Seal a folder that holds the states of these texts, in this order."""
    write_text(folder, ORDER, json.dumps(words(texts)))
    seal(folder, [ORDER, SUMS, *(path.name for path in _shards(folder))])


def _order(folder: Path) -> Sums:
    """Return the sums of the texts whose states a folder holds, in their order."""
    return numpy.array(json.loads(read_text(folder, ORDER)), f"S{WORD}")


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("states-*.safetensors"))


def _shard_name(number: int) -> str:
    return f"states-{number:05d}.safetensors"


def _mapped(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, memory-mapped."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _spent(path: Path) -> Spent:
    with safe_open(path, "pt") as file:
        held = file.metadata()
    return Spent(float(held["seconds"]), int(held["tokens"]))


def _count(shard: Mapping[str, Tensor]) -> int:
    """Return of how many texts a shard holds the states."""
    return len(shard.get(LENGTHS, next(iter(shard.values()))))


def finished(folder: Path, limits: Iterable[int]) -> int:
    """Return how many texts the whole shards hold; shards after the first gap are removed.

    limits: after how many texts a shard ends.
    """
    left, sums = {0, *limits}, _sums(folder)
    done = 0
    for number, path in enumerate(_shards(folder)):
        size = 0
        known = path.name == _shard_name(number) and path.name in sums
        if known and sums[path.name] == sum_of(folder, path.name):
            size = _count(_mapped(path))
        if size and done + size in left:
            done += size
        else:
            remove_file(folder, path.name)
            left = set()
    return done


def _sums(folder: Path) -> JsonObject:
    """Return the sums of the finished shards; a shard without a sum is computed again."""
    try:
        sums = read_json(folder, SUMS)
    except (OSError, ValueError):
        return {}
    return sums if isinstance(sums, dict) else {}


def write(folder: Path, number: int, states: Mapping[str, Tensor], spent: Spent) -> None:
    """Write a shard: (N, D) for each name."""
    name = _shard_name(number)
    tensors = {key: its.cpu().contiguous() for key, its in states.items()}
    with new_file(folder, name) as partial:
        save_file(tensors, partial, {key: str(its) for key, its in spent._asdict().items()})
        sums = _sums(folder) | {name: sha256(partial)}
    write_text(folder, SUMS, json.dumps(sums))
