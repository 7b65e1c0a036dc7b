"""Files that survive a crash: each is whole or absent, and known by its sum."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue

JsonObject = dict[str, "JsonValue"]


def sha256(path: Path) -> str:
    """The sum of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(text: str) -> str:
    """The sum of a text as UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def with_sum(values: Mapping[str, object]) -> dict[str, object]:
    """The values with their own sum as the last key `sum`; an earlier sum is replaced."""
    kept = {key: value for key, value in values.items() if key != "sum"}
    as_read = json.loads(json.dumps(kept))  # JSON turns keys into text and tuples into lists
    return {**kept, "sum": sha256_of(json.dumps(as_read, sort_keys=True))}


def check_sum(values: object) -> None:
    """Raise ValueError unless the values are an object whose `sum` is right."""
    if not isinstance(values, dict) or with_sum(values)["sum"] != values.get("sum"):
        raise ValueError("its sum is wrong, so it was changed after it was written")


def write_summed(path: Path, values: Mapping[str, object]) -> None:
    """Write values as JSON with their sum."""
    text = json.dumps(with_sum(values), indent=1, ensure_ascii=False)
    write_durably(path, text)


def read_summed(path: Path, required: bool = True) -> JsonObject:
    """The values of a JSON file without their sum.

    required: whether a file without a sum is refused; files of other tools have none. Raises
    OSError or ValueError (RecursionError becomes one) if the file cannot be read, is not an object,
    or has a wrong sum.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it does not hold a JSON object")
        if required or "sum" in values:
            check_sum(values)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    values.pop("sum", None)
    return values


def write_durably(path: Path, text: str) -> None:
    """Replace a file at once: after a crash it holds either the old text or the new."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Wait until a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
