"""Laws of the page: it is sound, complete and harmless, and its numbers are those of results.json."""

import base64
import hashlib
import json
import os
import re
from functools import cache
from pathlib import Path

import pytest

from eval import report
from eval.report.charts import Chart, figures, training
from eval.report.charts.figures import Mean
from eval.report.page import examples, facts
from eval.report.page import page as pages
from llama_peft.errors import UserError
from llama_peft.export.report import checked_report
from llama_peft.run_folder.comparison import read_comparison
from llama_peft.system.files import sha256
from tests.support import runs
from tests.support.evaluations import ANSWERS, EVIL, GOLDS, LABELS, spoil, write
from tests.support.html import CheckedPage, embedded

CURVE = 'aria-label="The training.'


@pytest.fixture(autouse=True)
def few_charts(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """One chart stands for those of a part, which cost time, unless a test is about them."""
    if "every_chart" not in request.fixturenames:
        monkeypatch.setattr(pages, "drawn", lambda part: iter([one_chart()]))


@pytest.fixture
def every_chart() -> None:
    """The charts of a part are drawn."""


@cache
def one_chart() -> Chart:
    chart = figures.scores("f1", {"a": Mean(0.5, 0.4, 0.6)}, figures.colours_of(["a"]))
    assert chart is not None
    return chart


def history(run: Path) -> None:
    lines = [{"step": s, "epoch": s / 10, "loss": 1 / s} for s in range(1, 11)]
    lines += [{"step": 5, "eval_loss": 0.5}, {"step": 10, "train_runtime": 3.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "history.jsonl").write_text(text, "utf-8")


def written(run: Path) -> str:
    return report.write_html(run).read_text("utf-8")


def words_of(text: str) -> str:
    return " ".join(CheckedPage(text).text.split())


def test_the_page_is_sound_and_shows_scores_counts_and_the_curve(
    run: Path, every_chart: None
) -> None:
    history(run)
    (run / "recipe.yaml").write_text("task: classification\n", "utf-8")
    text = written(run)
    assert {"svg", "path", "table", "details", "main", "nav"} <= CheckedPage(text).tags
    assert CURVE in text
    words = words_of(text)
    for shown in (
        "0.5000",
        "0.8000",
        "+0.3000",
        "head is not clearly different from zero-shot: accuracy 0.8000 against 0.5000 (+0.3000",
        "task: classification",
        "training.wall_seconds 7300.0",
        "git_hash abcdef",
        "torch 2.13",
        "negative 8 80.0 % 2 20.0 %",
        f"llama-eval html {run}",
    ):
        assert shown in words, shown


@pytest.mark.parametrize("name", ["run", "squad"])
def test_the_numbers_of_the_page_are_those_of_results_json(
    name: str, request: pytest.FixtureRequest
) -> None:
    run: Path = request.getfixturevalue(name)
    (part,) = embedded(written(run))
    for system, said, folder in zip(
        part["systems"], part["said"], ("zero-shot", "tuned"), strict=True
    ):
        (scores,) = json.loads((run / folder / "results.json").read_text("utf-8"))[
            "results"
        ].values()
        assert system["scores"] == scores
        right = sum(said["right"]) / len(part["rows"]["id"])
        assert right == pytest.approx(
            scores["accuracy"] if name == "run" else scores["exact"] / 100
        )
        lines = (run / folder / "predictions.jsonl").read_text("utf-8").splitlines()
        by_id = {line["id"]: line["prediction"] for line in map(json.loads, lines)}
        assert dict(zip(part["rows"]["id"], said["prediction"], strict=True)) == by_id


def test_answers_are_counted_by_whether_there_is_one(squad: Path) -> None:
    write(squad / "tuned", {"q1": "paris", "q2": "?", "q3": "?", "q4": ""}, ANSWERS, kind="span")
    text = written(squad)
    words = words_of(text)
    assert "answerable 1 50.0 % 1 50.0 % 0 0.0 % unanswerable 0 0.0 % 1 50.0 % 1 50.0 %" in words
    tuned = "answerable 1 50.0 % 0 0.0 % 0 0.0 % 1 50.0 % unanswerable 0 0.0 % 0 0.0 % 1 50.0 % 1 50.0 %"
    assert f"punctuation only {tuned}" in words
    (part,) = embedded(text)
    assert part["said"][1]["hollow"] == [0, 1, 1, 0] and "holds no losses" in words


def test_the_page_draws_what_the_surest_answers_score_and_the_threshold(
    squad: Path, every_chart: None
) -> None:
    for name in ("zero-shot", "tuned"):
        file = squad / name / "predictions.jsonl"
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        sure = [line | {"no_answer_probability": n / 10} for n, line in enumerate(lines)]
        file.write_text("".join(json.dumps(line) + "\n" for line in sure), "utf-8")
    text = written(squad)
    assert "What the surest predictions score" in text and "The threshold on no answer" in text
    (part,) = embedded(text)
    assert part["said"][0]["sure"] == [1.0, 0.9, 0.8, 0.3]  # the last one says that there is none


def test_nothing_in_the_data_becomes_markup_and_nothing_is_fetched(
    evil: Path, every_chart: None
) -> None:
    text = written(evil)
    page = CheckedPage(text)
    assert not {"b", "i", "img", "link", "iframe", "form", "object"} & page.tags
    assert text.count("<script") == 2 and "</script><script>alert" not in text
    assert not [
        name for name in page.attributes if name.startswith("on") or name in ("src", "style")
    ]
    assert not re.findall(r'href="(?!#)', text) and "@import" not in text and "url(" not in text
    assert EVIL in page.text and "</pre><script>alert(2)</script>" in page.text
    (part,) = embedded(text)
    assert EVIL.replace("\u2028", "\\u2028") in part["rows"]["text"]


def test_only_the_style_and_the_script_of_the_package_are_allowed(evil: Path) -> None:
    text = written(evil)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    inner = {
        "style-src": re.findall(r"<style>(.*?)</style>", text, re.DOTALL),
        "script-src": re.findall(r"<script>(.*?)</script>", text, re.DOTALL),
    }
    for name, (own,) in inner.items():
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert rules.pop(name) == f"'sha256-{digest}'"
    assert rules == {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}


def test_what_is_pushed_holds_no_example_and_no_script(evil: Path, every_chart: None) -> None:
    history(evil)
    text = written(evil)
    pushed = checked_report(evil, read_comparison(evil))
    assert "<script" not in pushed and "<template" not in pushed and CURVE in pushed
    assert embedded(text)[0]["rows"]["id"][0] == "<i>0" and "i&gt;0" not in pushed


def test_a_few_examples_at_a_time_make_the_same_page(squad: Path, monkeypatch) -> None:
    whole = written(squad)
    monkeypatch.setattr(examples, "_TOGETHER", 2)
    assert embedded(written(squad)) == embedded(whole)


def test_a_page_that_would_be_too_large_shows_a_sample_and_says_so(run: Path, monkeypatch) -> None:
    (whole,) = embedded(written(run))
    monkeypatch.setattr(pages, "LARGEST", int(0.8 * len(json.dumps(whole, separators=(",", ":")))))
    (part,) = embedded(written(run))
    kept = part["rows"]["id"]
    assert 5 < len(kept) < 20 and part["examples"] == 20
    assert kept == sorted(kept) and {*kept} < {*whole["rows"]["id"]}
    assert all(len(column) == len(kept) for said in part["said"] for column in said.values())


def test_prompts_and_passages_are_held_once_and_come_back_as_they_were(squad: Path) -> None:
    for folder in ("zero-shot", "tuned"):
        file = squad / folder / "predictions.jsonl"
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        for line in lines:
            line |= {"text": f"Why {line['id']}?", "passage": "It is a red house."}
            line["prompt"] = f"Read: {line['passage']}\n{line['text']} {line['text']}\nAnswer:"
        lines[0]["prompt"] += "\ue000"  # data can hold the marks themselves
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (part,) = embedded(written(squad))
    assert part["passages"] == ["It is a red house."] and len(part["frames"]) == 2
    first, second = part["said"][0]["frame"][:2]
    assert part["frames"][first] == "Read: It is a red house.\nWhy q1? Why q1?\nAnswer:\ue000"
    assert part["frames"][second] == "Read: \ue001\n\ue000 \ue000\nAnswer:"


@pytest.mark.parametrize(
    "damage", [lambda text: text + '{"step": 1', lambda text: text.replace("0.", "1.", 1)]
)
def test_a_damaged_curve_is_left_out_with_a_word(run, caplog, damage):
    history(run)
    facts = json.loads((run / "training.json").read_text())
    runs.write_record(run, facts | {"history_sha256": sha256(run / "history.jsonl")})
    assert CURVE in written(run) and not caplog.messages
    assert (run / "charts/training.png").is_file()
    spoil(run / "history.jsonl", damage)
    assert CURVE not in written(run)
    assert not (run / "charts/training.png").exists(), "a chart that is no longer true"
    assert "history.jsonl is damaged (it is not what the training wrote)" in caplog.text


def test_a_report_needs_both_evaluations_of_one_part(run):
    write(run / "zero-shot", GOLDS, GOLDS, labels=LABELS, part="official")
    with pytest.raises(UserError, match="different parts"):
        report.write_html(run)


@pytest.mark.parametrize(("name", "is_said"), [("train-7", True), ("test-7", False), ("a7", False)])
def test_an_id_that_counts_the_rows_of_another_part_is_explained(run, name, is_said):
    for folder in ("zero-shot", "tuned"):
        write(run / folder, {name: "positive"}, {name: "positive"}, labels=LABELS, kind=folder)
    text = report.write_html(run).read_text("utf-8")
    assert ("train-7 is row 7 of the source of the train part" in text) == is_said


def test_evaluations_of_other_examples_are_reported_without_a_difference(run):
    some = dict(list(GOLDS.items())[5:])
    write(run / "zero-shot", some, some, labels=LABELS)
    text = written(run)
    assert "so the two cannot be compared" in text and "p &lt;" not in text
    (part,) = embedded(text)
    assert part["said"][1] is not None and len(part["rows"]["id"]) == 15


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
    chart = training.curves(facts.history(run))
    assert chart is None or not re.search(r' d="[^"]*(nan|inf)', chart.inline)


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
    assert CURVE not in written(run)
    assert "the report has no loss curve" in caplog.text


OURS = ["report.html", "comparison.json", "charts/scores.png", "charts/scores.svg"]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("text", ["# mine", "<html>my own page</html>", '{"my": "notes"}'])
def test_what_the_user_wrote_is_not_replaced(run, name, text):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}: llama-eval did not write this file") as said:
        report.write_html(run)
    assert (run / name).read_text() == text and "\n" not in str(said.value)
    assert not any((run / other).exists() for other in {*OURS} - {name})


def test_the_user_s_own_files_beside_the_charts_stay(run):
    report.write_html(run)
    (run / "charts/mine.png").write_bytes(b"\x89PNG of my own")
    report.write_html(run)
    assert (run / "charts/mine.png").read_bytes() == b"\x89PNG of my own"


@pytest.mark.parametrize("name", OURS)
def test_a_damaged_report_of_ours_is_made_again(run, name):
    report.write_html(run)
    whole = (run / name).read_bytes()
    for damage in (whole[: len(whole) // 2], b"", whole + b"x", None):
        (run / name).unlink()
        if damage is not None:
            (run / name).write_bytes(damage)
        report.write_html(run)
        assert (run / name).read_bytes() == whole


@pytest.mark.parametrize("name", [*OURS, "report.html.partial", "charts"])
def test_nothing_is_written_through_a_link(run, tmp_path, name):
    outside = tmp_path / "outside"
    if name == "charts":
        outside.mkdir()
    else:
        outside.write_text("precious")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(outside)
    if name.endswith("partial"):
        report.write_html(run)
    else:
        with pytest.raises(UserError, match="leads out of"):
            report.write_html(run)
    assert not [*outside.iterdir()] if outside.is_dir() else outside.read_text() == "precious"


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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("runs/sst2/tuned", "runs/sst2/tuned is inside a run, .*: llama-eval html runs/sst2$"),
        ("runs", "runs is not a run folder, .*meant: runs/sst2"),
        ("nowhere", "nowhere is not a folder"),
        (
            "alone",
            "alone holds one evaluation, .*: llama-eval html alone OTHER_FOLDER --output report.html$",
        ),
    ],
)
def test_a_wrong_folder_is_told_which_one_is_meant(run, tmp_path, monkeypatch, given, said):
    write(tmp_path / "alone", GOLDS, GOLDS, labels=LABELS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        report.write_html(Path(given))
    assert "\n" not in str(caught.value) and not [*tmp_path.rglob("report.html")]


def test_any_results_can_stand_side_by_side(run, squad, tmp_path):
    alone = write(tmp_path / "alone", GOLDS, GOLDS, labels=LABELS, kind="somebody's model")
    page = tmp_path / "new/compared.html"
    report.write_comparison([run, alone, squad / "tuned"], page)
    labels, answers = embedded(page.read_text("utf-8"))
    assert [len(part["systems"]) for part in (labels, answers)] == [3, 1]
    words = words_of(page.read_text("utf-8"))
    assert "somebody's model is better than zero-shot: accuracy 1.0000 against 0.5000" in words
    page.write_text("my own page")
    with pytest.raises(UserError, match="did not write this file"):
        report.write_comparison([run], page)
