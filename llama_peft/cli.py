"""What both command lines share: short log lines, and one line and exit code 2 for a mistake."""

import gc
import io
import logging
import os
import shlex
import shutil
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from llama_peft.errors import Died, Stopped, UserError, stop_signals
from llama_peft.system import progress
from llama_peft.system.disk import disk_trouble
from llama_peft.system.memory import is_out_of_memory
from llama_peft.system.processes import job
from llama_peft.system.quiet import silence_libraries
from llama_peft.system.secrets import is_web_address
from llama_peft.system.terminal import (
    LogLines,
    LogRecord,
    complain,
    leave_closed,
    one_line,
    set_programs,
    show_defect,
)

_NAMES, _MAIN = ("llama-peft", "llama-eval"), "__main__.py"


def name(text: str | None) -> str | None:
    """Check the name of a model, a run, a data set or a repository, for typer."""
    if text is not None and is_web_address(text):
        raise UserError(f"{text}: this is a web address; write a name, such as owner/name")
    return text


def names(texts: list[str] | None) -> list[str] | None:
    """Check several names, for typer."""
    for text in texts or ():
        name(text)
    return texts


RecipeName = Annotated[
    str, typer.Argument(help="The recipe: a YAML file, or the name of a packaged recipe.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings in place of the recipe's, as section.key=value."),
]
RunName = Annotated[
    str,
    typer.Argument(
        help="The finished run: its folder, or user/repo[@revision] on the Hub.", callback=name
    ),
]
BaseName = Annotated[
    str | None,
    typer.Option(
        help="The run's base, if its recipe names a folder of another machine.", callback=name
    ),
]
Processes = Annotated[
    int,
    typer.Option(
        min=1, help="Work in so many processes of this machine: one for each GPU.", metavar="N"
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        min=1,
        help="Train and measure so many rungs at a time, each on its share of the cores or GPUs.",
        metavar="N",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def run(app: typer.Typer) -> None:
    """Run an app on the words of the command line, and exit.

    The exit code is 2 after a user's mistake and if disk or memory is full, 1 if another process of
    the work has died, 130 after Ctrl-C, 143 after SIGTERM, 129 if its terminal was
    closed. A command without words is a mistake too: it shows the help. Any other
    exception is a defect of this package and is raised.
    """
    _set_up()
    try:
        words = _words()
        # Calling the app itself would put typer's excepthook in place of ours.
        command = typer.main.get_command(app)
        try:
            code = command(words or ["--help"], standalone_mode=False)
        finally:
            progress.close()  # an error has left a bar
        sys.exit(code if words else 2)
    except typer.Abort as error:  # typer turns an EOFError into this
        raise error.__cause__ or error from None
    except typer.TyperException as error:
        complain(f"error: {error.format_message().rstrip('.')}; see --help")
        sys.exit(2)
    except UserError as error:
        _refuse(error)
    except Died as death:
        complain(f"error: {death}")
        sys.exit(1)
    except Stopped as stop:
        if job.is_main() and not job.has_launcher():
            complain(f"stopped; to continue: {_command()}")
        sys.exit(128 + stop.signal_number)
    except Exception as error:
        said = _machine_trouble(error)
        if said is None:
            raise
        _refuse(UserError(said))
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of tokenizers, which are written in Rust
            raise
        complain(
            f"error: the base's tokenizer failed on a text ({str(error).strip()}); it is damaged, or "
            "its pattern finds no end: use the tokenizer of a base that you trust"
        )
        sys.exit(2)


def _set_up() -> None:
    """Make this process one of a command line: its log, its terminal, its signals."""
    _quiet_logs()
    job.follow_launcher()
    set_programs(_programs())
    # What the libraries make while they are imported is no garbage, and looking for some takes a
    # fifth of a short command's time.
    gc.set_threshold(50_000, 20, 50)
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show is written as its number.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for number in stop_signals():
        signal.signal(number, _stop)


def complain_of(error: UserError, word: str = "error") -> None:
    """Print a user's mistake after a word, with its further lines below."""
    first, *more = error.args
    complain(f"{word}: {first}", *(f"  {line}" for line in more))


def _refuse(error: UserError) -> NoReturn:
    """Print a user's mistake, or leave it to the process that started this one; and exit."""
    if not job.tell_launcher(error):
        complain_of(error)
    sys.exit(2)


def check_absent(path: Path) -> None:
    """Raise UserError if something has the name of a file that is to be written."""
    if os.path.lexists(path):
        raise UserError(f"{path}: this file exists: remove it, or choose another name")


def _words() -> list[str]:
    """Return the words of the command line.

    Bytes that are not UTF-8 arrive as unpaired surrogates, which no file or tokenizer accepts, so
    they are refused.
    """
    for word in sys.argv[1:]:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{os.fsencode(word)!r} on the command line is not UTF-8 text: write it in UTF-8"
            ) from None
    return sys.argv[1:]


def _machine_trouble(error: Exception) -> str | None:
    """Say in one line that disk or memory is full. Returns None for any other error."""
    reason = disk_trouble(error)
    if reason is not None:
        return (
            f"a file cannot be read or written: {reason}; repair this and run the same command again: "
            "finished work is kept"
        )
    if is_out_of_memory(error):
        return (
            "memory ran out: close other programs, load in 4-bit, lower train.max_length or the batch sizes, or use a "
            "smaller base (llama-peft estimate shows what takes how much); finished work is kept"
        )
    return None


def _stop(number: int, frame: object) -> None:
    leave_closed()
    raise Stopped(number)


def _command() -> str:
    """Return the command that was typed, without --fresh, which would start from the beginning."""
    started = Path(sys.argv[0])
    program = _programs().get(started.stem, started.name)
    if started.name == _MAIN:  # the folder may have another name than the module
        spec = sys.modules["__main__"].__spec__
        program = f"{_python()} -m {spec.parent if spec and spec.parent else started.parent.name}"
    return " ".join([program, *(_quoted(word) for word in sys.argv[1:] if word != "--fresh")])


def _programs() -> dict[str, str]:
    """Return how each of our two commands can be typed here, by its name.

    It is the name alone if the shell finds it, and else the path or the module that this process was
    started by.
    """
    started = Path(sys.argv[0])
    if started.name == _MAIN:
        is_checkout = Path(__file__).parents[1].joinpath("eval", _MAIN).is_file()
        modules = ("llama_peft", "eval" if is_checkout else "llama_peft_eval")
        return {
            name: f"{_python()} -m {module}" for name, module in zip(_NAMES, modules, strict=True)
        }
    beside = {name: started.with_name(f"{name}{started.suffix}") for name in _NAMES}
    return {
        name: _shown(path, shutil.which(name)) for name, path in beside.items() if path.is_file()
    }


def _python() -> str:
    return _shown(Path(sys.executable), shutil.which("python"))


def _shown(path: Path, found: str | None) -> str:
    """Return a program as the shell reads it: by its name, if that is what the shell finds."""
    place = Path(os.path.abspath(path))
    if found is not None and Path(os.path.abspath(found)).with_suffix("") == place.with_suffix(""):
        return place.stem
    here = Path.cwd()
    return _quoted(str(place.relative_to(here) if place.is_relative_to(here) else place))


def _quoted(word: str) -> str:
    """A word as a shell reads it; control characters need bash's $'...' to stay on one line."""
    if one_line(word) == word:
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{one_line(escaped)}'"


def _quiet_logs() -> None:
    """Show our own log lines, and of the libraries only warnings that a user can act on. Whatever
    they log or warn of, and the traceback of a defect, is printed by `terminal`.
    """
    # A log line that cannot be written, on a full disk for example, must not give a traceback.
    logging.raiseExceptions = False
    logging.setLogRecordFactory(LogRecord)
    logging.captureWarnings(True)
    warnings.formatwarning = _warning
    sys.excepthook = show_defect
    threading.excepthook = lambda of: show_defect(of.exc_type, of.exc_value, of.exc_traceback)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[LogLines()])
    for name in ("llama_peft", "eval", "llama_peft_eval"):
        logging.getLogger(name).setLevel(logging.INFO if job.is_main() else logging.ERROR)
    silence_libraries()


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning in one line; Python would show the line of code too."""
    return f"{filename}:{lineno}: {category.__name__}: {message}"
