"""The one reader and writer of files in folders that a stranger may have made.

A run folder can come from anybody, with links, pipes and devices in it. So nothing is read unless
it is a regular file below the folder's real path, and nothing is written through a link: the text
goes to a new file whose name nobody can guess, which is then renamed. After a crash each file is
whole or absent.

Functions take a folder and the name of a file in it ("tuned/results.json"). Only the folder itself
may be a link, because its user named it.
"""

import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from llama_peft.errors import UserError

if TYPE_CHECKING:
    from pydantic import JsonValue

JsonObject = dict[str, "JsonValue"]

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.partial")
"""Names of files and folders that are not written to their end. They are ours, whatever they hold."""
LARGEST = 1_000_000_000
"""Bytes of a file that is read as a whole; weights are not."""
_DEEPEST = 50
"""How deep the values of a JSON file may be nested; ours are 6 deep."""
# Windows lacks the first two, and would write "\r\n" for "\n" without the third, which only it has.
_NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT: int = getattr(os, "O_NONBLOCK", 0)  # to open a pipe without a writer would wait for ever
_AS_IT_IS: int = getattr(os, "O_BINARY", 0)


def inside(folder: Path, name: str) -> Path:
    """The real path of a file of a folder, which need not exist.

    A snapshot in the Hub's cache is a folder of links to the blobs beside it; those are inside too.
    Raises UserError if the name or a link leads out of the folder.
    """
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    try:
        found = (home / name).resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise UserError(f"{folder / name}: this path cannot be followed: {_why(error)}") from None
    if ".." in Path(name).parts or not any(found.is_relative_to(each) for each in homes):
        raise UserError(
            f"{folder / name}: this path leads out of {folder}; a link there is not followed, so "
            "put the file itself there"
        )
    return found


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file to read its bytes. Links are followed, because the user named this path.

    Raises UserError for what is not a regular file: a pipe would wait, a device would never end.
    """
    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | _AS_IT_IS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: this is not a regular file")
    return open(descriptor, "rb")


def read_whole(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a file that the user named. Raises OSError, or UserError as `open_regular`.

    largest: bytes; a larger file is refused with a UserError.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise UserError(
                f"{path}: this file is too large: it has {size:,} bytes, and at most {largest:,} "
                "are read"
            )
        return file.read()


def read_bytes(folder: Path, name: str, largest: int) -> bytes:
    """The bytes of a file of a folder. Raises OSError, or UserError as `read_whole` and `inside`."""
    return read_whole(inside(folder, name), largest)


def read_text(folder: Path, name: str, errors: str = "strict", largest: int = LARGEST) -> str:
    """The text of a UTF-8 file of a folder. Raises ValueError, or as `read_bytes`.

    errors: what to do with other bytes, as in `bytes.decode`. largest: as in `read_whole`.
    """
    return read_bytes(folder, name, largest).decode("utf-8", errors)


def read_json(folder: Path, name: str) -> "JsonValue":
    """The value of a JSON file of a folder. Raises OSError, ValueError as `parse_json`, or UserError
    as `inside`.
    """
    return parse_json(read_text(folder, name))


def parse_json(text: str) -> "JsonValue":
    """The value of a JSON text.

    Raises ValueError for what is not JSON, and for what makes trouble later: numbers that are not
    finite, deep nesting, and text that cannot be written to a file.
    """
    try:
        value: JsonValue = json.loads(
            text, parse_constant=_finite, parse_float=_finite, parse_int=_whole
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(value, _DEEPEST)
    if "\\u" in text:  # an unpaired surrogate raises a UnicodeEncodeError, which is a ValueError
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"{word[:20]} is not a number that can be used")
    return number


def _whole(digits: str) -> int:
    _finite(digits)  # an integer may be too large for any computation with fractions
    return int(digits)


def _check_depth(value: "JsonValue", left: int) -> None:
    if left == 0:
        raise ValueError("it is nested too deeply")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        if isinstance(each, dict | list):  # a call for each number would take too long
            _check_depth(each, left - 1)


def is_file(folder: Path, name: str) -> bool:
    """Whether a folder holds a regular file of this name. Raises UserError as `inside`."""
    return inside(folder, name).is_file()


def sha256(path: Path) -> str:
    """The sum of a file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sum_of(folder: Path, name: str) -> str:
    """The sum of the bytes of a file of a folder."""
    return sha256(inside(folder, name))


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


def write_summed(folder: Path, name: str, values: Mapping[str, object]) -> None:
    """Write values as JSON with their sum."""
    write_text(folder, name, json.dumps(with_sum(values), indent=1, ensure_ascii=False))


def read_summed(folder: Path, name: str, required: bool = True) -> JsonObject:
    """The values of a JSON file without their sum.

    required: whether a file without a sum is refused; files of other tools have none. Raises
    OSError, UserError as `inside`, or ValueError if the file is not an object or has a wrong sum.
    """
    values = read_json(folder, name)
    if not isinstance(values, dict):
        raise ValueError("it does not hold a JSON object")
    if required or "sum" in values:
        check_sum(values)
    values.pop("sum", None)
    return values


def write_text(folder: Path, name: str, text: str | Iterable[str]) -> None:
    """Replace a file of a folder at once: after a crash it holds either the old text or the new.

    Raises OSError, or UserError as `inside`.
    """
    with new_file(folder, name) as path, _created(path) as file:
        file.writelines([text] if isinstance(text, str) else text)


@contextmanager
def new_file(folder: Path, name: str) -> Iterator[Path]:
    """A path to write a file to; afterwards the file gets its name. After an error it is removed."""
    place = _place(folder, name)
    partial = place.with_name(_unfinished(place.name))
    try:
        yield partial
        fsync(partial)
        partial.replace(place)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    fsync(place.parent)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder in a folder, to write to; afterwards it is removed."""
    path = folder / _unfinished("scratch")
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def new_folder(folder: Path, name: str) -> Iterator[Path]:
    """An empty folder to write to; afterwards it gets its name. After an error it is removed.

    Raises OSError if the name is taken by then, and leaves what is there.
    """
    place = _place(folder, name)
    partial = place.with_name(_unfinished(place.name))
    partial.mkdir()
    try:
        yield partial
        partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    fsync(place.parent)


def copy(folder: Path, name: str, place: Path) -> None:
    """Copy a file of a folder to a new place. Raises OSError, or UserError as `inside`."""
    with open_regular(inside(folder, name)) as source, place.open("xb") as target:
        shutil.copyfileobj(source, target)


def append(folder: Path, name: str) -> TextIO:
    """Open a file of a folder to write behind its text. A link is not followed: OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK | _NO_WAIT | _AS_IT_IS
    descriptor = os.open(_place(folder, name), flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{folder / name}: this is not a regular file")
    return os.fdopen(descriptor, "a", encoding="utf-8", newline="\n")


def make_folder(folder: Path, name: str) -> Path:
    """Make a folder in a folder, if it is not there. Raises UserError as `inside`."""
    path = inside(folder, name)
    path.mkdir(parents=True, exist_ok=True)
    return path


def remove_file(folder: Path, name: str) -> None:
    """Remove a file, or a link itself; one that is absent is no error. Raises UserError as `inside`."""
    _place(folder, name).unlink(missing_ok=True)


def remove_tree(folder: Path, name: str) -> None:
    """Remove a folder with all that it holds, a file, or a link itself. Raises UserError as
    `inside`.
    """
    place = _place(folder, name)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def move(folder: Path, names: Iterable[str], source: str, target: str) -> None:
    """Move files from one folder inside a folder to another; folders that become empty are removed.

    source, target: names of folders inside `folder`; "." is the folder itself.
    """
    moved = list(names)
    for name in moved:
        old, new = _place(folder, f"{source}/{name}"), f"{target}/{name}"
        make_folder(folder, str(Path(new).parent))
        old.rename(_place(folder, new))
    _remove_emptied(folder / source, moved)


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files of a folder, and the folders in it that become empty."""
    removed = list(names)
    for name in removed:
        remove_file(folder, name)
    _remove_emptied(folder, removed)


def _remove_emptied(folder: Path, names: Iterable[str]) -> None:
    """Remove the folders that held files of these names, unless something else is in them."""
    emptied = {parent for name in names for parent in Path(name).parents if parent.name}
    for parent in sorted(emptied, key=lambda path: -len(path.parts)):
        with suppress(OSError):
            (folder / parent).rmdir()


def rename(folder: Path, old: str, new: str) -> None:
    """Give a file or folder of a folder another name there. A link is renamed itself."""
    _place(folder, old).rename(_place(folder, new))


def publish(folder: Path, old: str, new: str) -> None:
    """Rename a file of a folder. Raises FileExistsError, and replaces nothing, if the name is taken."""
    source, target = _place(folder, old), _place(folder, new)
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # a file system or Windows: no second name of a file
        if os.path.lexists(target):
            raise FileExistsError(f"{target}: this name is taken") from None
        source.rename(target)
    source.unlink(missing_ok=True)
    fsync(target.parent)


def prune(folder: Path, name: str) -> None:
    """Remove the empty folders in a folder, and the folder if nothing is left in it."""
    place = _place(folder, name)
    for path in [*sorted(place.rglob("*"), reverse=True), place]:
        with suppress(OSError):  # it is not an empty folder
            path.rmdir()


def is_unfinished(name: str) -> bool:
    """Whether a name is that of a file or folder that a killed process left behind."""
    return _UNFINISHED.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder. Call it only while no other process writes."""
    for path in list(folder.iterdir()):
        if is_unfinished(path.name):
            remove_tree(folder, path.name)


def fsync(path: Path) -> None:
    """Wait until a file or folder has reached the disk; Windows opens no folder for this."""
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(folder: Path, name: str) -> Path:
    """Where to put, move or remove a file: its real parent and its name, which is not followed."""
    return inside(folder, str(Path(name).parent)) / Path(name).name


def _unfinished(name: str) -> str:
    return f".{name[-100:].lstrip('.')}.{secrets.token_hex(8)}.partial"


def _created(path: Path) -> TextIO:
    """Open a new file; one that exists, or a link, is an error."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _AS_IT_IS
    return os.fdopen(os.open(path, flags, 0o666), "w", encoding="utf-8", newline="\n")


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
