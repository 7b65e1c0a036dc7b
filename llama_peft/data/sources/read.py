"""Reads any source: files, the Hub, the generator or Python objects."""

import re
from pathlib import Path, PurePosixPath

from llama_peft.data import formats
from llama_peft.data.formats import Table
from llama_peft.data.sources.files import read_files
from llama_peft.data.sources.hub import read_hub
from llama_peft.data.sources.places import is_file_name
from llama_peft.data.sources.python import Rows, read_rows
from llama_peft.errors import UserError
from llama_peft.recipe import Data


def read_any(source: "str | Path | Rows", data: Data, split: str | None) -> tuple[Table, str]:
    """Return the rows of a file, of a Hub data set or from Python, and the word that the ids of rows
    without an id begin with.

    split: of a Hub data set. None: test, or the recipe's test part if the data set is its own.
    """
    if not isinstance(source, str | Path):
        return read_rows(source, data), split or "rows"
    if is_file_name(str(source)):
        return read_files(str(source), data), _word(str(source))
    is_own = str(source) == data.path
    part = str(split or (data.parts.test if is_own else None) or "test")
    name = data.name if is_own else None
    limit = data.max_eval_samples if is_own and data.streaming else None
    advice = "name one of these splits"
    return read_hub(str(source), part, data, name, advice, limit), part


def _word(place: str) -> str:
    """Return the name of a file, folder or pattern, without its ending and what stands for others."""
    name = re.sub(r"[*?\[\]]+", "", PurePosixPath(place).stem)
    return name.strip("-_. ") or "rows"


def read_tiny(kind: str, part: str, count: int, seed: int) -> Table:
    """Return rows that the project's own generator writes."""
    from llama_peft.tiny.generator import generate

    try:
        records = generate(kind, part, count, seed)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(
            f"dataset.name: {error}: with path tiny, set it to reviews, mixed-reviews or passages"
        ) from None
    columns = list(records[0]) if records else []
    return formats.numbered(f"tiny {kind} ({part})", columns, records)
