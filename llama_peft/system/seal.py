"""Sealed folders: a manifest of sums, written last, proves that every file in a folder is whole.

A seal is renamed into place after everything that it names has reached the disk. A folder without a
seal that verifies counts as absent, so a kill at any moment loses at most the work since the last
seal.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from llama_peft.system.files import fsync, sha256, write_durably

SEAL = "manifest.json"


def file_sums(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """The sum of each file by its name in the folder; every file is on the disk afterwards."""
    sums = {}
    for file in sorted(files):
        fsync(file)
        sums[file.relative_to(folder).as_posix()] = sha256(file)
    return sums


def seal(folder: Path) -> None:
    """Write the folder's manifest, last."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != SEAL]
    write_durably(folder / SEAL, json.dumps(file_sums(folder, files), indent=1))
    fsync(folder.parent)


def is_sealed(folder: Path) -> bool:
    """Whether every file that the manifest names is there and whole."""
    try:
        sums = json.loads((folder / SEAL).read_text("utf-8"))
        return bool(sums) and not damaged(folder, sums)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def damaged(folder: Path, sums: Mapping[str, str]) -> list[str]:
    """The names of the files whose sum is wrong.

    Raises OSError if a file is missing, and ValueError if a name or a symbolic link leads out of
    the folder.
    """
    return [name for name, digest in sums.items() if sha256(_inside(folder, name)) != digest]


def _inside(folder: Path, name: str) -> Path:
    """A file of a folder. A snapshot in the Hub's cache is a folder of links to the blobs beside
    it.
    """
    path, home = folder / name, folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if ".." in Path(name).parts or not any(path.resolve().is_relative_to(each) for each in homes):
        raise ValueError(f"{name} leads out of the folder")
    return path
