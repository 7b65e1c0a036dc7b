"""Laws of eval.results: files that are missing, damaged or disagree are refused by name."""

import json
import re

import pytest

from eval import report
from llama_peft.errors import UserError
from llama_peft.system.files import sha256, with_sum
from tests.support.evaluations import spoil


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
            "its sum is wrong",
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
        (
            "results.json",
            lambda text: text.replace('"accuracy": 0.8', '"accuracy": NaN'),
            "NaN is not a number",
        ),
        (
            "results.json",
            lambda text: re.sub(r'"recall_macro": [\d.]+', '"recall_macro": "x"', text),
            "recall_macro of sst2 is x, which is not a number",
        ),
        *(
            ("results.json", lambda text, bad=bad: spoilt_interval(text, bad), "results.sst2: ")
            for bad in ("null", "[1]", '"x"', "[0.9, 0.1]")
        ),
        ("results.json", lambda text: spoilt_interval(text, "[NaN, 1.0]"), "NaN is not a number"),
        *(
            ("results.json", lambda text, bad=bad: text.replace('"sst2"', bad, 1), fault)
            for bad, fault in {
                '"x": 1' + "0" * 400 + ', "sst2"': "is not a number",
                '"x": 1e999, "sst2"': "1e999 is not a number",
                '"x": ' + "[" * 100_000: "nested too deeply",
                '"x": ' + "[" * 60 + "]" * 60 + ', "sst2"': "nested too deeply",
                '"\\ud800"': "surrogates not allowed",
            }.items()
        ),
        *(
            (
                "predictions.jsonl",
                lambda text, bad=bad: text.replace('"id"', f'{bad}, "id"', 1),
                "line 1",
            )
            for bad in (
                '"probabilities": [NaN]',
                '"no_answer_probability": 1e999',
                '"x": ' + "[" * 100_000,
                '"text": "\\ud800"',
                '"probabilities": "high"',
            )
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
            "are not labels",
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


def test_a_missing_zero_shot_is_made_with_the_runs_own_recipe(run):
    (run / "zero-shot/results.json").unlink()
    with pytest.raises(UserError, match=re.escape(f"--task {run}/recipe.yaml --output {run}/zero")):
        report.write_html(run)


def test_a_folder_without_anything_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing.results\.json is missing"):
        report.compare([tmp_path / "nothing"])
    with pytest.raises(UserError, match="is not a folder"):
        report.write_html(tmp_path / "nothing")
