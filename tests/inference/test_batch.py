"""Batch prediction: the same as an evaluation's predictions, in the order of the file, and nothing of others is replaced."""

import csv
import functools
import io
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest

from eval import harness
from eval.job import make_job
from llama_peft import cli, data, load_recipe, load_run
from llama_peft.__main__ import app
from llama_peft.errors import UserError
from llama_peft.inference import batch, rows, unfinished
from llama_peft.inference.batch import open_batch, replies, write
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.threshold import Threshold, write_threshold
from tests.support import forked
from tests.support.paths import RUNS_0_1_0

CLASSIFIER, SPAN, GENERATIVE = (RUNS_0_1_0 / name for name in ("classifier", "span", "generative"))
TEXTS = [f"A {'very ' * (n * 7 % 5)}{word} film." for n, word in enumerate(["warm", "dull"] * 6)]


def labelled(run: Path, folder: Path) -> tuple[Path, Path]:
    """The test part of a run as a file, and the same rows without what is right."""
    its: list[dict[str, Any]] = []
    recipe = load_recipe(run / "recipe.yaml")
    for example in data.load(recipe).parts["test"]:
        if isinstance(example, data.TextExample):
            names = recipe.dataset.labels or ()
            its.append({"id": example.id, "text": example.text, "label": names[example.label]})
        else:
            answers = [{"text": a.text, "answer_start": a.start} for a in example.answers]
            asked = {"question": example.question, "context": example.context}
            its.append({"id": example.id, **asked, "answers": answers})
    its = random.Random(0).sample(its, min(len(its), 14))
    paths = folder / "labelled.jsonl", folder / "asked.jsonl"
    paths[0].write_text("".join(json.dumps(row) + "\n" for row in its), "utf-8")
    for row in its:
        row.pop("label", None), row.pop("answers", None)
    paths[1].write_text("".join(json.dumps(row) + "\n" for row in its), "utf-8")
    return paths


def texts(folder: Path, name: str = "in.csv", column: str = "id") -> Path:
    frame = pandas.DataFrame({column: [f"row {n}" for n in range(len(TEXTS))], "text": TEXTS})
    frame.to_csv(folder / name, index=False)
    return folder / name


def predicted(run: Path, path: Path | str, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    return [dict(row) for row in replies(open_batch(open_run(run), str(path), None, overrides))]


@pytest.mark.parametrize("run", [CLASSIFIER, SPAN, GENERATIVE], ids=lambda run: run.name)
def test_predictions_are_those_of_an_evaluation(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, over several portions, and in the order of the file."""
    monkeypatch.setattr(unfinished, "PORTION", 5)
    own = tmp_path / "run"
    shutil.copytree(run, own)  # an evaluation may keep a threshold there
    truth, asked = labelled(run, tmp_path)
    harness.run(make_job(model=str(own), data_file=str(truth), output=tmp_path / "out"))
    lines = (tmp_path / "out/predictions.jsonl").read_text("utf-8").splitlines()
    evaluated = {line["id"]: line for line in map(json.loads, lines)}
    found = predicted(own, asked)
    assert [row["id"] for row in found] == [
        json.loads(line)["id"] for line in asked.read_text("utf-8").splitlines()
    ]
    for row in found:
        line = evaluated[row["id"]]
        assert row.get("label", row.get("answer")) == line["prediction"]
        assert list(row.get("probabilities", {}).values()) == line.get("probabilities", [])
        assert row.get("no_answer_probability") == line.get("no_answer_probability")


ODD = "Zoë 🦙 naïve e\u0301 日本語 \u200dé\ufeff"


def test_an_answer_is_the_piece_of_its_passage_between_start_and_end(tmp_path: Path) -> None:
    """Characters and not bytes, tokens or characters of a normal form."""
    own = tmp_path / "run"
    shutil.copytree(SPAN, own, ignore=lambda *_: ["threshold.json"])
    write_threshold(own, Threshold(no_answer_threshold=1.0))
    _, path = labelled(SPAN, tmp_path)
    asked = [json.loads(line) for line in path.read_text("utf-8").splitlines()][:5]
    asked = [
        {**row, "id": f"{row['id']} {number}", "context": context}
        for row in asked
        for number, context in enumerate(
            (
                row["context"],
                f"{ODD} \n\n {row['context']}",
                row["context"].replace(" ", f" {ODD[:7]}"),
                f"{row['context']} " * 6,
            )
        )
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in asked), "utf-8")
    found = predicted(own, path)
    for row, given in zip(found, asked, strict=True):
        assert row["answer"] == given["context"][row["start"] : row["end"]] != ""
    assert any(row["start"] > 400 for row in found), "some are in a later window or far inside"
    write_threshold(own, Threshold(no_answer_threshold=-1.0))
    for row in predicted(own, path):
        assert (row["answer"], row["start"], row["end"]) == ("", None, None)


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    """Labels are not needed, the recipe's own name for their column is not either, and a bad label is not read."""
    frame = pandas.read_csv(texts(tmp_path))
    frame["label"] = ["no label at all", *[""] * (len(TEXTS) - 1)]
    frame.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    frame.to_json(tmp_path / "a.json", orient="records")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    expected = predicted(CLASSIFIER, tmp_path / "in.csv")
    assert [row["id"] for row in expected] == list(frame["id"])
    for name in ("a.tsv", "a.json", "a.jsonl", "a.parquet"):
        assert predicted(CLASSIFIER, tmp_path / name) == expected
    named = ["dataset.columns.label=gold", "dataset.columns.group=film"]
    assert predicted(CLASSIFIER, tmp_path / "in.csv", named) == expected


def test_squad_s_own_file_needs_no_answers(tmp_path: Path) -> None:
    qas = [{"id": f"q{n}", "question": "Who?", "is_impossible": False} for n in range(3)]
    paragraph = {"context": "Ada built it.", "qas": qas}
    file = tmp_path / "asked.json"
    file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    assert [row["id"] for row in predicted(GENERATIVE, file)] == ["q0", "q1", "q2"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_standard_input_is_read_whatever_its_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    frame = pandas.read_csv(texts(tmp_path))
    whole = io.BytesIO()
    if kind == "parquet":
        frame.to_parquet(whole)
    elif kind.startswith("json"):
        frame.to_json(whole, orient="records", lines=kind == "jsonl")
    else:
        frame.to_csv(whole, sep="\t" if kind == "tsv" else ",", index=False)
    stream = io.TextIOWrapper(io.BytesIO(whole.getvalue()))
    monkeypatch.setattr(sys, "stdin", stream)
    assert predicted(CLASSIFIER, "-") == predicted(CLASSIFIER, tmp_path / "in.csv")


def test_ids_are_the_file_s_own_or_are_made(tmp_path: Path) -> None:
    path = texts(tmp_path, column="film")
    made = predicted(CLASSIFIER, path)
    assert [row["id"] for row in made] == [f"in-{n + 1}" for n in range(len(TEXTS))]
    own = predicted(CLASSIFIER, path, ["dataset.columns.id=film"])
    assert all(list(row)[:2] == ["id", "film"] and row["id"] == row["film"] for row in own)
    assert [row["film"] for row in own] == [f"row {n}" for n in range(len(TEXTS))]


def test_csv_and_json_hold_the_same(tmp_path: Path) -> None:
    opened = open_batch(open_run(CLASSIFIER), str(texts(tmp_path)), None, ())
    write(opened, tmp_path / "out.csv")
    write(opened, tmp_path / "out.jsonl")
    lines = list(map(json.loads, (tmp_path / "out.jsonl").read_text("utf-8").splitlines()))
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert lines == predicted(CLASSIFIER, tmp_path / "in.csv")
    for line, row in zip(lines, cells, strict=True):
        chances = {f"probabilities.{k}": str(v) for k, v in line.pop("probabilities").items()}
        assert row == {**line, **chances}


@pytest.mark.parametrize(
    "cell",
    [
        "=cmd|' /C calc'!A0", "+SUM(A1)", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''@x", "'quoted'", "-5",
        "+1.5e3", "plain", "", "'", "-", "\uff1d1", "-.5", "- no",
    ],
)  # fmt: skip
def test_no_cell_is_a_formula_and_every_text_comes_back(cell: str) -> None:
    line = rows.as_csv({"id": cell, "probabilities": {cell: None}})
    ((written, empty),) = csv.reader(io.StringIO(line, newline=""))
    assert rows.as_written(written) == cell and empty == ""
    number = cell.lstrip("+-").replace(".", "").replace("e", "").isdigit()
    assert number or not written.startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))


def die_when_named(before: bool) -> None:
    """In a child: kill -9 just before or after the whole file gets its name."""
    plain = batch.files.publish

    def deadly(*of: Any) -> None:
        if not before:
            plain(*of)
        os.kill(os.getpid(), signal.SIGKILL)

    batch.files.publish = deadly


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_killed_prediction_goes_on_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    path = texts(tmp_path)
    size = "train.per_device_eval_batch_size=2"
    opened = open_batch(open_run(CLASSIFIER), str(path), None, [size])
    write(opened, tmp_path / f"whole {name}")
    words = [
        "predict",
        str(CLASSIFIER),
        size,
        "--data",
        str(path),
        "--output",
        str(tmp_path / name),
    ]
    hooks = [functools.partial(forked.die_after, n) for n in (0, 1, 3, 4)]
    hooks += [functools.partial(die_when_named, before) for before in (True, False)]
    for hook in hooks:
        assert not (tmp_path / name).exists(), "it appears when it is whole"
        code, text = forked.run(words, tmp_path / "log", "llama_peft", hook)
        assert code == -signal.SIGKILL, text
    assert (tmp_path / name).read_bytes() == (tmp_path / f"whole {name}").read_bytes()
    made = (tmp_path / name).stat()
    write(opened, tmp_path / name)
    assert (tmp_path / name).stat() == made, "a finished file is left as it is"
    assert {p.name for p in (tmp_path / f".{name}.predict").iterdir()} == {".lock", "made.json"}


@pytest.mark.parametrize(
    "kind", ["text", "link", "dangling", "folder", "edited", "other rows", "other settings"]
)
def test_what_these_rows_did_not_give_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path, output = texts(tmp_path), tmp_path / "out.jsonl"
    outside = tmp_path / "outside.jsonl"
    outside.write_text("precious")
    opened = open_batch(open_run(CLASSIFIER), str(path), None, ())
    if kind == "text":
        output.write_text("mine")
    elif kind in ("link", "dangling"):
        output.symlink_to(outside if kind == "link" else tmp_path / "absent")
    elif kind == "folder":
        output.mkdir()
    else:
        write(opened, output)
    if kind == "edited":
        output.write_text(output.read_text() + "\n")
    elif kind == "other rows":
        path.write_text(path.read_text() + "new,A new film.\n")
    before = output.read_bytes() if output.is_file() else None
    overrides = ["eval.max_new_tokens=9"] if kind == "other settings" else []
    with pytest.raises(UserError, match="not replaced") as said:
        write(open_batch(open_run(CLASSIFIER), str(path), None, overrides), output)
    assert "\n" not in str(said.value) and outside.read_text() == "precious"
    assert before == (output.read_bytes() if output.is_file() else None)
    assert not (tmp_path / "absent").exists()


def test_a_file_that_appears_in_the_meantime_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_batch(open_run(CLASSIFIER), str(texts(tmp_path)), None, ())
    plain, output = batch._write_whole, tmp_path / "out.csv"
    monkeypatch.setattr(
        batch, "_write_whole", lambda *of: plain(*of) or output.write_text("precious")
    )
    with pytest.raises(UserError, match="not replaced"):
        write(opened, output)
    assert output.read_text() == "precious"


@pytest.mark.parametrize("kind", ["file", "link", "foreign", "unfinished link"])
def test_the_work_is_kept_in_a_folder_of_ours(tmp_path: Path, kind: str) -> None:
    state, mine = tmp_path / ".out.csv.predict", tmp_path / "mine"
    mine.mkdir()
    (mine / "letter").write_text("precious")
    if kind == "file":
        state.write_text("precious")
    elif kind == "link":
        state.symlink_to(mine)
    else:
        state.mkdir()
        place = state / ("unfinished.jsonl" if kind == "unfinished link" else "letter")
        place.symlink_to(mine / "letter")
    opened = open_batch(open_run(CLASSIFIER), str(texts(tmp_path)), None, ())
    with pytest.raises(UserError, match=r"\.out\.csv\.predict"):
        write(opened, tmp_path / "out.csv")
    assert (mine / "letter").read_text() == "precious" and not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "{file}", "--output", "out.txt"], "does not say the format"),
        (["--data", "{file}", "--split", "test"], "not a data set on the Hub"),
        (["--data", "{file}", "train.seed=3"], "fixed this key"),
        (["--data", "{file}", "dataset.columns.text=body"], "no column named body"),
        (["--data", "{file}", "--question", "Who?"], "leave --question"),
        (["--output", "out.csv", "A film."], "belong to --file"),
        (["--data", "absent.csv"], "no such file"),
        ([], "--file FILE"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    given = [word.replace("{file}", str(texts(tmp_path))) for word in words]
    monkeypatch.setattr(sys, "argv", ["llama-peft", "predict", str(CLASSIFIER), *given])
    with pytest.raises(SystemExit) as stop:
        cli.run(app)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and "Traceback" not in error


def test_lines_on_standard_output_are_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = texts(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["llama-peft", "predict", str(CLASSIFIER), "--data", str(path)]
    )
    with pytest.raises(SystemExit) as stop:
        cli.run(app)
    assert not stop.value.code
    lines = capsys.readouterr().out.splitlines()
    assert list(map(json.loads, lines)) == predicted(CLASSIFIER, path)


@pytest.mark.parametrize(
    ("run", "typed", "asked"),
    [
        (CLASSIFIER, ["A warm film.", "", "Dull."], [["A warm film."], ["Dull."]]),
        (GENERATIVE, ["It is in Rome.", "Where?"], [[("Where?", "It is in Rome.")]]),
    ],
)
def test_what_is_typed_on_a_terminal_gets_its_prediction(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path,
    typed: list[str], asked: list[list[Any]],
) -> None:  # fmt: skip
    """A mistake is one line, and the next text is asked for."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in typed)))
    monkeypatch.setattr(sys, "argv", ["llama-peft", "predict", str(run), "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.run(app)
    out, error = capsys.readouterr()
    assert not stop.value.code
    found = [json.loads("{" + line.partition("{")[2]) for line in out.splitlines() if "{" in line]
    loaded = load_run(run)
    assert found == [loaded.predict(one)[0].as_dict() for one in asked]
    assert ("is not a text" in error) == ("" in typed)
