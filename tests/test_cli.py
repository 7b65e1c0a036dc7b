"""A full disk or memory ends a command with one line."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from llama_peft import cli
from llama_peft.errors import UserError, stop_signals
from llama_peft.system.terminal import one_line
from tests.support import forked


def end_of(app: typer.Typer) -> None:
    """Run an app that ends with exit code 2; the handlers of signals are put back."""
    handlers = {number: signal.getsignal(number) for number in stop_signals()}
    with pytest.raises(SystemExit, match="2"):
        cli.run(app)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_tokenizer_whose_pattern_finds_no_end_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own engine gives up; tokenizers raises no Exception then."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$!"), "isolated")
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def work() -> None:
        tokenizer.encode("a" * 40 + "!")

    monkeypatch.setattr("sys.argv", ["program", "--"])
    end_of(app)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search("^error: .*tokenizer .*use the tokenizer of a base that you trust$", last)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "/x/y"), r"No space left on device \(/x/y\)"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "memory ran out",
        ),
        (MemoryError(), "memory ran out"),
    ],
)
def test_a_full_machine_is_one_line(
    error: Exception,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def work() -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["program", "--"])

    end_of(app)
    found = capsys.readouterr().err.strip()
    assert re.search(f"^error: .*{said}", found) and "\n" not in found


@pytest.mark.parametrize("on_path", [True, False])
def test_a_message_names_commands_as_they_can_be_typed(
    on_path: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Outside an activated environment the shell finds neither of the two."""
    folder = tmp_path / "my env" / "bin"
    folder.mkdir(parents=True)
    for name in ("llama-peft", "llama-eval"):
        (folder / name).write_text("#!/bin/sh\n", "utf-8")
        (folder / name).chmod(0o755)
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def work() -> None:
        raise UserError("`llama-peft train X` makes one, and llama-eval run --task X measures it")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(folder) if on_path else "")
    monkeypatch.setattr("sys.argv", [str(folder / "llama-peft"), "--"])
    end_of(app)
    said = capsys.readouterr().err.strip()
    peft, measure = "llama-peft", "llama-eval"
    if not on_path:
        peft, measure = "'my env/bin/llama-peft'", "'my env/bin/llama-eval'"
    assert said == f"error: `{peft} train X` makes one, and {measure} run --task X measures it"


def test_a_module_that_was_started_is_named_with_its_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", [str(Path(cli.__file__).with_name("__main__.py")), "train"])
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert cli._programs() == {
        "llama-peft": "python -m llama_peft",
        "llama-eval": "python -m eval",
    }
    monkeypatch.setenv("PATH", "")
    python = cli._programs()["llama-eval"].removesuffix(" -m eval")
    assert Path(python).absolute() == Path(sys.executable)


@pytest.mark.parametrize(
    "word",
    ["a b", "it's", "a\nb", "t\x1b'\\n", "\u202e\t", "prompt.zero_shot=Text: {text}\nLabel:"],
)
def test_the_command_to_continue_is_one_line_that_a_shell_reads_back(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["llama-peft", "train", word, "--fresh"])
    command = cli._command()
    assert one_line(command) == command
    printed = f"printf '%s' {command.removeprefix('llama-peft train ')}"
    done = subprocess.run(["bash", "-c", printed], capture_output=True, env={"LC_ALL": "C.UTF-8"})
    assert done.stdout.decode() == word


WAITS = """
import sys, time, typer
from llama_peft import cli
app = typer.Typer(pretty_exceptions_enable=False)
@app.command()
def work() -> None:
    open(sys.argv[1], "w").close()
    time.sleep(60)
app.command("other")(lambda: None)
cli._words = lambda: ["work"]
cli.run(app)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows closes a window in another way")
def test_a_closed_terminal_stops_a_command_in_order(tmp_path: Path) -> None:
    """What it says then has nowhere to go, and is no fault. Under nohup it goes on."""
    import pty

    begun = tmp_path / "begun"
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", WAITS, str(begun)])
    forked.until(begun.is_file)
    os.close(terminal)
    assert forked.ended(child) == 128 + signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert stop_signals() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)
