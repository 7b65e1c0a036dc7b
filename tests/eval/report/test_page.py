"""Laws of the page: it is sound, complete and harmless."""

import json
import os
from pathlib import Path

import pytest

from eval import report
from llama_peft.errors import UserError
from llama_peft.system.files import sha256
from tests.support import runs
from tests.support.evaluations import EVIL, GOLDS, LABELS, spoil, write
from tests.support.html import CheckedPage


def history(run: Path) -> None:
    lines = [{"step": s, "epoch": s / 10, "loss": 1 / s} for s in range(1, 11)]
    lines += [{"step": 5, "eval_loss": 0.5}, {"step": 10, "train_runtime": 3.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "history.jsonl").write_text(text, "utf-8")


def test_the_page_is_sound_and_shows_scores_confusion_changes_and_the_curve(run):
    history(run)
    (run / "recipe.yaml").write_text("task: classification\n", "utf-8")
    assert report.write_html(run) == run / "report.html"
    page = CheckedPage((run / "report.html").read_text("utf-8"))
    assert {"svg", "polyline", "table", "details"} <= page.tags
    words = " ".join(page.text.split())
    for shown in (
        "0.5000",
        "0.8000",
        "+0.3000",
        "Right only after fine-tuning: 8",
        "Right only before fine-tuning: 2",
        "s17 positive negative positive",
        "s01 positive positive negative",
        "task: classification",
        "training.wall_seconds 7300.0",
        "git_hash abcdef",
        "torch 2.13",
        "negative 8 80.0 % 2 20.0 %",
    ):
        assert shown in words, shown


def test_the_page_of_answers_shows_who_answered_what(squad):
    report.write_html(squad)
    page = CheckedPage((squad / "report.html").read_text("utf-8"))
    words = " ".join(page.text.split())
    assert "answerable 1 50.0 % 1 50.0 % 0 0.0 % unanswerable 0 0.0 % 1 50.0 % 1 50.0 %" in words
    assert "q3 (no answer) x (no answer)" in words
    assert "q2 red house | house a house red" in words
    assert "holds no losses" in words and "svg" not in page.tags


def test_the_page_draws_what_the_surest_answers_score(squad):
    for name in ("zero-shot", "tuned"):
        file = squad / name / "predictions.jsonl"
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        sure = [line | {"no_answer_probability": n / 10} for n, line in enumerate(lines)]
        file.write_text("".join(json.dumps(line) + "\n" for line in sure), "utf-8")
    report.write_html(squad)
    text = (squad / "report.html").read_text("utf-8")
    page = CheckedPage(text)
    assert "What is right if only the surest predictions are kept" in " ".join(page.text.split())
    assert text.count("<polyline") == 2 and ">zero-shot</text>" in text and ">tuned</text>" in text


def test_nothing_in_the_data_becomes_markup_and_nothing_is_fetched(evil):
    report.write_html(evil)
    text = (evil / "report.html").read_text("utf-8")
    page = CheckedPage(text)
    assert not {"script", "b", "i", "img", "link", "a", "iframe"} & page.tags
    assert not {"src", "href", "onload", "onclick"} & page.attributes
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text
    assert EVIL in page.text and "</pre><script>alert(2)</script>" in page.text


@pytest.mark.parametrize(
    "damage", [lambda text: text + '{"step": 1', lambda text: text.replace("0.", "1.", 1)]
)
def test_a_damaged_curve_is_left_out_with_a_word(run, caplog, damage):
    history(run)
    facts = json.loads((run / "training.json").read_text())
    runs.write_record(run, facts | {"history_sha256": sha256(run / "history.jsonl")})
    report.write_html(run)
    assert "<svg" in (run / "report.html").read_text() and not caplog.messages
    spoil(run / "history.jsonl", damage)
    report.write_html(run)
    assert "<svg" not in (run / "report.html").read_text()
    assert "history.jsonl is damaged (it is not what the training wrote)" in caplog.text


def test_a_report_needs_both_evaluations_of_one_part(run):
    write(run / "zero-shot", GOLDS, GOLDS, labels=LABELS, part="official")
    with pytest.raises(UserError, match="different parts"):
        report.write_html(run)


def test_evaluations_of_other_examples_are_reported_without_changes(run):
    some = dict(list(GOLDS.items())[5:])
    write(run / "zero-shot", some, some, labels=LABELS)
    report.write_html(run)
    text = (run / "report.html").read_text("utf-8")
    assert "so the two cannot be compared" in text and "Right only after fine-tuning" not in text


NESTED = "[" * 100_000
LINES = [
    NESTED, "[[1]]", "5", "nan", '{"step": NaN, "loss": 1}', '{"step": 1e999, "loss": 1}', '{"step": 1, "loss": 1e308}',
    '{"step": 1, "loss": -1e308}', '{"step": 1' + "0" * 400 + ', "loss": 1}', '{"step": -1, "loss": 5e-324}',
    '{"step": 1, "loss": 1.0000000000000002}\n{"step": 2, "loss": 1.0}', '{"step": 1, "loss": 1e-13}',
    '{"step": 5e-324, "loss": 1e15}',
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_no_curve_stops_the_report(run, line):
    (run / "history.jsonl").write_text(line + "\n")
    report.write_html(run)
    text = (run / "report.html").read_text("utf-8")
    assert "nan" not in text and "inf" not in text.replace("info", "")


@pytest.mark.parametrize("kind", ["link", "pipe", "loop", "large"])
def test_a_curve_that_is_not_a_file_of_the_run_is_left_out(run, tmp_path, caplog, kind):
    place = run / "history.jsonl"
    (tmp_path / "outside").write_text('{"step": 1, "loss": 0.123456}\n')
    if kind == "link":
        place.symlink_to(tmp_path / "outside")
    elif kind == "loop":
        place.symlink_to(place)
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        with place.open("wb") as file:
            file.truncate(1 << 40)
    report.write_html(run)
    assert "<svg" not in (run / "report.html").read_text("utf-8")
    assert "the report has no loss curve" in caplog.text


@pytest.mark.parametrize("name", ["report.html", "comparison.json"])
@pytest.mark.parametrize("text", ["# mine", "<html>my own page</html>", '{"my": "notes"}'])
def test_what_the_user_wrote_is_not_replaced(run, name, text):
    (run / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}: llama-eval did not write this file") as said:
        report.write_html(run)
    assert (run / name).read_text() == text and "\n" not in str(said.value)
    assert not any((run / other).exists() for other in {"report.html", "comparison.json"} - {name})


@pytest.mark.parametrize("name", ["report.html", "comparison.json"])
def test_a_damaged_report_of_ours_is_made_again(run, name):
    report.write_html(run)
    whole = (run / name).read_bytes()
    for damage in (whole[: len(whole) // 2], b"", whole + b"x", None):
        (run / name).unlink()
        if damage is not None:
            (run / name).write_bytes(damage)
        report.write_html(run)
        assert (run / name).read_bytes() == whole


@pytest.mark.parametrize("name", ["report.html", "comparison.json", "report.html.partial"])
def test_nothing_is_written_through_a_link(run, tmp_path, name):
    (tmp_path / "outside").write_text("precious")
    (run / name).symlink_to(tmp_path / "outside")
    if name.endswith("partial"):
        report.write_html(run)
    else:
        with pytest.raises(UserError, match="leads out of"):
            report.write_html(run)
    assert (tmp_path / "outside").read_text() == "precious"


@pytest.mark.parametrize(
    "name", ["tuned", "tuned/predictions.jsonl", "tuned/results.json", "recipe.yaml"]
)
def test_nothing_outside_the_run_is_shown(run, tmp_path, name):
    (tmp_path / "outside").write_text("precious")
    if (run / name).exists():
        (run / name).rename(tmp_path / "outside2")
        (run / name).symlink_to(tmp_path / "outside2")
    else:
        (run / name).symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="leads out of"):
        report.write_html(run)
    assert not (run / "report.html").exists()
