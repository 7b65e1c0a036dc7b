"""Law 8: predictions and references have the same unique ids before any number is computed.

A score over only those questions that both files hold is a different number under the same name.
The official squad_v2 script gives 100.0 on partial predictions whose true score is 25.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from .columns import Column, IntArray, Texts, texts

Said = TypeVar("Said")
Right = TypeVar("Right")


def check_unique(ids: Iterable[str], what: str) -> None:
    """Raise ValueError if an id occurs twice; `what` names the list in the message."""
    if isinstance(ids, np.ndarray):
        ordered = in_rising_order(texts(ids))
        ids = ordered[:-1][ordered[1:] == ordered[:-1]]
        ids = [*ids, *ids]  # each of these occurs more than once
    twice = [identity for identity, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"{what}: {len(twice)} id(s) occur more than once: {_some(twice)}")


def check_match(predictions: Mapping[str, object], golds: Mapping[str, object]) -> None:
    """Raise ValueError unless both hold the same ids, and at least one."""
    columns = [one.ids for one in (predictions, golds) if isinstance(one, Column)]
    if len(columns) == 2 and len(golds) and are_same(*columns):
        return
    # To look up an id in a column takes a pass over all.
    predictions, golds = dict.fromkeys(predictions), dict.fromkeys(golds)
    missing = [identity for identity in golds if identity not in predictions]
    extra = [identity for identity in predictions if identity not in golds]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(golds)} have no prediction: {_some(missing)}")
    if extra:
        faults.append(f"{len(extra)} prediction(s) have an unknown id: {_some(extra)}")
    if faults:
        raise ValueError("predictions and references differ: " + "; ".join(faults))
    if not golds:
        raise ValueError("there is nothing to score: no predictions and no references")


def matched(
    predictions: Mapping[str, Said], golds: Mapping[str, Right]
) -> Iterator[tuple[Said, Right]]:
    """Return each prediction with its reference, in the order of the references.

    Raises ValueError as `check_match`, at once.
    """
    check_match(predictions, golds)
    if isinstance(predictions, Column) and isinstance(golds, Column):
        return zip(aligned(predictions, golds.ids).values(), golds.values(), strict=True)
    if isinstance(predictions, Column):
        predictions = dict(predictions.items())
    return ((predictions[identity], gold) for identity, gold in golds.items())


def aligned(values: Column[Said], ids: Texts) -> Column[Said]:
    """Return a column in the order of ids that are the same as its own."""
    order = places(values.ids, ids)
    return values if order is None else values.at(order)


def places(ids: Texts, wanted: Texts) -> IntArray | None:
    """Return where each wanted id stands among `ids`, which are the same; None if the order is."""
    if ids is wanted or np.array_equal(ids, wanted):
        return None
    order = np.empty(len(ids), dtype=np.int64)
    order[np.argsort(wanted, kind="stable")] = np.argsort(ids, kind="stable")
    return order


def found(ids: Texts, wanted: Texts) -> IntArray | None:
    """Return where each wanted id stands among other ids; None if one is not there."""
    order = np.argsort(ids, kind="stable")
    places = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return places if np.array_equal(ids[places], wanted) else None


def in_rising_order(ids: Texts) -> Texts:
    """Return the ids in rising order: themselves, if they are."""
    return ids if (ids[1:] >= ids[:-1]).all() else texts(np.sort(ids))


def are_same(ids: Texts, others: Texts) -> bool:
    """Return whether both hold the same ids, in any order."""
    if ids is others or np.array_equal(ids, others):
        return True
    return len(ids) == len(others) and np.array_equal(in_rising_order(ids), in_rising_order(others))


def _some(ids: Collection[str]) -> str:
    shown = ", ".join(repr(identity) for identity in list(ids)[:3])
    return shown + (", ..." if len(ids) > 3 else "")
