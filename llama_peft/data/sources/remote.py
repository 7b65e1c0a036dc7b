"""Files behind URLs (s3://, gs://, hf://, https://, ...), through fsspec.

Credentials come from where the store's own package looks for them: the environment, or its
settings. A recipe holds none, so nothing of a run can show them.
"""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from llama_peft.errors import UserError
from llama_peft.system.sequences.nameless import check_disk, scratch

if TYPE_CHECKING:
    import fsspec

_PIECE = 1 << 22
"""Bytes that are fetched at once."""


@contextmanager
def fetched(url: str) -> Iterator[io.BufferedReader]:
    """Fetch a file into one without a name. Raises UserError if it cannot be read, or if the disk is
    too small.
    """
    with tempfile.TemporaryFile(dir=scratch()) as file:
        with _in_words(url):
            system, path = _found(url)
            with system.open(path, mode="rb") as remote:
                while piece := remote.read(_PIECE):
                    check_disk(url, len(piece))
                    file.write(piece)
        file.seek(0)
        yield cast("io.BufferedReader", io.BufferedReader(cast("io.RawIOBase", file)))


def listed(url: str) -> dict[str, bool] | None:
    """Return the names in a folder behind a URL, and whether each is a file; None if it is no folder."""
    with _in_words(url):
        system, path = _found(url)
        if not _has_folders(url) or system.isfile(path) or not system.isdir(path):
            return None
        entries = system.ls(path, detail=True)
        return {
            str(system.unstrip_protocol(entry["name"])): entry["type"] == "file"
            for entry in entries
            if entry["name"].rstrip("/") != path.rstrip("/")  # a mark that some stores keep
        }


def matching(url: str) -> list[str]:
    """Return the files behind URLs that fit a pattern."""
    with _in_words(url):
        system, path = _found(url)
        found = system.glob(path, detail=True).items()
        return [str(system.unstrip_protocol(name)) for name, own in found if own["type"] == "file"]


def _has_folders(url: str) -> bool:
    """Return whether a kind of store can list what it holds: a web server cannot."""
    return not url.startswith(("http://", "https://"))


def _found(url: str) -> "tuple[fsspec.AbstractFileSystem, str]":
    """Return the store of a URL, and the path in it."""
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    return system, str(path)


@contextmanager
def _in_words(url: str) -> Iterator[None]:
    """Turn what goes wrong in a store into one line: each package has errors of its own."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(
            f"{url}: there is no such file, or nothing answers at this address"
        ) from None
    except ImportError as error:
        package = _package(url)
        advice = f": install the package that reads it: pip install {package}" if package else ""
        raise UserError(f"{url}: {_first_line(error)}{advice}") from None
    except Exception as error:
        raise UserError(
            f"{url}: cannot be read ({type(error).__name__}: {_first_line(error)}): check the "
            "address, the network and the credentials in the environment"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _package(url: str) -> str | None:
    """Return the package that fsspec needs for a kind of URL."""
    from fsspec.registry import known_implementations

    known = known_implementations.get(url.partition("://")[0])
    return None if known is None else str(known["class"]).partition(".")[0]
