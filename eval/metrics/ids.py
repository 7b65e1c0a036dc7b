"""Law 8: predictions and references have the same unique ids before any number is computed.

A score over only those questions that both files hold is a different number under the same name.
The official squad_v2 script gives 100.0 on partial predictions whose true score is 25.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping


def check_unique(ids: Iterable[str], what: str) -> None:
    """Raise ValueError if an id occurs twice; `what` names the list in the message."""
    twice = [identity for identity, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"{what}: {len(twice)} id(s) occur more than once: {_some(twice)}")


def check_match(predictions: Mapping[str, object], golds: Mapping[str, object]) -> None:
    """Raise ValueError unless both hold the same ids, and at least one."""
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


def _some(ids: Collection[str]) -> str:
    shown = ", ".join(repr(identity) for identity in list(ids)[:3])
    return shown + (", ..." if len(ids) > 3 else "")
