"""What a metric's name says: is it a score at all, and which way is better.

Results hold counts and thresholds beside the scores, under the names that the official scripts give
them.
"""

from collections.abc import Iterable

INTERVAL_SUFFIX = "_ci95"
_LOWER_IS_BETTER = frozenset(["unparsable", "loss", "eval_loss", "perplexity"])


def is_score(name: str) -> bool:
    """False for counts (`total`, `HasAns_total`), thresholds and intervals."""
    return not (name == "total" or name.endswith(("_total", "_thresh", INTERVAL_SUFFIX)))


def score_names(results: Iterable[str]) -> list[str]:
    """The names among a task's results that are scores, in their order."""
    return [name for name in results if is_score(name)]


def higher_is_better(metric_name: str) -> bool:
    """Raises ValueError for a count, a threshold or an interval: there is no better one."""
    if not is_score(metric_name):
        raise ValueError(f"{metric_name!r} is not a score; use score_names to leave it out")
    return metric_name not in _LOWER_IS_BETTER
