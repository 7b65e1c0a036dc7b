"""From predictions to scores: the official rules, the same sample for every part, and no torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from eval import scoring
from eval.lines import Told
from llama_peft import data
from llama_peft.inference.predict import Prediction
from llama_peft.recipe import Recipe
from llama_peft.run_folder.results import Scores, read_results
from tests.support.eval.jobs import evaluate, job_for


def test_a_perfect_abstainer_scores_100_on_the_unanswerable(
    make_recipe: Callable[..., Recipe],
) -> None:
    """Law 7, through the harness's own scoring."""
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]
    share = 100 * sum(not e.answers for e in examples) / len(examples)
    assert 0 < share < 100

    found = scoring.Material(
        dataset=data.Dataset(labels=(), parts={"test": examples}), parts={"test": examples}
    )

    def scores(silent: bool) -> Scores:
        answers = {e.id: "" if silent or not e.answers else e.answers[0].text for e in examples}
        predictions = [
            Prediction(id=id_, prediction=text, no_answer_probability=float(not text), raw=text)
            for id_, text in answers.items()
        ]
        lines = [*scoring.lines_of(predictions, found)]
        return scoring.score(Told.of(lines), lines, examples, (), "answers")

    silent, perfect = scores(silent=True), scores(silent=False)
    assert silent["NoAns_exact"] == 100 and silent["exact"] == pytest.approx(share)
    assert perfect["exact"] == perfect["f1"] == 100


def test_the_sample_of_a_part_is_the_same_beside_other_parts(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe("classification", "tiny")
    both = recipe.changed(eval={"splits": ["validation", "test"]})
    samples = [
        scoring.material(job_for(each, "tiny", tmp_path, limit=5)).parts["test"]
        for each in (recipe, both)
    ]
    assert samples[0] == samples[1]


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    """On a SQuAD file and the official predictions, in a real process that torch must not enter."""
    asked = [{"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}]
    paragraphs = [{"context": "Ada built it.", "qas": asked}]
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    theirs = tmp_path / "theirs.json"
    theirs.write_text('{"1": "the Ada"}')
    words = ["score", "--task", "squad", "--data", str(truth), "--predictions", str(theirs)]
    code = (
        f"import sys; sys.argv = ['llama-eval', *{words!r}]\n"
        "from eval.__main__ import app\n"
        "app(standalone_mode=False)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "100.00" in done.stdout
    results = read_results(tmp_path / "theirs-scores/results.json")
    assert results.results["squad"]["exact"] == 100


def test_answers_that_are_too_long_are_counted_before_the_evaluation(
    make_recipe: Callable[..., Recipe],
    make_base: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A question is lost only if each of its right answers is too long."""
    recipe = make_recipe("generative_qa", make_base(), lora={"r": 2}, eval={"max_new_tokens": 1})
    examples = data.load(recipe).parts["test"]
    golds = [list(scoring.gold(example, ())) for example in examples]
    plain = [[text.removeprefix("the ") for text in own] for own in golds]
    lost = sum(bool(own) and min(map(len, map(str.split, own))) > 1 for own in plain)
    said = scoring.too_long(examples, lambda text: len(text.split()), recipe, spans=False)
    highest = 100 * (1 - lost / len(golds))
    assert lost and said == (
        f"{lost} of {len(golds)} questions have only right answers of more than 1 tokens, so exact "
        f"match can hardly exceed {highest:.2f}; raise eval.max_new_tokens"
    )
    assert not scoring.too_long(examples, lambda text: 1, recipe, spans=False)
    assert "max_answer_length" in scoring.too_long(examples, lambda text: 99, recipe, spans=True)
    with caplog.at_level("WARNING"):
        evaluate(recipe, recipe.model.model_name_or_path, tmp_path / "out", limit=8)
    assert sum("exact match can hardly" in one for one in caplog.messages) == 1


def test_predictions_know_the_passage_of_a_question(make_recipe: Callable[..., Recipe]) -> None:
    """Questions on one passage have one group, and intervals respect it."""
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]
    found = scoring.Material(
        dataset=data.Dataset(labels=(), parts={"test": examples}), parts={"test": examples}
    )
    said = [
        Prediction(id=e.id, prediction="", no_answer_probability=None, raw="") for e in examples
    ]
    lines = [*scoring.lines_of(said, found)]
    passages = {e.id: e.context for e in examples if isinstance(e, data.QuestionExample)}
    pairs = {(line.group, passages[line.id]) for line in lines}
    assert len(pairs) == len({line.group for line in lines}) == len(set(passages.values()))
    assert len(pairs) < len(examples)

    alone = [replace(e, context="", group=e.id) for e in examples]
    together, apart = (
        scoring.score(Told.of(lines), lines, its, (), "answers") for its in (examples, alone)
    )
    assert together["exact"] == apart["exact"] and together["exact_ci95"] != apart["exact_ci95"]
