"""Searches for tokens, keys and paths of this machine in every byte of the files that are about to be pushed."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.run_folder.layout import CHECKPOINTS, WEIGHTS_SUFFIX

# Each pattern begins with fixed letters: one that begins with alternatives, or looks behind, takes minutes on weights.
_PATTERNS = {
    "a Hugging Face token": (rb"hf_[A-Za-z0-9]{20}", rb"api_org_[A-Za-z0-9]{20}"),
    "a GitHub token": (rb"gh[pousr]_[A-Za-z0-9]{30}", rb"github_pat_\w{30}"),
    "an OpenAI or Anthropic key": (rb"sk-(?:proj-|ant-)?[A-Za-z0-9_-]{24}",),
    "an AWS key": (rb"AKIA[A-Z0-9]{16}(?![A-Za-z0-9])", rb"ASIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    "a Google key": (rb"AIza[A-Za-z0-9_-]{35}",),
    "a Slack token": (rb"xox[abprs]-[A-Za-z0-9-]{10}",),
    "a private key": (rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",),
}
_BEFORE = re.compile(
    rb"(?:^|[^A-Za-z0-9]|\\[nrtbfv]|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}|%[0-9a-fA-F]{2}"
    rb"|(?:\x1b|\\[xX]1[bB]|\\u001[bB]|\\033|\\e)\[[0-9;:?]*[A-Za-z])\Z"
)
"""What may stand before a token: anything but a letter or a digit, unless it ends an escape sequence of JSON, Python, a URL or
a terminal.
"""
_LONGEST_BEFORE = 64
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY")
_SHORTEST = 12
"""Shorter values of environment variables are not searched for: they would be found everywhere."""
_LARGEST = 64_000_000
"""Bytes; larger files that are not pushed are not searched."""


def scan(pushed: Path, run: Path) -> None:
    """Raise UserError if a file to be pushed holds a secret or a path of this machine, or a text of the run holds a secret.

    A token in a file that is not pushed is refused too, because people copy from run folders.
    """
    values = list(secret_values())
    paths = machine_paths(run)
    found = []
    for file in sorted(path for path in pushed.rglob("*") if path.is_file()):
        raw = file.read_bytes()
        what = _secret(raw, values) or _path(raw, paths)
        if what:
            found.append(f"{file.relative_to(pushed)} holds {what}")
    for file in _texts(run):
        what = _secret(file.read_bytes(), values)
        if what:
            found.append(f"{file} holds {what}")
    if found:
        raise UserError(
            "\n  ".join(
                [
                    "nothing is pushed; remove these secrets or paths from the files, and revoke every secret:",
                    *found,
                ]
            )
        )


def secret_values() -> Iterator[bytes]:
    """The values of the user's own secrets: the Hub token, and environment variables named as a token, key or password."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        yield token.encode()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name.upper()) and len(value) >= _SHORTEST:
            yield value.encode()


def machine_paths(run: Path) -> list[bytes]:
    """The beginnings of paths on this machine, in HTML too: the home, working and temporary folders, and the run's."""
    from markupsafe import escape

    folders = {Path.home(), Path.cwd(), Path(tempfile.gettempdir()), run.resolve()}
    begins = {f"{folder}/" for folder in folders if len(folder.parts) > 1}
    return sorted(one.encode() for one in begins | {str(escape(begin)) for begin in begins})


def _secret(raw: bytes, values: Sequence[bytes]) -> str | None:
    """The kind of the first secret in a file; None if there is none."""
    for text in _decoded(raw):
        if any(value in text for value in values):
            return "the value of one of your secrets"
        for name, patterns in _PATTERNS.items():
            if any(_holds(text, pattern) for pattern in patterns):
                return name
    return None


def _holds(text: bytes, pattern: bytes) -> bool:
    """Whether a token of a pattern stands in a text, and not inside a longer word."""
    compiled, start = re.compile(pattern), 0
    while found := compiled.search(text, start):
        start = found.start()
        if _BEFORE.search(text[max(0, start - _LONGEST_BEFORE) : start]):
            return True
        start += 1
    return False


def _decoded(raw: bytes) -> Iterator[bytes]:
    """The bytes as they are and, if zeros are among them, decoded from UTF-16, in which Windows shells write logs."""
    yield raw
    if b"\0" in raw:
        for order in ("utf-16-le", "utf-16-be"):
            yield raw.decode(order, "ignore").encode("utf-8", "ignore")


def _path(raw: bytes, paths: Sequence[bytes]) -> str | None:
    """The first path of this machine in a file, as words for the message; None if there is none."""
    found = next((path for path in paths if path in raw), None)
    return f"a path of this machine ({found.decode()}...)" if found else None


def _texts(run: Path) -> Iterator[Path]:
    """The files of the run folder, without weights and checkpoints."""
    for file in sorted(run.rglob("*")):
        inside = file.relative_to(run).parts
        if inside[0] == CHECKPOINTS or file.suffix == WEIGHTS_SUFFIX or not file.is_file():
            continue
        if file.stat().st_size <= _LARGEST:
            yield file
