"""Law 14: a user's mistake is one message and exit code 2, never a traceback; and the ordinary use of the commands."""

import io
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from eval.__main__ import app as eval_app
from llama_peft import cli
from llama_peft.__main__ import app
from llama_peft.recipe import Recipe
from tests.support import forked
from tests.support.paths import ROOT


def fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, which: Any, *words: str
) -> str:
    """Run a command in this process and return its error; exit code 2 and no traceback are asserted."""
    monkeypatch.setattr(sys, "argv", ["program", *words])
    with pytest.raises(SystemExit) as stop:
        cli.run(which)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    assert (
        "--help" not in error or len(error.splitlines()) == 1
    )  # a wrong command line, not a wrong recipe
    return error


def imported(*words: str) -> tuple[set[str], float]:
    """The top-level packages that Python imports for a command, and the least CPU time in seconds that three runs of it take.

    CPU time, because the machine may be busy with other things.
    """
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *words], cwd=ROOT, capture_output=True, text=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    lines = [line.rpartition("|")[2] for line in done.stderr.splitlines()]
    return {line.strip().partition(".")[0] for line in lines}, min(seconds)


HEAVY = {"torch", "transformers", "datasets", "peft", "numpy", "pydantic", "yaml", "rich", "jinja2"}


@pytest.mark.parametrize("program", ["llama_peft", "eval"])
def test_help_answers_at_once(program: str) -> None:
    packages, seconds = imported("-m", program, "--help")
    assert "typer" in packages and not packages & HEAVY
    assert seconds < 0.5


def test_the_package_is_imported_at_once() -> None:
    packages, seconds = imported("-c", "import llama_peft, eval")
    assert {"llama_peft", "eval"} <= packages and not packages & {"typer", *HEAVY}
    assert seconds < 0.2


@pytest.mark.parametrize("which", [app, eval_app])
def test_help_lists_every_command_with_a_whole_sentence(which: Typer) -> None:
    listed = CliRunner().invoke(which, ["--help"]).output.partition("Commands:")[2]
    assert len(listed.splitlines()) > 4
    assert all(line.endswith(".") and "..." not in line for line in listed.splitlines()[1:])


FILE = ["dataset.path=null", "dataset.name=null", "dataset.parts={train: missing.csv}"]
BAD_WORDS = [
    (app, ["train", "no-such-recipe"], "no-such-recipe"),
    (app, ["train", "tiny-sst2", "train.learnign_rate=1e-4"], "train.learning_rate"),
    (app, ["train", "tiny-sst2", "train.learning_rate=-1"], "above 0"),
    (app, ["train", "tiny-sst2", "model.model_name_or_path=/no/such/folder"], "/no/such/folder"),
    (app, ["validate", "tiny-sst2", *FILE], "missing.csv"),
    (app, ["params", "/no/such/folder"], "/no/such/folder"),
    (app, ["predict", "/no/such/run", "text"], "no finished run"),
    (eval_app, ["run"], "--task"),
    (eval_app, ["run", "--model", "/no/such/run"], "is not a run folder"),
    (eval_app, ["run", "--task", "tiny-sst2", "--split", "train"], "eval.splits"),
    (eval_app, ["run", "--task", "tiny-sst2", "--split", "test", "--data", "x.csv"], "--split"),
    (eval_app, ["run", "--task", "tiny-sst2", "--data", "x.csv"], "x.csv"),
    (eval_app, ["compare", "/no/such/results"], "/no/such/results"),
    (app, ["train", "x" * 300 + ".yaml"], "too long"),
    (app, ["predict", "/no/such/run", os.fsdecode(b"caf\xe9")], "not UTF-8 text"),
    (eval_app, ["run", "--task", "tiny-sst2", "--data", ""], "--data is empty"),
    (app, ["trian", "tiny-sst2"], "'train'"),
    (app, ["train"], "'recipe'"),
    (app, ["train", "tiny-sst2", "--nothing"], "--nothing"),
    (eval_app, ["run", "--limit", "0"], "--limit"),
]


@pytest.mark.parametrize(("which", "words", "fragment"), BAD_WORDS)
def test_mistakes_are_one_message(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    which: Any,
    words: list[str],
    fragment: str,
) -> None:
    assert fragment in fails(capsys, monkeypatch, which, *words)


def test_a_character_that_the_terminal_cannot_show_is_written_as_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,caf\u00e9\nb,th\u00e9\n", "utf-8")
    both = f"dataset.parts={{train: {tmp_path / 'a.csv'}, test: {tmp_path / 'a.csv'}}}"
    words = ["validate", "tiny-sst2", *FILE[:-1], both, "dataset.validation_size=0"]
    words.append("prompt.verbalizers=[a, b]")

    def begin() -> None:
        assert isinstance(sys.stdout, io.TextIOWrapper)
        sys.stdout.reconfigure(encoding="ascii")

    _, text = forked.run(words, tmp_path / "log", hook=begin)
    assert "caf\\xe9" in text and "Traceback" not in text, text


def test_a_mistake_in_a_real_process() -> None:
    command = [sys.executable, "-m", "llama_peft", "train", "tiny-sst2", "train.max_steps=many"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "train.max_steps" in done.stderr


BAD_DATA = {
    "empty file": ("a.csv", b"", "empty"),
    "no such column": ("a.csv", b"words,label\nfine,1\n", "dataset.columns.text"),
    "empty text": ("a.csv", b"text,label\n,1\nfine,0\n", "1 row"),
    "label out of range": ("a.csv", b"text,label\nfine,7\ngood,1\nbad,0\n", "label"),
    "one class only": ("a.csv", b"text,label\nfine,1\ngood,1\nwarm,1\n", "one label"),
    "not UTF-8": ("a.csv", b"text,label\n\xff\xfe,1\n", "UTF-8"),
    "answer off": (
        "a.json",
        json.dumps(
            {"data": [{"title": "t", "paragraphs": [{"context": "Ada did.", "qas": [
                {"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 3}]}]}]}]}
        ).encode(),
        "offset",
    ),
    "duplicate id": ("a.csv", b"id,text,label\n1,fine,1\n1,bad,0\n", "id"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_one_message_and_nothing_is_trained(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    case: str,
) -> None:
    name, raw, fragment = BAD_DATA[case]
    (tmp_path / name).write_bytes(raw)
    task = "extractive_qa" if name.endswith("json") else "classification"
    lines = [f"task: {task}", "model: {model_name_or_path: tiny}"]
    data = f"dataset: {{parts: {{train: {tmp_path / name}}}"
    lines.append(data + (", labels: [bad, good]}" if "label" in case else "}"))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("\n".join(lines) + "\n")
    output = f"train.output_dir={tmp_path / 'run'}"
    error = fails(capsys, monkeypatch, app, "train", str(recipe), output)
    assert fragment in error and str(tmp_path / name) in error
    assert len(error.splitlines()) <= 3
    assert not (tmp_path / "run/training.json").exists()


def test_params_of_a_recipe(make_recipe: Callable[..., Recipe]) -> None:
    done = CliRunner().invoke(app, ["params", "tiny-sst2", "--json"])
    found = json.loads(done.stdout)
    assert found["trainable"] == found["head"] + found["adapter"] > 0
    assert found["total"] == found["base"] + found["trainable"]


def test_validate_prints_the_parts() -> None:
    done = CliRunner().invoke(app, ["validate", "tiny-sst2"])
    assert done.exit_code == 0
    assert "train: 2,400 examples: negative 1,200, positive 1,200" in done.stdout
    assert re.search(
        r"tokens: median \d+, 95 % \d+, longest \d+; none is cut at .*max_length 128", done.stdout
    )


# --- several models

FEW = ["dataset.parts={train: 24, validation: 8, test: 16}", "quantization.load_in_4bit=false"]


def evaluate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str, str]:
    """Run `llama-eval run --task tiny-sst2` in this process; returns its exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["llama-eval", "run", "--task", "tiny-sst2", *FEW, *words])
    with pytest.raises(SystemExit) as stop:
        cli.run(eval_app)
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


def test_every_model_is_checked_before_the_first_is_evaluated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["--model", "tiny", "--model", "/no/such/model", "--output", str(tmp_path)]
    code, _, error = evaluate(capsys, monkeypatch, *words)
    assert code == 2 and "/no/such/model" in error
    assert not list(tmp_path.rglob("results.json"))


def test_two_models_never_share_a_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["--model", "me/base", "--model", "me-base", "--output", str(tmp_path)]
    code, _, error = evaluate(capsys, monkeypatch, *words)
    assert code == 2 and "--output" in error and str(tmp_path / "me-base") in error
    assert len(error.splitlines()) == 1


def test_finished_results_are_shown_and_kept_when_another_model_fails(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    make_base: Callable[..., Path],
) -> None:
    from safetensors.torch import load_file, save_file

    broken = make_base()
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    words = ["--model", "tiny", "--model", str(broken), "--output", str(tmp_path)]
    code, table, error = evaluate(capsys, monkeypatch, *words)
    assert code == 2 and "the model's scores are not numbers" in error
    assert "zero-shot verbalizer" in table
    first = (tmp_path / "tiny/results.json").stat().st_mtime_ns
    assert evaluate(capsys, monkeypatch, *words)[0] == 2
    assert (tmp_path / "tiny/results.json").stat().st_mtime_ns == first, "not evaluated again"
    assert evaluate(capsys, monkeypatch, *words, "eval.limit=3")[0] == 2
    assert (tmp_path / "tiny/results.json").stat().st_mtime_ns != first


# --- what is printed

ESCAPES = "\x1b]0;x\x07\u202e"


@pytest.fixture
def printed(tmp_path: Path) -> Callable[..., str]:
    """All that a command prints; a line of it that a value forged, or a control character, is a failure."""

    def run(*words: str, program: str = "llama_peft") -> str:
        _, text = forked.run(words, tmp_path / "log", program)
        assert not set(text) & set("\x1b\x07\u202e") and "Traceback" not in text, ascii(text)
        assert not [line for line in text.splitlines() if line.startswith("forged")]
        return text

    return run


def test_labels_ids_and_prompts_are_printed_as_visible_text(
    printed: Callable[..., str], tmp_path: Path
) -> None:
    label, file = f"good{ESCAPES}\nforged", tmp_path / "a.csv"
    rows = "".join(
        f'"{name}{ESCAPES}\nforged {name}","film {name}{ESCAPES}\nforged","{label if name % 2 else "bad"}"\n'
        for name in range(8)
    )
    file.write_text(f"id,text,label\n{rows}", "utf-8")
    parts = f"dataset.parts={{train: {file}}}"
    words = [
        "tiny-sst2",
        *FILE[:-1],
        parts,
        "dataset.test_size=0.25",
        "dataset.validation_size=0.25",
    ]
    assert r"examples: bad 2, good\x1b]0;x\x07\u202e\nforged 2" in printed("validate", *words)
    shown = ["--task", *words, "--show", "2", "--output", str(tmp_path / "out")]
    text = printed("run", *shown, "quantization.load_in_4bit=false", program="eval")
    assert text.count("\n| ") > 2 and f"\n{text}".count("\n--- ") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", f"/no/{ESCAPES}\nforged.yaml"], "no such recipe"),
        (["train", "tiny-sst2", f"train.seed={ESCAPES}\nforged"], "train.seed: must be"),
        (["predict", f"/no/{ESCAPES}\nforged", "text"], "no finished run"),
        ([f"tr{ESCAPES}\nforged"], "see --help"),
        (
            ["train", "tiny-sst2", "model.model_name_or_path=https://u:SECRET@hf.co/a"],
            "web address",
        ),
        (["params", "https://u:SECRET@hf.co/a/b"], "this is a web address"),
        (["predict", "https://u:SECRET@hf.co/a/b", "text"], "this is a web address"),
        (["push", "/no/run", "--repo-id", "https://u:SECRET@hf.co/a/b"], "this is a web address"),
    ],
)
def test_errors_are_visible_text_without_secrets(
    printed: Callable[..., str], words: list[str], said: str
) -> None:
    text = printed(*words)
    assert said in text and "SECRET" not in text and text.startswith("error: ")


def test_names_of_an_evaluation_are_no_web_addresses(printed: Callable[..., str]) -> None:
    for word in ("--model", "--data"):
        text = printed(
            "run", "--task", "tiny-sst2", word, "https://u:SECRET@hf.co/a", program="eval"
        )
        assert "this is a web address" in text and "SECRET" not in text


def test_a_link_to_itself_is_one_line(printed: Callable[..., str], tmp_path: Path) -> None:
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    assert "no such recipe" in printed("train", str(loop))
    text = printed("train", "tiny-sst2", f"train.output_dir={loop}", "--fresh")
    assert text.startswith("error: ") and str(loop) in text
