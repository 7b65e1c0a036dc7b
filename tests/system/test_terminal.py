"""Nothing that is printed moves the cursor, hides text, forges a line or shows a secret."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from llama_peft.errors import UserError
from llama_peft.system import terminal
from llama_peft.system.quiet import python_face
from llama_peft.system.secrets import is_web_address, masked
from tests.support.paths import ROOT

SIGNS = "".join(
    map(chr, [*range(32), *range(127, 160), 0x61C, 0x200B, 0x200E, 0x202E, 0x2066, 0x2028, 0xFEFF])
)
"""Control characters, those that turn text around, and those that nobody can see."""
TOKEN = "hf_" + "aB3" * 10


def bad_signs(text: str) -> set[str]:
    """The signs of a printed text that move, hide or turn it around, besides line feeds."""
    return set(text) & (set(SIGNS) - {"\n"})


def test_every_line_is_one_line_of_visible_signs(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(f"label {SIGNS}", "second")
    terminal.complain(f"error: {SIGNS}")
    said = capsys.readouterr()
    assert not bad_signs(said.out + said.err)
    assert said.out.count("\n") == 2 and said.err.count("\n") == 1
    assert r"\x1b" in said.out and r"\u202e" in said.out and r"\n" in said.out


def test_ordinary_text_is_printed_as_it_is() -> None:
    text = "très bien, C++ \u2502 \u0646\u0645\u06cc\u200c\u062f\u0627\u0646\u0645 \U0001f469\u200d\U0001f52c"
    assert terminal.printable(text) == text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_is_read_back_as_it_was(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"label": f'"{SIGNS}\\ é \U0001f600 \U000e0041', f"k{SIGNS}": [1.5, None, True]}
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.say_json(value, indent=1)
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert json.loads(text) == value and not bad_signs(text)


def test_secrets_in_json_are_masked_and_it_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"https://me:pass@x.org/a?token={TOKEN}"
    terminal.say_json({"id": address, "a@b": [TOKEN, 'https://x.org"', "y@z"]})
    said = capsys.readouterr().out
    found = json.loads(said)
    assert TOKEN not in said and "pass" not in said
    assert found["id"] == "https://***@x.org/a?token=***" and found["a@b"][1:] == [
        'https://x.org"',
        "y@z",
    ]


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"https://user:{TOKEN}@huggingface.co/a/b",
        "https://user:pa@ssword@huggingface.co/a/b",
        "user:password@huggingface.co/a/b",
        "git clone https://user:password@github.com/a/b",
        '"https://x.org/?api_key=password"',
    ],
)
def test_secrets_are_masked(text: str) -> None:
    found = masked(text)
    assert "***" in found and TOKEN not in found and "ssword" not in found


@pytest.fixture
def records() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(terminal.LogRecord)
    yield
    logging.setLogRecordFactory(before)


def test_logs_of_every_library_are_printable_lines(records: None) -> None:
    """Some libraries print with a handler and a format of their own."""
    stream = io.StringIO()
    log = logging.getLogger("a.library")
    log.propagate, log.handlers = False, [logging.StreamHandler(stream)]
    log.warning("%s of %d: %s", f"file {SIGNS}", 3, TOKEN)
    try:
        raise ValueError(f"a label {SIGNS} {TOKEN}")
    except ValueError:
        log.exception("it failed")
    said = stream.getvalue()
    assert not bad_signs(said) and TOKEN not in said
    first, second, *_ = said.split("\n")
    assert "of 3: ***" in first and second == "it failed" and "Traceback" in said


def in_a_process(work: str) -> subprocess.CompletedProcess[str]:
    """Run some lines as a command of a command line."""
    lines = ["import sys, typer, warnings", "from llama_peft import cli", "app = typer.Typer()"]
    lines += ["@app.command()", "def work() -> None:", f"    {work}"]
    lines += ["sys.argv = ['work', '--']", "cli.run(app)"]
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_warnings_and_tracebacks_are_printable() -> None:
    evil = ascii(f"a {SIGNS} {TOKEN}")
    for work, code, shown in (
        (f"warnings.warn({evil})", 0, "UserWarning: a "),
        (f"raise KeyError({evil}) from ValueError({evil})", 1, "Traceback (most recent call last)"),
        (f"raise ZeroDivisionError({evil})", 1, "ZeroDivisionError: a "),
        (f"import threading; threading.Thread(target=int, args=[{evil}]).start()", 0, "ValueError"),
    ):
        done = in_a_process(work)
        assert shown in done.stderr and done.returncode == code, done.stderr
        assert not bad_signs(done.stderr), ascii(done.stderr)
        assert TOKEN not in done.stderr


BROKEN = """
import os, signal, sys
from llama_peft.system import terminal
reads, writes = os.pipe()
os.dup2(writes, 1), os.dup2(writes, 2), os.close(writes)
{}
terminal.interrupt("stopping at the end of this step")
terminal.say("a result")
terminal.complain("a message")
sys.stdout.flush()
"""


@pytest.mark.parametrize(
    ("order", "ends_well"),
    [
        ("os.close(reads), terminal.leave_closed()", True),
        ("terminal.leave_closed(), os.close(reads)", True),
        ("os.close(reads)", False),
    ],
    ids=["before", "after", "no stop"],
)
def test_a_stop_ends_well_if_the_reader_of_a_pipe_has_ended(order: str, ends_well: bool) -> None:
    """Ctrl-C behind `| tee log` ends tee before us or after us. `| head` still ends the command."""
    done = subprocess.run([sys.executable, "-c", BROKEN.format(order)], cwd=ROOT)
    assert (done.returncode == 0) == ends_well


def test_a_stop_leaves_an_open_pipe_as_it_is() -> None:
    done = in_a_process("import signal; cli.leave_closed(); signal.raise_signal(signal.SIGINT)")
    assert done.returncode == 130 and done.stderr.startswith("stopped; to continue: ")


def test_a_value_in_an_error_forges_no_line() -> None:
    evil = ascii(f"a\nerror: forged {TOKEN}")
    done = in_a_process(
        f"from llama_peft.errors import UserError; raise UserError({evil}, 'second', {evil})"
    )
    first, *more = done.stderr.splitlines()
    assert done.returncode == 2 and first.startswith(r"error: a\nerror: forged ***")
    assert more == ["  second", r"  a\nerror: forged ***"]


def test_errors_of_the_python_face_are_printable() -> None:
    with pytest.raises(UserError) as error, python_face():
        raise UserError(f"a {SIGNS} {TOKEN}", "second")
    assert not bad_signs(str(error.value)) and TOKEN not in str(error.value)
    assert str(error.value).count("\n") == 1


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("https://huggingface.co/a/b", True),
        ("HTTP://x", True),
        ("hf://datasets/a/b", True),
        ("s3://bucket/a.csv", True),
        ("huggingface.co/a/b", True),
        ("user:password@hf.co/a/b", True),
        ("git@hf.co:a/b", True),
        ("www.x.org/a", True),
        ("meta-llama/Llama-3.2-1B", False),
        ("user/repo@main", False),
        ("./https/a", False),
        ("/data/a:b", False),
        ("C:\\data", False),
        ("hf.co-mirror/a", False),
        ("tiny", False),
    ],
)
def test_web_addresses_are_known(name: str, is_one: bool) -> None:
    assert is_web_address(name) == is_one
