"""Of the libraries, only those messages that a user can act on."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from llama_peft.errors import UserError
from llama_peft.system.disk import disk_trouble
from llama_peft.system.terminal import printable

_LIBRARIES = ("transformers", "trl", "peft", "accelerate", "bitsandbytes")
_LEVELS = {
    "bitsandbytes.backends.cpu.ops": logging.ERROR,  # it reports each fallback of the CPU
    "httpx": logging.WARNING,
    "huggingface_hub": logging.ERROR,  # it reports each retry twice
}
_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_VERBOSITY": "error",  # it sets its own level when it is imported
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # not its downloads: huggingface_hub shows those
}


def silence_libraries() -> None:
    """Silence the libraries of this process for good. Call it before they are imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    _ignore_deprecations()


def _ignore_deprecations() -> None:
    """A user cannot act on deprecations between the libraries, and need not on their bars."""
    for library in _LIBRARIES:
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
    # tqdm, in a notebook without ipywidgets, whose bars are not ours.
    warnings.filterwarnings("ignore", message="IProgress not found")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries for a while, in a process that is not ours: a notebook, or somebody's
    program.
    """
    levels = {name: logging.getLogger(name).level for name in (*_LEVELS, "transformers")}
    unset = [name for name in _ENVIRONMENT if name not in os.environ]
    with warnings.catch_warnings():
        silence_libraries()
        if "transformers" in sys.modules:  # it reads its environment variable only when imported
            logging.getLogger("transformers").setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            for name in unset:
                os.environ.pop(name, None)


@contextmanager
def python_face() -> Iterator[None]:
    """Run a function of the public face: the libraries are quiet, and a mistake is one UserError.

    Its advice names arguments of Python where the command line would name flags. Its text may be
    printed, as that of the command line.
    """
    try:
        with quiet_libraries():
            yield
    except UserError as error:
        error.args = tuple(printable(in_python(str(line))) for line in error.args)
        raise
    except Exception as error:
        reason = disk_trouble(error)
        if reason is None:
            raise
        raise UserError(printable(f"a file cannot be read or written: {reason}")) from error


_COMMAND = re.compile(r"(llama-(?:peft|eval) [^;)]*)")


def in_python(message: str) -> str:
    """A message with Python's arguments in place of flags; whole commands stay as they are."""
    parts = _COMMAND.split(message)  # every second part is a command
    parts[::2] = [re.sub(r"--([a-z][a-z-]*)", _argument, part) for part in parts[::2]]
    return "".join(parts)


def _argument(flag: re.Match[str]) -> str:
    name = flag[1].replace("-", "_")
    return f"{name}=True" if name == "fresh" else name
