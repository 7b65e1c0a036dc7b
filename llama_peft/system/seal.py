"""Sealed folders: a manifest of sums, written last, proves that every file in a folder is whole.

A seal is renamed into place after everything that it names has reached the disk. A folder without a
seal that verifies counts as absent, so a kill at any moment loses at most the work since the last
seal. A sum has no key, so it proves that a file is whole, and not who wrote it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.system.files import LARGEST, fsync, inside, read_json, sha256, sum_of, write_text
from llama_peft.system.memory import available

SEAL = "manifest.json"


def file_sums(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """The sum of each file by its name in the folder; every file is on the disk afterwards."""
    sums = {}
    for file in sorted(files):
        fsync(file)
        sums[file.relative_to(folder).as_posix()] = sha256(file)
    return sums


def seal(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write the folder's manifest, last.

    names: the files that it vouches for; None for all that the folder holds.
    """
    held = [path for path in folder.rglob("*") if path.is_file()]
    files = [folder / name for name in names] if names is not None else held
    files = [path for path in files if path != folder / SEAL]
    write_text(folder, SEAL, json.dumps(file_sums(folder, files), indent=1))
    fsync(folder.parent)


def is_sealed(folder: Path) -> bool:
    """Whether every file that the manifest names is there and whole."""
    try:
        sums = read_json(folder, SEAL)
        return isinstance(sums, dict) and bool(sums) and not damaged(folder, sums)
    except (OSError, ValueError, TypeError, UserError):
        return False


def damaged(folder: Path, sums: Mapping[str, object]) -> list[str]:
    """The names of the files whose sum is wrong.

    Raises OSError if a file is missing, and UserError if a name or a symbolic link leads out of the
    folder, or if a file is larger than the free memory: no use of it would fit, and its sum would
    take for ever.
    """
    room = max(available(), LARGEST)
    for name in sums:
        if inside(folder, name).stat().st_size > room:
            raise UserError(f"{folder / name}: this file is too large to be read")
    return [name for name, digest in sums.items() if sum_of(folder, name) != digest]
