"""Laws of the tables: what the files say is what is shown."""

import json
import subprocess
import sys

from eval import report
from tests.support.evaluations import GOLDS, LABELS, cells, write
from tests.support.paths import ROOT


def test_rows_are_systems_and_differences_are_to_the_first(run):
    (table,) = report.compare([run])
    assert table.title == "sst2 (test, 20 examples)"
    assert [row.name for row in table.rows] == [
        "zero-shot",
        "head",
        "difference",
        "p",
        "p (exact)",
        "better / worse",
        "always 'negative'",
    ]
    assert cells(table, "zero-shot")["accuracy"] == "0.5000"
    assert cells(table, "head")["accuracy"] == "0.8000"
    assert cells(table, "difference")["accuracy"] == "+0.3000"
    assert cells(table, "better / worse") == {"accuracy": "8 / 2"}
    assert cells(table, "always 'negative'")["accuracy"] == "0.5000"
    # Ten examples changed, eight for the better: McNemar's exact test gives 0.109.
    assert cells(table, "p (exact)") == {"accuracy": "0.109"}
    assert 0.05 < float(cells(table, "p")["accuracy"]) < 0.109
    assert table.rows[2].cells[0].interval.startswith("[-0.0")
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


def test_answers_are_in_percent_beside_always_no_answer(squad):
    (table,) = report.compare([squad])
    assert cells(table, "span")["exact"] == "75.00"
    assert cells(table, "difference")["exact"] == "+25.00"
    assert cells(table, "better / worse")["exact"] == "2 / 1"
    assert cells(table, "better / worse")["HasAns_exact"] == "1 / 1"
    floor = cells(table, "always no answer")
    assert (floor["exact"], floor["HasAns_f1"], floor["NoAns_exact"]) == ("50.00", "0.00", "100.00")
    assert {"bleu", "rougeL"} <= cells(table, "difference").keys()
    assert any(note.startswith("BLEU settings: nrefs:") for note in table.notes)


def test_without_unanswerable_questions_there_is_no_row_of_always_no_answer(tmp_path):
    golds = {"q1": ["Paris"], "q2": ["house"]}
    (table,) = report.compare([write(tmp_path / "a", {"q1": "Paris", "q2": "x"}, golds)])
    assert [row.name for row in table.rows] == ["zero-shot"]


def test_other_examples_or_other_references_give_a_note_and_no_difference(run, tmp_path):
    some = dict(list(GOLDS.items())[5:])
    write(tmp_path / "some", some, some, labels=LABELS, kind="other")
    flipped = GOLDS | {"s00": "positive"}
    write(tmp_path / "flipped", flipped, flipped, labels=LABELS, kind="flipped")
    (table,) = report.compare([run / "zero-shot", tmp_path / "some", tmp_path / "flipped"])
    assert not any(row.is_detail for row in table.rows)
    assert (
        "other was evaluated on other examples (15 examples, 15 in common) than zero-shot, "
        "so the two cannot be compared."
    ) in table.notes
    assert (
        "flipped was evaluated against other references for the same examples than zero-shot, "
        "so the two cannot be compared."
    ) in table.notes


def test_each_kind_of_task_and_each_part_has_its_own_table(run, squad, tmp_path):
    write(tmp_path / "dev", GOLDS, GOLDS, labels=LABELS, part="official", kind="oracle")
    tables = report.compare([run, squad, tmp_path / "dev"])
    assert [table.title for table in tables] == [
        "sst2 (test, 20 examples)",
        "squad (test, 4 examples: 2 HasAns, 2 NoAns)",
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
    # One of two unanswerable questions has an empty answer, which counts as 1, but not in HasAns.
    assert float(zero_shot["rougeL"]) > float(zero_shot["HasAns_rougeL"])


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


def test_other_scripts_have_columns_and_a_note_of_their_own(squad, tmp_path):
    golds = {"q1": ["北京"], "q2": ["上海市"]}
    write(tmp_path / "a", {"q1": "北京", "q2": "x"}, golds)
    write(tmp_path / "b", {"q1": "北京。", "q2": "上海"}, golds, kind="span")
    (table,) = report.compare([tmp_path / "a", tmp_path / "b"])
    assert cells(table, "zero-shot")["rougeL"] == "0.0000"
    assert cells(table, "zero-shot")["rougeL_unicode"] == "0.5000"
    assert cells(table, "span")["f1_unicode"] == "90.00"
    assert cells(table, "difference")["f1_unicode"] == "+40.00"
    notes = " ".join(table.notes)
    assert "f1_unicode are percentages" in notes and "|tok:char|" in notes
    (english,) = report.compare([squad])
    assert not any("unicode" in text for text in (*english.columns, *english.notes))


def test_balanced_accuracy_is_shown_if_labels_are_uneven(run, tmp_path):
    assert "balanced_accuracy" not in report.compare([run])[0].columns
    golds = {str(i): LABELS[i > 5] for i in range(8)}
    write(tmp_path / "a", dict.fromkeys(golds, LABELS[0]), golds, labels=LABELS)
    write(tmp_path / "b", golds, golds, labels=LABELS, kind="head")
    (table,) = report.compare([tmp_path / "a", tmp_path / "b"])
    assert cells(table, "zero-shot")["balanced_accuracy"] == "0.5000"
    assert cells(table, "difference")["balanced_accuracy"] == "+0.5000"


def test_results_of_version_0_1_0_without_the_newer_scores_are_compared(run):
    for file in run.glob("*/results.json"):
        results = json.loads(file.read_text("utf-8"))
        for scores in results["results"].values():
            for name in [*scores]:
                if name.startswith(("balanced", "matthews")) or name.endswith("_per_label"):
                    del scores[name]
        file.write_text(json.dumps(results), "utf-8")
    (table,) = report.compare([run])
    assert cells(table, "head")["accuracy"] == "0.8000"


def test_a_score_that_one_side_did_not_record_is_computed_from_its_predictions(tmp_path):
    """No cell is blank beside a difference."""
    golds = {str(i): LABELS[i > 5] for i in range(8)}
    write(tmp_path / "a", dict.fromkeys(golds, LABELS[0]), golds, labels=LABELS)
    write(tmp_path / "b", golds, golds, labels=LABELS, kind="head")
    complete = report.compare([tmp_path / "a", tmp_path / "b"])
    path = tmp_path / "a/results.json"
    results = json.loads(path.read_text("utf-8"))
    for name in ("balanced_accuracy", "balanced_accuracy_ci95"):
        del results["results"]["sst2"][name]
    path.write_text(json.dumps(results))
    assert cells(complete[0], "zero-shot")["balanced_accuracy"] == "0.5000"
    assert report.compare([tmp_path / "a", tmp_path / "b"]) == complete
