"""No secret and no path of this machine passes, wherever it stands; nothing else is stopped."""

import json
import os
from pathlib import Path

import pytest

from llama_peft.errors import UserError
from llama_peft.export import secret_scan

# Put together here, so that no scanner finds a secret in this file.
PLANTED = {
    "a Hugging Face token": "hf_" + "aB3" * 11,
    "a GitHub token": "ghp_" + "x1Y" * 12,
    "an OpenAI or Anthropic key": "sk-" + "proj-" + "a1B2" * 8,
    "an AWS key": "AKIA" + "ABCD2345" * 2,
    "a Google key": "AIza" + "Sy" + "a1b2c" * 6 + "xyz",
    "a Slack token": "xoxb-" + "123456789012",
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with what is normal in one."""
    run = tmp_path / "runs/one"
    (run / "checkpoints/checkpoint-1").mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: hf_transfer\ndataset:\n  path: data/train.csv\n")
    (run / "training.json").write_text(json.dumps({"files": {"a": "0123456789abcdef" * 4}}))
    (run / "adapter.safetensors").write_bytes(bytes(range(256)) * 40)
    (run / "checkpoints/checkpoint-1/state.json").write_text(PLANTED["an AWS key"])
    return run


@pytest.fixture
def pushed(tmp_path: Path) -> Path:
    folder = tmp_path / "staged"
    (folder / "tuned").mkdir(parents=True)
    (folder / "README.md").write_text(
        "# sk-learn, task-force-and-risk-management, /usr/bin/python\n"
    )
    (folder / "tuned/results.json").write_text("{}")
    return folder


def test_what_is_normal_passes(run: Path, pushed: Path) -> None:
    secret_scan.scan(pushed, run)


@pytest.mark.parametrize("what", PLANTED)
def test_a_secret_is_named_by_its_file_and_kind(run: Path, pushed: Path, what: str) -> None:
    secret = PLANTED[what]
    for folder, name in (
        (pushed, "tuned/results.json"),
        (pushed, "head.safetensors"),
        (run, "train.log"),
        (run, "notes/walk.ipynb"),
    ):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        old = path.read_bytes() if path.is_file() else b""
        path.write_bytes(b'{"text": "' + secret.encode() + b'"}')
        with pytest.raises(UserError, match=f"{name} holds {what}") as said:
            secret_scan.scan(pushed, run)
        assert secret not in str(said.value)
        path.write_bytes(old)
    secret_scan.scan(pushed, run)


CONTEXTS = {
    "nothing": lambda secret: secret.encode(),
    "a new line in JSON": lambda secret: json.dumps(f"x\n{secret}\n").encode(),
    "a tab in JSON": lambda secret: json.dumps(f"x\t{secret}").encode(),
    "JSON in JSON": lambda secret: json.dumps(json.dumps(f"x\n{secret}")).encode(),
    "quoted in JSON": lambda secret: json.dumps(f'x"{secret}"').encode(),
    "an accent in JSON": lambda secret: json.dumps(f"caf\u00e9{secret}").encode(),
    "Python's repr": lambda secret: repr(f"x\n{secret}").encode(),
    "Python's repr of bytes": lambda secret: repr(f"x\u00e9{secret}".encode()).encode(),
    "Python's ascii": lambda secret: ascii(f"\U0001f600{secret}").encode(),
    "an underscore": lambda secret: f"MY_{secret}".encode(),
    "an assignment": lambda secret: f"export KEY={secret}".encode(),
    "a URL": lambda secret: f"https://x.org/?q=a%20{secret}".encode(),
    "a terminal's colour": lambda secret: f"\x1b[38;5;12m{secret}\x1b[0m".encode(),
    "a terminal's true colours": lambda secret: json.dumps(
        f"\x1b[1;38;2;255;255;255;48:2:10:20:30m{secret}"
    ).encode(),
    "a terminal's colour, written out": lambda secret: rf"\u001B[1m{secret}".encode(),
    "a terminal's cursor": lambda secret: rf"\x1B[?25h{secret}".encode(),
    "a terminal's colour in JSON": lambda secret: json.dumps(f"\x1b[1m{secret}").encode(),
    "UTF-16": lambda secret: f"the key: {secret}\r\n".encode("utf-16"),
    "UTF-16, big first": lambda secret: f"\u4e2d{secret}\r\n".encode("utf-16-be"),
}
"""What may stand right before a token."""


@pytest.mark.parametrize("what", PLANTED)
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_secret_is_found_whatever_stands_before_it(
    run: Path, pushed: Path, what: str, context: str
) -> None:
    (run / "notes.txt").write_bytes(CONTEXTS[context](PLANTED[what]))
    with pytest.raises(UserError, match=f"notes.txt holds {what}"):
        secret_scan.scan(pushed, run)


def test_what_only_looks_like_a_secret_passes(run: Path, pushed: Path) -> None:
    words = "task-force-and-risk-management-of-the-desk-and-more-of-it"
    (run / "notes.txt").write_text(
        f"{words} {'a' * 9}hf_{'b' * 30} C:\\\\{words} {'A' * 9}AKIA{'Z' * 16}"
    )
    secret_scan.scan(pushed, run)


def test_the_user_s_own_values_are_found_whatever_their_shape(
    run: Path, pushed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (("HF_TOKEN", "my own token"), ("WANDB_API_KEY", "0123abcd" * 5)):
        monkeypatch.setenv(variable, value)
        (pushed / "recipe.yaml").write_text(f"note: {value}")
        with pytest.raises(UserError, match=r"recipe\.yaml holds the value of one of your secrets"):
            secret_scan.scan(pushed, run)
        (pushed / "recipe.yaml").unlink()


def test_links_pipes_and_devices_in_a_run_are_not_opened(
    run: Path, pushed: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside.txt").write_text(PLANTED["a GitHub token"])
    (run / "notes.txt").symlink_to(tmp_path / "outside.txt")
    (run / "zeros.txt").symlink_to("/dev/zero")
    (run / "loop.txt").symlink_to(run / "loop.txt")
    (run / "all").symlink_to(tmp_path)
    os.mkfifo(run / "pipe.txt")
    secret_scan.scan(pushed, run)


def test_paths_of_this_machine_are_found_in_what_is_pushed(
    run: Path, pushed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    for path in ("/home/somebody/data.csv", f"{Path.cwd()}/recipes/x.yaml", f"{run}/adapter"):
        (pushed / "report.html").write_text(f"<td>{path}</td>")
        with pytest.raises(UserError, match=r"report\.html holds a path of this machine"):
            secret_scan.scan(pushed, run)
