"""What a place of data means: a file, several files that are read as one, or a name on the Hub."""

import difflib
import glob
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from llama_peft.data.sources import unpack
from llama_peft.data.sources.remote import listed, matching
from llama_peft.errors import UserError

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_SHEET, _CONVERT = (
    "save its sheet as CSV (UTF-8)",
    "write its rows as Parquet or CSV, such as with pandas",
)
_OTHERS = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), _SHEET),
    **dict.fromkeys((".arrow", ".feather", ".orc", ".avro", ".pkl", ".pickle", ".db"), _CONVERT),
}
"""What to do about files that are tables, and that are not read here."""
_TRAIN, _TEST = ("train", "training"), ("test", "testing")
_VALIDATION = ("validation", "valid", "val", "dev", "eval", "evaluation")
_SPLIT = re.compile(rf"(?i)(?<![a-z])({'|'.join((*_TRAIN, *_TEST, *_VALIDATION))})(?![a-z])")
"""Words in the names of files by which the Hub's layout tells the splits of a data set apart."""


def is_url(place: str) -> bool:
    """Return whether a place is behind a URL."""
    return "://" in place


def is_file_name(path: str) -> bool:
    """Return whether a user who writes this means files: one, a folder of them, a pattern or a URL.

    If not, it is a name on the Hub, or a folder in the Hub's layout.
    """
    if path == "tiny":
        return False
    if is_url(path):
        return True
    local = path.startswith(("/", "./", "../", "~"))
    if Path(path).is_dir():  # a bare name may be one on the Hub
        return (local or path.endswith("/")) and _is_one_table(Path(path))
    is_named = Path(path).suffix.lower() in (*FORMATS, *unpack.SUFFIXES)
    return local or is_named or Path(path).is_file() or glob.has_magic(path)


def _is_one_table(folder: Path) -> bool:
    """Return whether a folder holds data files alone, none of which is named after a split."""
    entries = [entry for entry in folder.iterdir() if not _is_note(entry.name)]
    return bool(entries) and all(
        entry.is_file() and format_of(entry.name) and not _SPLIT.search(entry.name)
        for entry in entries
    )


def files_beside(place: str) -> dict[str, str]:
    """Return the files of the test and the validation part, by names like that of the train part."""
    found, name = _SPLIT.search(PurePosixPath(place).name), PurePosixPath(place).name
    if is_url(place) or found is None or found[0].lower() not in _TRAIN:
        return {}

    def beside(word: str) -> str:
        if found[0][0].isupper():
            word = word.upper() if found[0].isupper() else word.capitalize()
        return place.removesuffix(name) + name[: found.start()] + word + name[found.end() :]

    return parts_in(lambda word: beside(word) if expanded(beside(word)).is_file() else None)


def parts_in(of: Callable[[str], str | None]) -> dict[str, str]:
    """Return the place of the test and the validation part under the first usual word that has one.

    of: returns the place of a part by such a word, or None if there is none.
    """
    words = {"validation": _VALIDATION, "test": _TEST}
    places = {part: [place for word in own if (place := of(word))] for part, own in words.items()}
    return {part: own[0] for part, own in places.items() if own}


def _is_note(name: str) -> bool:
    """Return whether programs that write folders of files leave such a file beside them (_SUCCESS)."""
    return name.startswith((".", "_"))


def format_of(name: str) -> str | None:
    """Return the format that a name says, also that of a packed file."""
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    return FORMATS.get(path.with_suffix("").suffix.lower() if suffix in unpack.SUFFIXES else suffix)


def check_readable(path: str) -> None:
    """Raise UserError for a file that is a table of another format."""
    if (advice := _OTHERS.get(PurePosixPath(path).suffix.lower())) is not None:
        raise UserError(f"{path}: this format is not read: {advice}")


def expanded(path: str) -> Path:
    """Return a local path whose beginning `~` is the user's home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"{path}: {error}") from None


def files_of(place: str, is_format_given: bool) -> list[str]:
    """Return the files that a place stands for, by name: those of a folder or of a pattern, or itself.

    is_format_given: the recipe says the format, so the names of the files need not. Raises UserError
    if there are none, or if the folder holds something else beside them.
    """
    folder = expanded(place)
    if is_url(place):
        entries = listed(place)
    elif folder.is_dir():
        entries = {str(entry): entry.is_file() for entry in folder.iterdir()}
    else:
        return _fitting(place, folder)
    if entries is None:
        return _fitting(place, folder)
    return sorted(_checked(place, entries.items(), is_format_given))


def _fitting(place: str, file: Path) -> list[str]:
    """Return the files that fit a pattern, or the place itself if it is none."""
    if not glob.has_magic(place) or (not is_url(place) and file.exists()):
        return [place]
    found = matching(place) if is_url(place) else glob.glob(str(file), recursive=True)
    files = [one for one in found if is_url(place) or Path(one).is_file()]
    if not files:
        raise UserError(f"{place}: no such file, and no file fits this pattern")
    return sorted(files)


def _checked(
    place: str, entries: Iterable[tuple[str, bool]], is_format_given: bool
) -> Iterable[str]:
    """Yield the data files of a folder. Raises UserError if it holds something else."""
    own = {name: is_file for name, is_file in entries if not _is_note(PurePosixPath(name).name)}
    formats = {format_of(name) for name in own}
    odd = next((name for name, is_file in own.items() if not is_file), None)
    if not is_format_given:
        odd = odd or next((name for name in own if format_of(name) is None), None)
    if odd is not None or (len(formats) > 1 and not is_format_given):
        what = f"holds {odd}, too" if odd is not None else "holds files of several formats"
        raise UserError(
            f"{place}: this folder {what}: name its data files by a pattern, such as "
            f"{place.rstrip('/')}/*.parquet"
        )
    if not own:
        raise UserError(f"{place}: this folder holds no data file")
    return own


def check_file(path: str, file: Path) -> None:
    """Raise UserError unless a path is that of a regular file."""
    if file.is_dir():
        raise UserError(f"{path}: is a folder: name a file in it")
    if file.exists() and not file.is_file():  # a socket cannot even be opened
        raise UserError(f"{path}: this is not a regular file")
    if file.exists():
        return
    if file.is_symlink():
        raise UserError(f"{path}: this is a link to itself or to a file that does not exist")
    if not file.parent.is_dir():
        raise UserError(f"{path}: no such file: there is no folder {file.parent}")
    names = [entry.name for entry in file.parent.iterdir()]
    near = difflib.get_close_matches(file.name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {file.parent / near[0]}?" if near else f" in {file.parent.resolve()}"
    raise UserError(f"{path}: no such file{hint}")
