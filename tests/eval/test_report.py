"""Laws of eval.report: what the files say is what is shown, unsound files are refused by name."""

import hashlib
import json
import math
import re
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from eval import report
from eval.metrics.measure import answer_results, classification_results
from eval.report.chart import loss_chart, loss_series, ticks
from eval.report.table import number
from llama_peft.errors import UserError
from llama_peft.system.files import sha256, with_sum
from tests.support import runs
from tests.support.paths import ROOT

LABELS = ["negative", "positive"]
# 20 sentences: zero-shot is right on 0-9, tuned on 2-17.
GOLDS = {f"s{i:02}": LABELS[i % 2] for i in range(20)}
EVIL = "<script>alert(1)</script> & \u2028 | 100 % \\x"
ANSWERS = {"q1": ["Paris"], "q2": ["red house", "house"], "q3": [], "q4": []}


def wrong(label: str) -> str:
    return LABELS[1 - LABELS.index(label)]


def says(right: range) -> dict[str, str]:
    return {k: g if i in right else wrong(g) for i, (k, g) in enumerate(GOLDS.items())}


def write(folder: Path, predictions, golds, *, labels=(), kind="zero-shot", part="test", **facts):
    """A results folder as the harness leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = facts.pop("recipe", "sst2" if labels else "squad")
    texts = facts.pop("texts", {})
    scores = (
        classification_results(predictions, golds, labels)
        if labels
        else answer_results(predictions, golds, dict.fromkeys(golds, 0.5))
    )
    task = recipe if part == "test" else f"{recipe}_{part}"
    lines = [
        {"id": k, "prediction": p, "gold": golds[k], "split": part, "raw": p}
        | ({"text": texts[k]} if texts else {})
        for k, p in predictions.items()
    ]
    results = {
        "results": {task: scores},
        "configs": {task: {"labels": list(labels)}},
        "config": {"recipe": recipe, "model_kind": kind, "model": "tiny", **facts},
        "versions": {"torch": "2.13"},
        "git_hash": "abcdef",
        "adapter_sha256": None if kind.startswith("zero-shot") else hashlib.sha256().hexdigest(),
        "base_revision": "sha256:0",
        "wall_seconds": 75.0,
        "peak_memory_bytes": 5_400_000_000,
    }
    (folder / "results.json").write_text(json.dumps(results), "utf-8")
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "predictions.jsonl").write_text(text, "utf-8")
    return folder


def trained(run: Path) -> Path:
    """A finished run, of empty weights."""
    run.mkdir(parents=True)
    (run / "head.safetensors").touch()
    files = {"head.safetensors": hashlib.sha256().hexdigest()}
    runs.write_record(run, {"files": files, "base_fingerprint": "sha256:0"})
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A classification run with a zero-shot and a tuned evaluation."""
    run = trained(tmp_path / "runs" / "sst2")
    write(run / "zero-shot", says(range(10)), GOLDS, labels=LABELS)
    training = {"wall_seconds": 7300.0, "peak_memory_bytes": 6_000_000_000}
    facts = {"kind": "head", "parameters": {"trainable": 4096}, "training": training}
    write(run / "tuned", says(range(2, 18)), GOLDS, labels=LABELS, **facts)
    return run


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    run = trained(tmp_path / "runs" / "squad")
    write(run / "zero-shot", {"q1": "Rome", "q2": "a house", "q3": "x", "q4": ""}, ANSWERS)
    write(run / "tuned", {"q1": "paris", "q2": "red", "q3": "", "q4": ""}, ANSWERS, kind="span")
    return run


def cells(table: report.Table, row: str) -> dict[str, str]:
    (found,) = [r for r in table.rows if r.name == row]
    return {c: cell.text for c, cell in zip(table.columns, found.cells, strict=True) if cell.text}


def test_rows_are_systems_and_differences_are_to_the_first(run):
    (table,) = report.compare([run])
    assert table.title == "sst2 (test, 20 examples)"
    assert [row.name for row in table.rows] == [
        "zero-shot",
        "head",
        "difference",
        "p",
        "better / worse",
        "always 'negative'",
    ]
    assert cells(table, "zero-shot")["accuracy"] == "0.5000"
    assert cells(table, "head")["accuracy"] == "0.8000"
    assert cells(table, "difference")["accuracy"] == "+0.3000"
    assert cells(table, "better / worse") == {"accuracy": "8 / 2"}
    assert cells(table, "always 'negative'")["accuracy"] == "0.5000"
    # Ten examples changed, eight for the better: two-sided sign test 0.109.
    assert 0.08 < float(cells(table, "p")["accuracy"]) < 0.14
    recorded = json.loads((run / "tuned" / "results.json").read_text())["results"]["sst2"]
    low, high = recorded["accuracy_ci95"]
    assert table.rows[1].cells[0].interval == f"[{low:.3f}, {high:.3f}]"


def test_costs_stand_beside_the_scores(run):
    (table,) = report.compare([run])
    costs = {
        c: t for c, t in cells(table, "head").items() if c in table.columns[table.costs_from :]
    }
    assert costs == {
        "trainable": "4,096",
        "train time": "2 h 2 min",
        "train memory": "6.00 GB",
        "eval time": "1 min 15 s",
        "eval memory": "5.40 GB",
    }


def test_answers_are_in_percent_over_the_floor_of_silence(squad):
    (table,) = report.compare([squad])
    assert cells(table, "span")["exact"] == "75.00"
    assert cells(table, "difference")["exact"] == "+25.00"
    assert cells(table, "better / worse")["exact"] == "2 / 1"
    assert cells(table, "better / worse")["HasAns_exact"] == "1 / 1"
    floor = cells(table, "always no answer")
    assert (floor["exact"], floor["HasAns_f1"], floor["NoAns_exact"]) == ("50.00", "0.00", "100.00")
    assert {"bleu", "rougeL"} <= cells(table, "difference").keys()
    assert any(note.startswith("BLEU: nrefs:") for note in table.notes)


def test_without_unanswerable_questions_there_is_no_floor_of_silence(tmp_path):
    golds = {"q1": ["Paris"], "q2": ["house"]}
    (table,) = report.compare([write(tmp_path / "a", {"q1": "Paris", "q2": "x"}, golds)])
    assert [row.name for row in table.rows] == ["zero-shot"]


def test_other_examples_or_other_references_give_a_line_and_no_difference(run, tmp_path):
    some = dict(list(GOLDS.items())[5:])
    write(tmp_path / "some", some, some, labels=LABELS, kind="other")
    flipped = GOLDS | {"s00": "positive"}
    write(tmp_path / "flipped", flipped, flipped, labels=LABELS, kind="flipped")
    (table,) = report.compare([run / "zero-shot", tmp_path / "some", tmp_path / "flipped"])
    assert not any(row.is_detail for row in table.rows)
    assert (
        "other: measured on other examples (15, of which 15 in common), so no difference is shown."
        in table.notes
    )
    assert any(
        note.startswith("flipped: measured against other references") for note in table.notes
    )


def test_each_kind_of_task_and_each_part_has_its_own_table(run, squad, tmp_path):
    write(tmp_path / "dev", GOLDS, GOLDS, labels=LABELS, part="official", kind="oracle")
    tables = report.compare([run, squad, tmp_path / "dev"])
    assert [table.title for table in tables] == [
        "sst2 (test, 20 examples)",
        "squad (test, 4 examples)",
        "sst2_official (official, 20 examples)",
    ]


def test_systems_of_one_kind_are_told_apart_by_base_or_folder(run, tmp_path):
    write(tmp_path / "again", GOLDS, GOLDS, labels=LABELS)
    (table,) = report.compare([run / "zero-shot", tmp_path / "again"])
    assert [r.name for r in table.rows if not r.is_detail][:2] == [
        f"zero-shot ({run / 'zero-shot'})",
        f"zero-shot ({tmp_path / 'again'})",
    ]
    write(tmp_path / "again", GOLDS, GOLDS, labels=LABELS, model="meta/Llama")
    (table,) = report.compare([run / "zero-shot", tmp_path / "again"])
    assert {"tiny, zero-shot", "Llama, zero-shot"} <= {row.name for row in table.rows}


def spoil(path: Path, change) -> None:
    path.write_text(change(path.read_text("utf-8")), "utf-8")


def spoilt_interval(text, bad):
    spoilt, count = re.subn(r'("accuracy_ci95": )\[[^]]*\]', rf"\g<1>{bad}", text)
    assert count
    return spoilt


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        (
            "tuned/results.json",
            '"wall_seconds": 75.0',
            '"wall_seconds": 15.0',
            "not what was written",
        ),
        ("tuned/predictions.jsonl", '"raw": "neg', '"raw": "Neg', "not what was written"),
    ],
)
def test_a_change_that_no_number_betrays_is_seen_by_the_sums(run, name, old, new, fault):
    """Such as one turned bit: what these folders hold is well formed before and after."""
    path = run / "tuned/results.json"
    results = json.loads(path.read_text())
    results["predictions_sha256"] = sha256(run / "tuned/predictions.jsonl")
    path.write_text(json.dumps(with_sum(results)))
    report.write_html(run)
    text = (run / name).read_text()
    assert old in text
    (run / name).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=f"{re.escape(str(run))}.*{fault}.*; make it with: llama-"):
        report.write_html(run)


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("results.json", None, "is missing"),
        ("predictions.jsonl", None, "is missing"),
        ("results.json", lambda text: text[:-5], "is damaged"),
        ("results.json", lambda text: "{}", "is damaged (results: Field required)"),
        ("results.json", lambda text: text.replace('"labels"', '"names"'), "is damaged"),
        ("results.json", lambda text: text.replace('"accuracy": 0.8', '"accuracy": 0.9'), "0.9"),
        ("results.json", lambda text: text.replace('"accuracy": 0.8', '"accuracy": NaN'), "nan"),
        *(
            ("results.json", lambda text, bad=bad: spoilt_interval(text, bad), "accuracy_ci95 of")
            for bad in ("null", "[1]", '"x"', "[NaN, 1.0]", "[0.9, 0.1]")
        ),
        (
            "results.json",
            lambda text: text.replace('"trainable": 4096', '"trainable": "x"'),
            "is damaged",
        ),
        (
            "results.json",
            lambda text: text.replace('"positive"', '"other"'),
            "not among the labels",
        ),
        ("predictions.jsonl", lambda text: text[:-9], "is damaged (line 20"),
        ("predictions.jsonl", lambda text: text.replace('"gold"', '"old"', 1), "line 1: gold"),
        ("predictions.jsonl", lambda text: text + text.split("\n")[0], "more than once: 's00'"),
        ("predictions.jsonl", lambda text: text.split("\n", 1)[1], "does not fit"),
        ("predictions.jsonl", lambda text: "", "has no predictions"),
        (
            "predictions.jsonl",
            lambda text: re.sub(r'"gold": ("\w+")', r'"gold": [\1]', text),
            "no labels",
        ),
    ],
)
def test_unsound_files_are_refused_with_their_name_and_the_command_to_make_them(
    run, name, change, fault
):
    path = run / "tuned" / name
    if change is None:
        path.unlink()
    else:
        spoil(path, change)
    for make in (lambda: report.compare([run]), lambda: report.write_html(run)):
        with pytest.raises(UserError) as error:
            make()
        message = str(error.value)
        assert fault in message and str(run / "tuned") in message and "\n" not in message
        assert f"llama-eval run --model {run} --output {run / 'tuned'}" in message


def test_a_folder_without_anything_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing.results\.json is missing"):
        report.compare([tmp_path / "nothing"])
    with pytest.raises(UserError, match="is no folder"):
        report.write_html(tmp_path / "nothing")


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """Labels, texts and recipe that mean something in HTML, Markdown or LaTeX."""
    labels = ["a_b|c", EVIL]
    golds = {f"<i>{i}": labels[i % 2] for i in range(6)}
    run = trained(tmp_path / "evil")
    texts = dict.fromkeys(golds, EVIL)
    first = dict.fromkeys(golds, labels[0])
    write(run / "zero-shot", first, golds, labels=labels, kind="zero-shot <b>100%</b>", texts=texts)
    write(run / "tuned", golds, golds, labels=labels, kind="a|b", texts=texts)
    (run / "recipe.yaml").write_text("text: </pre><script>alert(2)</script>\n", "utf-8")
    return run


def test_markdown_and_latex_rows_have_as_many_cells_as_columns_whatever_the_names(run, evil):
    for folder in (run, evil):
        (table,) = report.compare([folder])
        lines = [x for x in report.render([table], "markdown").split("\n") if x.startswith("|")]
        assert len(lines) == len(table.rows) + 2
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.columns) + 2}
        latex = report.render([table], "latex")
        body = [line for line in latex.split("\n") if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(table.columns)}
        assert not re.search(r"(?<!\\)%", latex)
    assert "<b>" not in report.render([table], "markdown")


@pytest.mark.parametrize("width", [70, 100, 250])
def test_a_terminal_table_fits_its_width_and_shows_every_cell(run, width):
    tables = report.compare([run])
    text = report.render(tables, "rich", width=width)
    assert max(map(len, text.split("\n"))) <= width
    for row in tables[0].rows:
        for cell in row.cells:
            assert cell.text in text and cell.interval in text
    assert all(column in text for column in tables[0].columns)


class Checked(HTMLParser):
    """Fails on tags that do not nest; keeps tags, attributes and text."""

    VOID = ("meta", "br", "circle", "line", "polyline")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += f"{data} "


def history(run: Path) -> None:
    lines = [{"step": s, "epoch": s / 10, "loss": 1 / s} for s in range(1, 11)]
    lines += [{"step": 5, "eval_loss": 0.5}, {"step": 10, "train_runtime": 3.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "history.jsonl").write_text(text, "utf-8")


def test_the_page_is_sound_and_shows_scores_confusion_changes_and_the_curve(run):
    history(run)
    (run / "recipe.yaml").write_text("task: classification\n", "utf-8")
    assert report.write_html(run) == run / "report.html"
    page = Checked((run / "report.html").read_text("utf-8"))
    assert {"svg", "polyline", "table", "details"} <= page.tags
    words = " ".join(page.text.split())
    for shown in (
        "0.5000",
        "0.8000",
        "+0.3000",
        "Fixed by tuning: 8",
        "Broken by tuning: 2",
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
    page = Checked((squad / "report.html").read_text("utf-8"))
    words = " ".join(page.text.split())
    assert "answerable 1 50.0 % 1 50.0 % 0 0.0 % unanswerable 0 0.0 % 1 50.0 % 1 50.0 %" in words
    assert "q3 (no answer) x (no answer)" in words
    assert "q2 red house | house a house red" in words
    assert "holds no losses" in words and "svg" not in page.tags


def test_nothing_in_the_data_becomes_markup_and_nothing_is_fetched(evil):
    report.write_html(evil)
    text = (evil / "report.html").read_text("utf-8")
    page = Checked(text)
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
    assert "no difference is shown" in text and "Fixed by tuning" not in text


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.13, 0.79), (2.5, 2.5), (0, 0), (-3, 4000), (1e-9, 3e-9), (0, 1)]
)
def test_ticks_are_round_and_enclose_the_range(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 7
    gap = found[1] - found[0]
    assert all(math.isclose(b - a, gap, rel_tol=1e-6) for a, b in pairwise(found))


def test_the_curve_holds_the_finite_losses_in_the_order_of_steps():
    log = [{"step": 2, "loss": 1.0}, {"step": 1, "loss": 2.0}, {"step": 3, "loss": math.nan}]
    assert loss_series([*log, {"loss": 1.0}, {"step": 4, "eval_loss": "x"}]) == {
        "training": [(1, 2.0), (2, 1.0)]
    }
    assert loss_chart([]) == loss_chart(log[2:]) == ""
    for some in (log, log[:1], [*log, {"step": 2, "eval_loss": 1.01}]):
        chart = loss_chart(some)
        Checked(chart)
        assert "nan" not in chart
    names = re.findall(r'y="([\d.]+)">(training|validation)<', chart)
    assert [name for _, name in names] == ["training", "validation"]
    assert abs(float(names[0][0]) - float(names[1][0])) >= 12, "the names overlap"


def test_comparing_imports_no_torch(run):
    code = (
        "import sys; from pathlib import Path; from eval import report;"
        f"run = Path({str(run)!r}); report.write_html(run);"
        "report.render(report.compare([run]), 'rich');"
        "print(*{'torch', 'transformers', 'evaluate'} & sys.modules.keys())"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", ["run", "squad"])
def test_comparison_json_has_the_table_s_numbers(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    report.write_html(folder)
    content = json.loads((folder / "comparison.json").read_text())
    assert content["results_sha256"] == {
        name: sha256(folder / name / "results.json") for name in ("zero-shot", "tuned")
    }
    (table,), (part,) = report.compare([folder]), content["parts"]
    zero_shot, tuned, difference = (table.rows[i].cells for i in (0, 1, 2))
    names = [line["name"] for line in part["metrics"]]
    assert names == list(table.columns[: table.costs_from])
    for column, line in enumerate(part["metrics"]):
        write = partial(number, is_percent=line["percent"])
        assert write(line["zero_shot"]) == zero_shot[column].text
        assert write(line["tuned"]) == tuned[column].text
        assert write(line["difference"], sign="+") == difference[column].text


def test_headers_say_macro_where_there_are_more_labels_than_two(tmp_path, run):
    golds = {"a": "x", "b": "y", "c": "z"}
    folder = write(tmp_path / "three", golds, golds, labels=["x", "y", "z"])
    (table,) = report.compare([folder])
    assert table.columns[:4] == ("accuracy", "precision (macro)", "recall (macro)", "f1 (macro)")
    assert report.compare([run])[0].columns[:4] == ("accuracy", "precision", "recall", "f1")


def test_overlap_is_shown_over_all_and_over_the_answerable(squad):
    (table,) = report.compare([squad])
    zero_shot = cells(table, "zero-shot")
    for metric in ("bleu", "rougeL"):
        assert zero_shot[metric] and zero_shot[f"HasAns_{metric}"]
    assert any(name.startswith("HasAns_meteor") for name in zero_shot)
    # Of the unanswerable two one is silent; over all it counts as 1, over the answerable not at all.
    assert float(zero_shot["rougeL"]) > float(zero_shot["HasAns_rougeL"])
