"""What the page says of a run beside its scores: the log of its training, its rows, how it was made."""

import json
import logging
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from llama_peft.data.dataset import PARTS
from llama_peft.errors import UserError
from llama_peft.run_folder.layout import HISTORY, LADDER, LADDER_RECIPE, RECIPE
from llama_peft.run_folder.record import TrainingRecord, read_record
from llama_peft.system.files import is_file, read_text, sum_of

from ...results import SystemResults

log = logging.getLogger(__name__)

_LARGEST_HISTORY = 50_000_000
"""Bytes; that of a million steps is smaller."""
_SHOWN_ELSEWHERE = {
    "results", "configs", "config", "versions", "n-samples", "higher_is_better", "wall_seconds", "dropped", "costs",
    "peak_memory_bytes", "predictions_sha256", "version",
}  # fmt: skip
"""Keys of results.json that are not listed as configuration."""


class Fact(NamedTuple):
    """A line of the configuration."""

    name: str
    value: str


class Dropped(NamedTuple):
    """Rows of a part of the data that could not be used."""

    part: str
    reason: str
    rows: int


def history(run: Path) -> list[Mapping[str, object]]:
    """The Trainer's log lines; none if the file is missing or damaged, as no score needs it."""
    try:
        text = read_text(run, HISTORY, largest=_LARGEST_HISTORY)
        if read_record(run).history_sha256 not in (None, sum_of(run, HISTORY)):
            raise ValueError("it is not what the training wrote")
        return [_object(line) for line in text.splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError, UserError) as error:
        log.warning("%s is damaged (%s): the report has no loss curve", run / HISTORY, error)
        return []


def _object(text: str) -> dict[str, object]:
    """The JSON object of a line. A training may have logged numbers that are not finite."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("a line does not hold a JSON object")
    return value


def numbered(system: SystemResults) -> str:
    """What an id means that counts the rows of another part's source; empty if there is none."""
    pattern = re.compile(rf"({'|'.join(PARTS)})-([0-9]+)")
    found = (pattern.fullmatch(line.id) for line in system.lines)
    one = next((match for match in found if match and match[1] != system.part), None)
    if one is None:
        return ""
    return (
        f"{one[0]} is row {one[2]} of the source of the {one[1]} part: the {system.part} part was cut "
        "from it before the training, which did not see these rows."
    )


def resumed_at(record: TrainingRecord) -> list[int]:
    """The steps of the checkpoints from which a training was continued; older records know the last."""
    _, _, step = (record.resumed_from or "").rpartition("-")
    last = [int(step)] if step.isdecimal() and len(step) < 16 else []
    return sorted({*record.resumed_at, *last})


def dropped(system: SystemResults, record: TrainingRecord | None) -> list[Dropped]:
    """The rows that could not be used, in training and in evaluation."""
    found = {**(record.dropped if record else {}), **system.results.dropped}
    return [
        Dropped(part, reason, count)
        for part, reasons in found.items()
        for reason, count in reasons.items()
    ]


def facts(system: SystemResults) -> list[Fact]:
    """What is recorded of the system's model and evaluation."""
    known = system.config.model_dump()
    recorded = system.results.model_dump(by_alias=True)
    known |= {name: value for name, value in recorded.items() if name not in _SHOWN_ELSEWHERE}
    return list(_flat(known))


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[Fact]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield Fact(f"{prefix}{name}", f"{value:,}" if isinstance(value, int) else str(value))


def recipe_of(run: Path) -> str:
    """The text of the run's recipe; empty if it has none."""
    try:
        return read_text(run, RECIPE, errors="replace")
    except FileNotFoundError:
        return ""


def commands(run: Path) -> list[str]:
    """The commands that make the run, and this page, again."""
    ladder = f"{LADDER}/{LADDER_RECIPE}"
    recipe = ladder if is_file(run, ladder) else RECIPE
    return [shlex.join(["llama-peft", "run", str(run / recipe)]), page_command([run])]


def page_command(folders: list[Path], output: Path | None = None) -> str:
    """The command that makes the page again."""
    words = ["llama-eval", "html", *map(str, folders)]
    return shlex.join([*words, *(["--output", str(output)] if output else [])])
