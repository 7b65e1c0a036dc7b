"""Cuts one list of examples in two: with a seed, stratified, or with groups kept whole."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from llama_peft.errors import UserError


class Cut(NamedTuple):
    """The positions that stay and those that are taken, in the order of the data."""

    kept: list[int]
    taken: list[int]


def cut(
    count: int,
    share: float,
    seed: int,
    *,
    labels: Sequence[str] | None = None,
    groups: Sequence[int] | None = None,
    part: str,
) -> Cut:
    """Take a share of `count` rows for a new part: whole groups, or else a share of each label.

    With groups, the share is a share of the groups and not of the rows. Raises UserError if a part
    would be empty or could not hold all labels.
    """
    units = count if groups is None else len(set(groups))
    taken = math.ceil(share * units)
    if units - taken < 1:
        unit = "row" if groups is None else "group"
        raise UserError(
            f"{part}: cannot cut {share:g} of {units} {unit}{'s' if units > 1 else ''}: "
            f"name a {part} file (dataset.parts.{part}), or set dataset.{part}_size: 0"
        )
    if groups is not None:
        return _cut_groups(groups, share, seed)
    if labels is not None:
        _check_labels(labels, min(taken, units - taken), part)
    return _cut_rows(count, share, seed, labels)


def _cut_groups(groups: Sequence[int], share: float, seed: int) -> Cut:
    from sklearn.model_selection import GroupShuffleSplit

    splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    kept, taken = next(splitter.split(range(len(groups)), groups=groups))
    return Cut(sorted(map(int, kept)), sorted(map(int, taken)))


def _cut_rows(count: int, share: float, seed: int, labels: Sequence[str] | None) -> Cut:
    from sklearn.model_selection import train_test_split

    kept, taken = train_test_split(
        range(count), test_size=share, random_state=seed, stratify=labels
    )
    return Cut(sorted(kept), sorted(taken))


def _check_labels(labels: Sequence[str], smaller: int, part: str) -> None:
    """Check that each label has two rows and that both sides have room for all labels."""
    counts = Counter(labels)
    rare = sorted(label for label, count in counts.items() if count < 2)
    advice = f"set dataset.stratify: false, or name a {part} file (dataset.parts.{part})"
    if rare:
        listed = ", ".join(map(str, rare[:10]))
        raise UserError(
            f"{part}: {len(rare)} label(s) have only one row, and a stratified cut needs two "
            f"({listed}): {advice}"
        )
    if smaller < len(counts):
        raise UserError(f"{part}: {smaller} rows cannot hold all {len(counts)} labels: {advice}")


def components(*keys: Sequence[str]) -> list[int]:
    """Return a group number for each row. Rows that are equal in any of the keys share one."""
    parent = list(range(len(keys[0])))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for key in keys:
        first: dict[str, int] = {}
        for row, value in enumerate(key):
            parent[root(row)] = root(first.setdefault(value, row))
    return [root(row) for row in range(len(parent))]


def sample(count: int, size: int | None, seed: int, part: str) -> list[int]:
    """Return the positions of a random sample, in order. If size is None or too large, all."""
    if size is None or size >= count:
        return list(range(count))
    # A text seeds the generator by its SHA-512: the same in every process, unlike hash().
    return sorted(random.Random(f"{seed} {part}").sample(range(count), size))


def sample_groups(groups: Sequence[str], size: int | None, seed: int, part: str) -> list[int]:
    """Return the positions of the rows of whole groups, in order: of one group or more, and of as
    many in a random order as have at most `size` rows together. A larger size keeps these rows.
    """
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    order = [*rows]
    random.Random(f"{seed} {part}").shuffle(order)
    taken = list(rows[order[0]]) if order else []
    for group in order[1:]:
        if size is not None and len(taken) + len(rows[group]) > size:
            break
        taken += rows[group]
    return sorted(taken)
