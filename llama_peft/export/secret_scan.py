"""What must not leave this machine: tokens, keys and paths, looked for in every byte of a file that is about to be pushed."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from llama_peft.errors import UserError

# Each begins with the same letters always: a pattern of alternatives, or one that looks behind first, takes minutes on weights.
_SHAPES = {
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
"""What a token may stand behind: no letter of a word, but the last one of an escape in JSON, Python or a URL, or of a
terminal's colour.
"""
_LONGEST_BEFORE = 64
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY")
_SHORTEST = 12
"""Values of the environment that are shorter are no secrets, and would be found everywhere."""
_WEIGHTS = ".safetensors"
_LARGEST = 64_000_000
"""Files beside the pushed ones are read up to this size."""


def check(pushed: Path, run: Path) -> None:
    """Refuse a bundle with a secret or a path of this machine in it, and a run folder with a secret anywhere in its texts.

    A token in a file that is not pushed is refused too: it lies where people copy from, and should not be there.
    """
    values = list(secret_values())
    paths = machine_paths(run)
    found = []
    for file in sorted(path for path in pushed.rglob("*") if path.is_file()):
        raw = file.read_bytes()
        what = _secret(raw, values) or _path(raw, paths)
        if what:
            found.append(f"{file.relative_to(pushed)} holds {what}")
    for file in _beside(run):
        what = _secret(file.read_bytes(), values)
        if what:
            found.append(f"{file} holds {what}")
    if found:
        raise UserError(
            "\n  ".join(
                ["nothing is pushed; remove it from the file, and revoke what is secret:", *found]
            )
        )


def secret_values() -> Iterator[bytes]:
    """The user's own secrets, by value: the Hub token, and what the environment calls a token, key or password."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        yield token.encode()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name.upper()) and len(value) >= _SHORTEST:
            yield value.encode()


def machine_paths(run: Path) -> list[bytes]:
    """How a path of this machine would begin, also in HTML: the home, the working, the temporary and the run's folder."""
    from markupsafe import escape

    folders = {Path.home(), Path.cwd(), Path(tempfile.gettempdir()), run.resolve()}
    begins = {f"{folder}/" for folder in folders if len(folder.parts) > 1}
    return sorted(one.encode() for one in begins | {str(escape(begin)) for begin in begins})


def _secret(raw: bytes, values: Sequence[bytes]) -> str | None:
    for text in _readings(raw):
        if any(value in text for value in values):
            return "a secret of yours, by its value"
        for name, shapes in _SHAPES.items():
            if any(_holds(text, shape) for shape in shapes):
                return name
    return None


def _holds(text: bytes, shape: bytes) -> bool:
    pattern, start = re.compile(shape), 0
    while found := pattern.search(text, start):
        start = found.start()
        if _BEFORE.search(text[max(0, start - _LONGEST_BEFORE) : start]):
            return True
        start += 1
    return False


def _readings(raw: bytes) -> Iterator[bytes]:
    """The bytes as they are and, where zeros are among them, as the UTF-16 of a Windows shell's log."""
    yield raw
    if b"\0" in raw:
        for order in ("utf-16-le", "utf-16-be"):
            yield raw.decode(order, "ignore").encode("utf-8", "ignore")


def _path(raw: bytes, paths: Sequence[bytes]) -> str | None:
    found = next((path for path in paths if path in raw), None)
    return f"a path of this machine ({found.decode()}...)" if found else None


def _beside(run: Path) -> Iterator[Path]:
    """The run folder's files, weights and checkpoints left out."""
    for file in sorted(run.rglob("*")):
        inside = file.relative_to(run).parts
        if inside[0] == "checkpoints" or file.suffix == _WEIGHTS or not file.is_file():
            continue
        if file.stat().st_size <= _LARGEST:
            yield file
