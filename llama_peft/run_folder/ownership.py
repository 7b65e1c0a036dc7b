"""Which files are ours: only these are ever replaced, moved or removed.

A user may name any folder, so nothing is done in a folder that something else made. A run folder is
ours only if a record in it says so, and even then it may hold files of its user, which stay where
they are. What of ours would be a link or a pipe is refused: we write neither.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, load_recipe, strict_yaml
from llama_peft.run_folder.layout import (
    ADAPTER,
    ADAPTER_FILES,
    CARD,
    CHARTS,
    CHECKPOINT,
    CHECKPOINT_FILE,
    CHECKPOINTS,
    COMPARISON,
    EVALUATION,
    EVALUATION_FILES,
    LADDER,
    MOVING,
    PREDICTIONS,
    PREVIOUS,
    RECIPE,
    REPORT,
    RESULTS,
    SPENT,
    THRESHOLD,
    TRAINED_FILES,
    TRAINING,
    TUNED,
    UNFINISHED,
)
from llama_peft.system import files
from llama_peft.system.lock import HOLDER, LOCK
from llama_peft.system.processes.job import numbered_files
from llama_peft.system.seal import SEAL

_SECTIONS = [key for key, field in Recipe.model_fields.items() if field.exclude_if is None]
"""Keys that every recipe of a run has at its top."""
_RECORD_KEYS = ('"base_fingerprint"', '"history_sha256"')
"""Keys of training.json that no other tool writes."""
_SPENT_KEYS = {"seconds", "peak_memory_bytes"}
_LINE_KEYS = {"id", "prediction", "gold", "split"}
_UNFINISHED_START = re.compile(r'[0-9a-f]{8} \{"key": "')
_FIRST_LINE = 1 << 24
"""Bytes of the first line of predictions that are read at most."""
_SIGN = "<!-- llama_peft wrote this card; sha256: "
REPORT_POLICY = "default-src 'none'; style-src '"
"""The beginning of a report's policy: it loads nothing from elsewhere."""
CHART_SIGN = "llama_peft drew this chart"
"""What the files of a chart hold."""
_SIGNS = {
    REPORT: REPORT_POLICY,
    COMPARISON: '"results_sha256"',
    THRESHOLD: "_threshold",
}
"""Words that each of these files holds if it is ours, even if it is damaged or was cut."""


def check_run_folder(folder: Path) -> None:
    """Raise UserError unless a training may use a folder. Nothing is written.

    It may if the folder is absent, empty or a run of ours, or if it holds nothing but evaluations
    of ours and names that begin with a dot. The folder itself may be a link, but nothing of ours in
    it may be one.
    """
    try:
        if not folder.is_dir():
            return  # whoever makes it says why that is impossible
        _refuse(_odd_places(folder))
        for place in (PREVIOUS, MOVING):
            _check_aside(folder, place)
        if is_ours(folder):
            return
        foreign = [path.name for path in sorted(folder.iterdir()) if not _may_stay(path)]
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be read: {error.strerror}") from None
    if foreign:
        raise UserError(
            f"{folder}: this folder holds something that no training of ours made "
            f"({', '.join(foreign[:3])}), and nothing says that it is a run; choose another "
            "train.output_dir, or an empty folder"
        )


def _check_aside(folder: Path, place: str) -> None:
    """Refuse anything but a run of ours where `--fresh` puts an earlier run aside."""
    held = {
        path.relative_to(folder / place).as_posix()
        for path in (folder / place).rglob("*")
        if not path.is_dir()
    }
    recipe = _text(folder, f"{place}/{RECIPE}")
    if held - {*run_files(folder, place)} or (recipe and not _has_record(folder, place)):
        raise UserError(
            f"{folder / place}: this folder holds something that no training of ours made; move it "
            "away, because an earlier run is kept there until the new one is trained"
        )


def check_evaluation_folder(folder: Path) -> None:
    """Raise UserError unless an evaluation may use a folder. Nothing is written.

    It may unless the folder holds files with the names of an evaluation that none of ours wrote.
    """
    try:
        if folder.is_symlink() and is_ours(folder.parent):
            _refuse([folder])
        if not folder.is_dir():
            return
        names = (*evaluation_files(folder), LOCK, HOLDER)
        _refuse(path for name in names if _is_odd(path := folder / name))
        foreign = _foreign_result(folder)
        if foreign is None or (EVALUATION.fullmatch(folder.name) and is_ours(folder.parent)):
            return
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be read: {error.strerror}") from None
    raise UserError(
        f"{folder / foreign}: no evaluation of ours wrote this file, which would be replaced; "
        "choose another folder with --output, or move the file"
    )


def evaluation_files(folder: Path) -> list[str]:
    """The names of an evaluation's files, and of those that its processes have left in a folder."""
    left = {path.name for name in UNFINISHED for path in numbered_files(folder / name)}
    return [*EVALUATION_FILES, *sorted(left - {*EVALUATION_FILES})]


def is_ours(folder: Path) -> bool:
    """Whether a record in a folder says that a training of ours made it, finished or not.

    The record may be in the run that `--fresh` has put aside. Raises UserError if it is a link that
    leads out of the folder.
    """
    return any(_has_record(folder, place) for place in (".", PREVIOUS, MOVING))


def _has_record(folder: Path, place: str) -> bool:
    record = _text(folder, f"{place}/{TRAINING}")
    if any(key in record for key in _RECORD_KEYS):
        return True
    checkpoints = checkpoint_folders(folder / place / CHECKPOINTS)
    if any(_has_keys(_text(path, SPENT), _SPENT_KEYS) for path in checkpoints):
        return True
    return _is_resolved(_text(folder, f"{place}/{RECIPE}"))


def _text(folder: Path, name: str) -> str:
    """The text of a file; empty if there is no such file."""
    try:
        return files.read_text(folder, name, "replace") if files.is_file(folder, name) else ""
    except OSError:
        return ""


def _is_resolved(text: str) -> bool:
    """Whether a text is a recipe with every section written out, as only a run folder holds it."""
    if not all(f"\n{key}:" in f"\n{text}" for key in _SECTIONS):
        return False
    try:
        value = strict_yaml.read(text).value
        return isinstance(value, dict) and bool(load_recipe(value))
    except (strict_yaml.YamlFaults, UserError):
        return False


def _has_keys(text: str, keys: set[str]) -> bool | None:
    """Whether a text is a JSON object with these keys; None if it is not JSON."""
    try:
        value = files.parse_json(text)
    except ValueError:
        return None
    return isinstance(value, dict) and keys <= value.keys()


def _may_stay(path: Path) -> bool:
    """Whether a training may begin beside a file or folder."""
    if path.name.startswith("."):
        return True
    if path.name == LADDER:
        return _is_folder(path)
    named = EVALUATION.fullmatch(path.name) is not None
    return named and _is_folder(path) and _foreign_result(path) is None


def _foreign_result(folder: Path) -> str | None:
    """The name of a file of an evaluation that none of ours wrote; None if there is none.

    A damaged file is ours if another one beside it is.
    """
    names = [name for name in evaluation_files(folder) if _size(folder / name)]
    held = {name: _is_our_result(folder, name) for name in names}
    if held and (False in held.values() or True not in held.values()):
        return next(name for name, ours in held.items() if not ours)
    return None


def _is_our_result(folder: Path, name: str) -> bool | None:
    """Whether an evaluation of ours wrote a file; None if it is damaged, so that nobody can say."""
    if name == RESULTS:
        return _is_our_summary(files.read_text(folder, name, "replace"))
    with files.open_regular(files.inside(folder, name)) as file:
        line = file.readline(_FIRST_LINE).decode("utf-8", "replace")
    if name == PREDICTIONS:
        return _has_keys(line, _LINE_KEYS)
    return _UNFINISHED_START.match(line) is not None


def _is_our_summary(text: str) -> bool | None:
    """As `_is_our_result`, for results.json. The harness that has the same form writes no sum."""
    try:
        value = files.parse_json(text)
    except ValueError:
        return None
    config = value.get("config") if isinstance(value, dict) and "sum" in value else None
    return isinstance(config, dict) and "model_kind" in config


def run_files(folder: Path, place: str = ".") -> list[str]:
    """The names of all files in a run folder that a training wrote, or an evaluation of its weights.

    Zero-shot results are not among them, because they stay right when the run is trained again; and
    the folder's own lock is not. place: the run's place in the folder, if it was put aside.
    """
    run = folder / place
    if place != "." and not _is_folder(run):
        return []
    names = [name for name in TRAINED_FILES if is_our_file(run, name)] + chart_files(run)
    names += [f"{ADAPTER}/{name}" for name in ADAPTER_FILES]
    for path in checkpoint_folders(run / CHECKPOINTS):
        names += [f"{CHECKPOINTS}/{path.name}/{name}" for name in checkpoint_files(path)]
    for path in tuned_folders(run):
        if _foreign_result(path) is not None:
            continue
        names += [f"{path.name}/{name}" for name in (*evaluation_files(path), LOCK, HOLDER)]
    cards = [CARD, f"{CHECKPOINTS}/{CARD}", f"{ADAPTER}/{CARD}"]
    names += [name for name in cards if _is_card(run, name)]
    return [name for name in names if _is_file(run, name)]


def tuned_folders(folder: Path) -> list[Path]:
    """The folders of the evaluations of a run's own weights. Links are not among them."""
    tuned = re.compile(rf"{TUNED}(-.*)?")
    return [path for path in _folders(folder) if tuned.fullmatch(path.name)]


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """The folders `checkpoint-<step>`, the newest first. Links are not among them."""
    inner = _folders(checkpoints) if _is_folder(checkpoints) else []
    found = [path for path in inner if CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: -int(path.name.partition("-")[2]))


def checkpoint_files(folder: Path) -> list[str]:
    """The names of the files in a checkpoint that a training wrote.

    These are the names that Trainer uses, and those in the seal: other versions wrote other files.
    """
    try:
        sealed = files.read_json(folder, SEAL)
    except (OSError, ValueError, UserError):
        sealed = None
    known = sealed.keys() if isinstance(sealed, dict) else ()
    inner = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")))
    return [
        name
        for name in inner
        if (CHECKPOINT_FILE.fullmatch(name) or name in known or files.is_unfinished(name))
        and _is_file(folder, name)
    ]


def is_our_file(folder: Path, name: str, kind: str | None = None) -> bool:
    """Whether a file of a run folder may be replaced: it is absent, empty, or holds what ours hold.

    kind: the usual name of such a file, if it has another one.
    """
    text = _text(folder, name)
    sign = CHART_SIGN if name.startswith(f"{CHARTS}/") else _SIGNS.get(kind or name, "")
    return not text.strip() or sign in text


def chart_files(folder: Path) -> list[str]:
    """The names of the files of a report's charts that we drew."""
    inner = sorted((folder / CHARTS).iterdir()) if _is_folder(folder / CHARTS) else []
    names = (f"{CHARTS}/{path.name}" for path in inner if path.suffix in (".svg", ".png"))
    return [name for name in names if _is_file(folder, name) and is_our_file(folder, name)]


def signed_card(text: str) -> str:
    """A card with a last line that says who wrote it, and what its text was."""
    body = f"{text.rstrip()}\n"
    return f"{body}{_SIGN}{files.sha256_of(body)} -->\n"


def is_our_card(text: str) -> bool:
    """Whether a card is as we wrote it. One that its user has changed is the user's."""
    body, _, last = text.rpartition(_SIGN)
    return last.rstrip() == f"{files.sha256_of(body)} -->"


def _is_card(folder: Path, name: str) -> bool:
    """Whether a README.md is our card, or one that a library wrote during a training."""
    text = _text(folder, name) if _is_file(folder, name) else ""
    made = text.startswith("---\n") and "\nlibrary_name: " in text
    return is_our_card(text) or (made and name != CARD)


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, without links; none if there is no such folder."""
    return sorted(path for path in folder.iterdir() if _is_folder(path)) if folder.is_dir() else []


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_file(folder: Path, name: str) -> bool:
    """Whether a folder holds a file of this name, or a link in its place."""
    path, above = folder / name, list(Path(name).parents)[:-1]
    return all(_is_folder(folder / each) for each in above) and (
        path.is_symlink() or path.is_file()
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _odd_places(folder: Path) -> Iterator[Path]:
    """Yield what is not a file, or not a folder, although it has a name that we write."""
    yield from (path for name in TRAINED_FILES if _is_odd(path := folder / name))
    tuned = [path.name for path in folder.glob(f"{TUNED}*") if EVALUATION.fullmatch(path.name)]
    for name in (CHECKPOINTS, ADAPTER, CHARTS, PREVIOUS, MOVING, *tuned):
        path = folder / name
        if os.path.lexists(path) and not _is_folder(path):
            yield path
            continue
        for inner in path.rglob("*"):
            known = (*TRAINED_FILES, *ADAPTER_FILES, *evaluation_files(inner.parent))
            ours = inner.name in known
            if _is_odd(inner) and (ours or not _is_folder(inner)):
                yield inner


def _is_odd(path: Path) -> bool:
    """Whether something is there that is not a regular file."""
    return os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode)


def _refuse(places: "Iterator[Path] | list[Path]") -> None:
    for path in places:
        what = "a link" if path.is_symlink() else "not the kind of file that we write"
        raise UserError(
            f"{path}: this is {what}, so nothing is written or read there; remove it, or choose "
            "another folder"
        )
