"""What both command lines share: plain log lines, one line and exit code 2 for a user's mistake."""

import io
import logging
import os
import shlex
import signal
import sys
import warnings
from pathlib import Path

import typer

from llama_peft.errors import Stopped, UserError
from llama_peft.system.disk import disk_trouble
from llama_peft.system.memory import is_out_of_memory


def run(app: typer.Typer) -> None:
    """Run an app on the words of the command line. Exits with 2 on a user's mistake (no words are one, answered by the help)
    and where disk or memory is full, 130 on Ctrl-C, 143 on SIGTERM; any other exception is a fault of ours.
    """
    _quiet_libraries()
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter gets its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        words = _words()
        code = app(words or ["--help"], standalone_mode=False)
        sys.exit(code if words else 2)
    except typer.Abort as error:  # what typer makes of an EOFError
        raise error.__cause__ or error from None
    except typer.TyperException as error:
        print(f"error: {error.format_message().rstrip('.')}; see --help", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        _close_bars()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        _close_bars()
        print(f"stopped; to continue: {_command()}", file=sys.stderr)
        sys.exit(128 + stop.signal_number)
    except Exception as error:
        said = _machine_trouble(error)
        if said is None:
            raise
        _close_bars()
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)


def _words() -> list[str]:
    """The words of the command line. Other bytes than UTF-8 come as halves of characters, which no file or tokenizer takes."""
    for word in sys.argv[1:]:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"{os.fsencode(word)!r}: not UTF-8 text") from None
    return sys.argv[1:]


def _machine_trouble(error: Exception) -> str | None:
    """What the machine would not do, in a line; None for an error that is ours."""
    reason = disk_trouble(error)
    if reason is not None:
        return f"a file cannot be read or written: {reason}; what is finished is kept, and the same command goes on"
    if isinstance(error, MemoryError) or ("torch" in sys.modules and is_out_of_memory(error)):
        return (
            "memory ran out: close other programs, load in 4-bit, lower train.max_length or the batch sizes, or take a "
            "smaller base (llama-peft estimate says what takes how much); what is finished is kept"
        )
    return None


def _close_bars() -> None:
    """End the line of a progress bar that was left in the middle."""
    if "tqdm" in sys.modules:
        for bar in list(sys.modules["tqdm"].tqdm._instances):
            bar.close()


def _stop(number: int, frame: object) -> None:
    raise Stopped(number)


def _command() -> str:
    """What was typed, but for --fresh, which would start again."""
    program = Path(sys.argv[0])
    module = ["python", "-m", program.parent.name]
    words = module if program.name == "__main__.py" else [program.name]
    return shlex.join([*words, *(word for word in sys.argv[1:] if word != "--fresh")])


def _quiet_libraries() -> None:
    """Our own lines at INFO; of the libraries only what needs attention. Set before they are imported."""
    main = os.environ.get("RANK", "0") == "0"
    # A line that a full disk does not take is no reason for a traceback.
    logging.raiseExceptions = False
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    for name in ("llama_peft", "eval"):
        logging.getLogger(name).setLevel(logging.INFO if main else logging.ERROR)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it says each retry, twice
    # Deprecations between the libraries themselves are nothing a user can act on.
    for library in ("transformers", "trl", "peft", "accelerate", "bitsandbytes"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
