"""Worked examples in prompts: from train or from the passage, and never the evaluated example itself."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval import fewshot, harness, scoring
from eval.fewshot import earlier_questions, in_turns, worked_examples
from eval.job import make_job
from eval.predictions import Evaluation
from eval.predictors.open import open_predictor
from eval.predictors.predictor import Predictor
from eval.predictors.recognise import identify
from llama_peft import data
from llama_peft.data import Example, QuestionExample
from llama_peft.errors import UserError
from llama_peft.inference.predict import Prediction
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import UNFINISHED_VALIDATION
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
    job = make_job(model=str(class_run[1]), output=tmp_path, overrides=["eval.num_fewshot=1"])
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


def auto(make_recipe: Callable[..., Recipe], task: str, base: Path | str, **keys: Any) -> Recipe:
    settings = {"num_fewshot": "auto", "max_new_tokens": 2, **keys}
    return make_recipe(task, base, lora={"r": 2}, eval=settings)


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_the_number_of_worked_examples_is_the_best_on_validation(
    make_recipe: Callable[..., Recipe], tmp_path: Path, task: str
) -> None:
    """What is tried scores as an evaluation on validation does, and the best one is evaluated as if it were given."""
    recipe = auto(make_recipe, task, "tiny")
    found = harness.run(job_for(recipe, "tiny", tmp_path / "auto"))
    choice = found.config.fewshot_choice
    assert choice is not None and [*choice.tried] == ["2", "4", "8"] and choice.examples == 8
    assert choice.tried[str(choice.chosen)] == max(choice.tried.values())
    assert found.costs.fit_seconds == choice.seconds > 0
    assert [path.name for path in (tmp_path / "auto").glob("*.partial.jsonl")] == []
    given = recipe.changed(eval={"num_fewshot": choice.chosen})
    plain = harness.run(job_for(given, "tiny", tmp_path / "given"))
    assert plain.results["small"] == found.results["small"]
    assert plain.config.model_kind == found.config.model_kind
    own = job_for(given.changed(eval={"splits": ["validation"]}), "tiny", tmp_path / "validation")
    tried = harness.run(own).results["small_validation"][choice.metric]
    assert tried == pytest.approx(choice.tried[str(choice.chosen)])
    again = harness.run(job_for(recipe, "tiny", tmp_path / "auto"), again=False)
    assert again.date == found.date and again.config.fewshot_choice == choice


def opened(recipe: Recipe, output: Path) -> Evaluation:
    job = job_for(recipe, recipe.model.model_name_or_path, output)
    subject = identify(job.model, recipe)
    found = scoring.material(job)
    predictor = open_predictor(subject, recipe, found.labels)
    return Evaluation(job=job, subject=subject, found=found, predictor=predictor)


def test_an_interrupted_choice_goes_on(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    trial = fewshot._Trial(opened(auto(make_recipe, "classification", "tiny"), tmp_path))
    first, calls = trial.choice(), list[int]()
    place = tmp_path / UNFINISHED_VALIDATION
    lines = place.read_text().splitlines(keepends=True)
    place.write_text("".join(lines[:9]))  # the key, and all predictions of the first number

    def counted(number: int, predictor: Predictor) -> Predictor:
        def predict(examples: Sequence[Example], size: int) -> Iterator[list[Prediction]]:
            calls.append(number)
            return predictor.predict(examples, size)

        return replace(predictor, predict=predict)

    trial.predictors = {number: counted(number, own) for number, own in trial.predictors.items()}
    assert trial.choice().tried == first.tried and calls == [4, 8]


def test_numbers_without_room_are_left_out(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    narrow = auto(make_recipe, "classification", make_base(max_position_embeddings=180))
    choice = fewshot._Trial(opened(narrow, tmp_path)).choice()
    assert "8" in choice.left_out and "8" not in choice.tried and choice.tried
    trial = fewshot._Trial(opened(auto(make_recipe, "classification", "tiny"), tmp_path))
    trial.predictors = {}
    with pytest.raises(UserError, match="no number of worked examples that the model has room for"):
        trial.choice()
    without = auto(make_recipe, "classification", "tiny")
    parts = without.dataset.parts.model_copy(update={"validation": None})
    without = without.changed(dataset={"parts": parts, "validation_size": 0.0})
    with pytest.raises(UserError, match="auto needs a validation part to choose on"):
        fewshot._Trial(opened(without, tmp_path))
