"""Files that survive a crash: whole or not there, and known by their sums."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_sum(values: Mapping[str, Any]) -> dict[str, Any]:
    """An object for JSON, and behind all that it says the sum of it, in place of the one that it had."""
    said = {key: value for key, value in values.items() if key != "sum"}
    text = json.dumps(json.loads(json.dumps(said)), sort_keys=True)  # with keys as they are read
    return {**said, "sum": hashlib.sha256(text.encode()).hexdigest()}


def check_sum(values: Any) -> None:
    """Raise ValueError unless what was read is an object that was written with its sum."""
    if not isinstance(values, dict) or with_sum(values)["sum"] != values.get("sum"):
        raise ValueError("it is not what was written")


def write_durably(path: Path, text: str) -> None:
    """Replace a file by `text` at once: after a crash it holds either the old text or the new."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    fsync(path.parent)


def disk_trouble(error: BaseException) -> str | None:
    """Why a disk would not take what was written, None for an error of another kind.

    Python's own errors carry a number; the libraries that write tensors and tokenizers keep it in their text.
    """
    if isinstance(error, OSError) and error.errno in _TROUBLES:
        return f"{error.strerror}{f' ({error.filename})' if error.filename else ''}"
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found and int(found.group(1)) in _TROUBLES:
        return os.strerror(int(found.group(1)))
    if any(words in str(error) for words in _OF_TORCH):
        return "a file could not be written whole"
    return None


_OF_TORCH = ("PytorchStreamWriter failed", "unexpected pos", "iostream error")
"""What torch.save says where its file takes no more, by how much of it was written."""
_TROUBLES = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO,
    errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
