"""Numbers and names as text for people. Tables, the page, the card and messages all write them this
way.
"""

import re
from collections.abc import Sequence
from typing import Literal

from llama_peft.system.terminal import one_line

Sign = Literal["", "+"]
"""`+` writes the sign of positive numbers too, for differences."""


def number(value: float, is_percent: bool, sign: Sign = "") -> str:
    """A score: two decimals of a percentage, four of a fraction."""
    return f"{value:{sign}.{2 if is_percent else 4}f}"


def interval(low: float, high: float, is_percent: bool, sign: Sign = "") -> str:
    """The bounds of a score, with one decimal less than the score."""
    decimals = 1 if is_percent else 3
    return f"[{low:{sign}.{decimals}f}, {high:{sign}.{decimals}f}]"


def number_with_interval(
    value: float | None, bounds: Sequence[float] | None, is_percent: bool, sign: Sign = ""
) -> str:
    """A score and its interval; empty if there is no score."""
    if value is None:
        return ""
    parts = [number(value, is_percent, sign)]
    if bounds:
        low, high = bounds
        parts.append(interval(low, high, is_percent, sign))
    return " ".join(parts)


def duration(seconds: float) -> str:
    """A time as 12.3 s, 12 min 30 s or 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, unit: str) -> str:
    """A number of things: 1 row, 1,200 rows."""
    return f"{number:,} {unit if number == 1 else plural(unit)}"


def plural(unit: str) -> str:
    """The name of several things."""
    if unit.isupper():  # MB
        return unit
    return f"{unit}es" if unit.endswith("ch") else f"{unit}s"


def spread(counts: Sequence[int]) -> str:
    """Counts in a few words: median 12, 95 % 40, longest 97. There must be at least one."""
    ordered = sorted(counts)
    middle, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95))
    return f"median {middle:,}, 95 % {high:,}, longest {ordered[-1]:,}"


def memory(size: float) -> str:
    """Bytes of memory, in GB of 10**9 bytes."""
    return f"{size / 1e9:.2f} GB"


def disk_space(size: float) -> str:
    """Bytes on a disk, in GB, or in MB below 0.1 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.3f} MB"


_MARKUP = re.compile(r"[&<>`*\\|~$@]|](?=[(:\[])|:(?=//)|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown or HTML can read as more than itself, wherever it stands in a line. An underscore
inside a word is one only.
"""


def in_markdown(text: str) -> str:
    """A text that Markdown and HTML show as it is, on one line. It must not begin a line.

    Signs become their numbers, such as `&#60;`, because those are never markup: not in a table, not
    in a link, and not for a reader that knows HTML only.
    """
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", one_line(text))


def as_code(text: str) -> str:
    """A name as code in Markdown; one with unusual signs is shown as it is."""
    return f"`{text}`" if re.fullmatch(r"[A-Za-z0-9_./:+-]+", text) else in_markdown(text)


def hub_link(name: str, kind: Literal["", "datasets/"] = "") -> str:
    """A link in Markdown to a model or data set; what cannot be a name on the Hub is only shown."""
    is_name = re.fullmatch(r"(?a:[\w.-]+/)?(?a:[\w.-]+)", name)
    shown = in_markdown(name)
    return f"[{shown}](https://huggingface.co/{kind}{name})" if is_name else shown


def p_value(value: float) -> str:
    """Return a p-value with the sign before it: "= 0.012", or "< 0.001"."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
