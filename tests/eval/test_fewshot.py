"""Worked examples in prompts: from train or from the passage, and never the evaluated example itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from eval import harness, scoring
from eval.fewshot import earlier_questions, in_turns, worked_examples
from eval.job import make_job
from llama_peft import data
from llama_peft.data import QuestionExample
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.run_folder.results import read_results
from tests.support.eval.jobs import job_for


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_worked_examples_stand_in_the_prompt(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    task: str,
) -> None:
    """From train, with their answers, never the example's own answer; shared prefixes change nothing."""
    found = []
    for decoding in ("prefix_tree", "plain"):
        keys = {"num_fewshot": 3, "max_new_tokens": 4, "decoding": decoding}
        recipe = make_recipe(task, make_base(), lora={"r": 2}, eval=keys)
        job = job_for(recipe, recipe.model.model_name_or_path, tmp_path / decoding)
        with caplog.at_level("INFO", logger="eval.harness"):
            caplog.clear()
            found.append(harness.run(job, show=2).results)
        lines = [r.message for r in caplog.records]
        shown = "\n".join(lines).split("--- ")[1:]
        assert len(shown) == 2
        mark = "Label:" if task == "classification" else "Answer:"
        for prompt in shown:
            assert prompt.count(f"{mark} ") == 3 and prompt.count(mark) == 4
    for name, scores in found[0].items():  # probabilities differ by rounding
        numbers = {key: value for key, value in scores.items() if isinstance(value, float)}
        assert numbers and {key: found[1][name][key] for key in numbers} == pytest.approx(numbers)
    parts = data.load(recipe).parts
    results = read_results(tmp_path / "plain/results.json")
    assert results.config.model_kind.startswith("3-shot ")
    chosen = in_turns(parts["train"], 42)[:3]
    assert {e.id for e in chosen} <= {e.id for e in parts["train"]}
    kinds = [e.label if task == "classification" else bool(e.answers) for e in chosen]
    assert len(set(kinds[:2])) == 2, "labels, or answerable and not, in turn"


def test_earlier_questions_of_the_passage_are_the_examples(
    make_recipe: Callable[..., Recipe],
) -> None:
    """Meta's setting: gold answers of earlier questions on the passage, never of later ones."""
    dataset = data.load(make_recipe("generative_qa", "tiny", lora={"r": 2}))
    earlier = earlier_questions(dataset, 2)
    order = [e for part in dataset.parts.values() for e in part]
    for i, example in enumerate(order):
        before = [e for e in order[:i] if e.context == example.context]
        assert earlier[example.id] == before[-2:]
    assert max(map(len, earlier.values())) == 2


def test_worked_examples_are_not_for_runs(class_run: tuple[Recipe, Path], tmp_path: Path) -> None:
    job = make_job(None, str(class_run[1]), None, None, None, tmp_path, ["eval.num_fewshot=1"])
    with pytest.raises(UserError, match="for models that are not fine-tuned"):
        harness.run(job)


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_no_worked_example_is_the_evaluated_one(
    make_recipe: Callable[..., Recipe], tmp_path: Path, task: str
) -> None:
    """Evaluated on the file of its worked examples, a model must not read the answer in its prompt."""
    recipe = make_recipe(task, "tiny", lora={"r": 2}, eval={"num_fewshot": 3})
    train = data.load(recipe).parts["train"]
    found = scoring.Material(
        dataset=data.Dataset(labels=(), parts={"train": train}), parts={"data": train}
    )
    shots = worked_examples(job_for(recipe, "tiny", tmp_path), found)
    assert shots is not None
    first = [shot.id for shot in shots(replace(train[0], id="other"))]
    assert any(example.id in first for example in train[1:])
    for example in train:
        evaluated = replace(example, id="evaluated")
        chosen = shots(evaluated)
        assert len({shot.id for shot in chosen}) == 3
        assert all(replace(shot, id="evaluated") != evaluated for shot in chosen)


def test_no_earlier_question_is_the_evaluated_one() -> None:
    asked = [
        QuestionExample(id=str(i), context="Ada built it.", question=text, answers=())
        for i, text in enumerate(["Who?", "What?", "Who?"])
    ]
    earlier = earlier_questions(data.Dataset(labels=(), parts={"test": list(asked)}), 2)
    assert earlier["2"] == [asked[1]]
