"""Searches every byte of the files to be pushed for tokens, keys and paths of this machine."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.run_folder.layout import CHECKPOINTS, WEIGHTS_SUFFIX
from llama_peft.system.secrets import kind_of_secret, own_values

_LARGEST = 64_000_000
"""Bytes; larger files that are not pushed are not searched."""


def scan(pushed: Path, run: Path) -> None:
    """Raise UserError if a file to be pushed holds a secret or a path of this machine, or a text of
    the run holds a secret.

    A token in a file that is not pushed is refused too, because people copy from run folders.
    """
    import huggingface_hub  # noqa: F401  so that the Hub's token is among the secrets

    values = [value.encode() for value in own_values()]
    paths = machine_paths(run)
    found = []
    for file in sorted(path for path in pushed.rglob("*") if path.is_file()):
        raw = file.read_bytes()
        what = kind_of_secret(raw, values) or _path(raw, paths)
        if what:
            found.append(f"{file.relative_to(pushed)} holds {what}")
    for file in _texts(run):
        what = kind_of_secret(file.read_bytes(), values)
        if what:
            found.append(f"{file} holds {what}")
    if found:
        raise UserError(
            "nothing is pushed; remove these secrets or paths from the files, and revoke every secret:",
            *found,
        )


def machine_paths(run: Path) -> list[bytes]:
    """The beginnings of paths on this machine, in HTML too: the home, working and temporary
    folders, and the run's.
    """
    from markupsafe import escape

    folders = {Path.home(), Path.cwd(), Path(tempfile.gettempdir()), run.resolve()}
    begins = {f"{folder}/" for folder in folders if len(folder.parts) > 1}
    return sorted(one.encode() for one in begins | {str(escape(begin)) for begin in begins})


def _path(raw: bytes, paths: Sequence[bytes]) -> str | None:
    """The first path of this machine in a file, as words for the message; None if there is none."""
    found = next((path for path in paths if path in raw), None)
    return f"a path of this machine ({found.decode()}...)" if found else None


def _texts(run: Path) -> Iterator[Path]:
    """The regular files of the run folder, without weights and checkpoints. What a link names is
    not a file of the run, and a pipe or a device has no end.
    """
    for file in sorted(run.rglob("*")):
        searched = file.relative_to(run).parts[0] != CHECKPOINTS and file.suffix != WEIGHTS_SUFFIX
        if (
            searched
            and not file.is_symlink()
            and file.is_file()
            and file.stat().st_size <= _LARGEST
        ):
            yield file
