"""A full disk or memory ends a command with one line."""

import re
import signal

import pytest
import torch
import typer

from llama_peft import cli


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

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit, match="2"):
        cli.run(app)
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
        signal.signal(number, handler)
    found = capsys.readouterr().err.strip()
    assert re.search(f"^error: .*{said}", found) and "\n" not in found
