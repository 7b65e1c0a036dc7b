"""Heads of several seeds and sizes on one base read each text once, in training and in evaluation."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eval import harness
from eval.job import make_job
from eval.ladder import steps
from llama_peft import data
from llama_peft.features import shards
from llama_peft.inference import on_states, unfinished
from llama_peft.inference.on_states import OnStates
from llama_peft.inference.predict import predict
from llama_peft.ladder import walk
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.weights import load_tuned
from llama_peft.training import fit
from tests.support.small import make_recipe, save_base

PARTS = {"train": 40, "validation": 12, "test": 24}
Lines = dict[str, list[dict[str, Any]]]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the tokens that bases read."""
    seen: Counter[str] = Counter()
    plain = backbone.load

    def load(*given: Any, **named: Any) -> Any:
        model = plain(*given, **named)
        model.get_input_embeddings().register_forward_pre_hook(
            lambda _, args: seen.update(tokens=args[0].numel())
        )
        return model

    monkeypatch.setattr(backbone, "load", load)
    return seen


@pytest.fixture
def heads(tmp_path: Path) -> Callable[..., Recipe]:
    """Returns a recipe whose rungs are heads alone."""

    def build(name: str, **keys: Any) -> Recipe:
        base = tmp_path / "base"
        if not base.exists():
            save_base(base)
        found = make_recipe(
            "classification",
            base,
            lora={"r": 2},
            ladder={"rungs": ["head"], "forgetting": False, **keys.pop("ladder", {})},
            dataset={"parts": PARTS},
            head={"layer": 1, **keys},
            train={"output_dir": str(tmp_path / name / "run"), "num_train_epochs": 1.0},
        )
        return found.model_copy(update={"name": "run"})

    return build


def predicted(folder: Path) -> Lines:
    return {
        place.parent.name: [json.loads(line) for line in place.read_text().splitlines()]
        for place in sorted(folder.rglob("predictions.jsonl"))
    }


def measured(recipe: Recipe, passes: Counter[str]) -> tuple[Path, int]:
    passes.clear()
    return walk.run(recipe, steps), passes["tokens"]


def test_a_second_seed_reads_no_text_again(
    heads: Callable[..., Recipe], passes: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is told what it would have cost."""
    monkeypatch.setattr(shards, "_spent", lambda _: shards.Spent(1e6, 1))
    _, tokens = measured(heads("one"), passes)
    three, of_three = measured(heads("three", ladder={"seeds": [1, 2, 3]}), passes)
    assert 0 < of_three <= 1.5 * tokens, "the layer is chosen for each seed, on the same states"
    costs = [
        json.loads(place.read_text())["costs"]["seconds_per_1000"]
        for place in sorted(three.rglob("results.json"))
    ]
    assert len(costs) == 3
    assert min(costs) > 1e6


def test_predictions_are_those_of_the_whole_model(
    heads: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Also of texts that are predicted before any was prepared."""
    recipe = heads("one").changed(lora=None)
    run = fit.train(recipe)
    tuned, examples = load_tuned(open_run(run)), data.load(recipe).parts["test"]
    expected = {one.id: one for batch in predict(tuned, examples, 4) for one in batch}
    head = OnStates(tuned, tmp_path / "features")
    for prepared in (False, True):
        if prepared:
            assert head.prepare(examples) > 0
        found = [one for batch in head.predict(examples, 4) for one in batch]
        assert len(found) == len(expected)
        for one in found:
            right = expected[one.id]
            assert one.prediction == right.prediction
            assert one.probabilities == pytest.approx(right.probabilities, abs=1e-5)
    assert len({one.probabilities for one in found}) > 1


def test_a_folder_that_takes_no_states_is_no_fault(
    heads: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = heads("one").changed(lora=None)
    run = fit.train(recipe)
    tuned, examples = load_tuned(open_run(run)), data.load(recipe).parts["test"]

    def refuse(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(on_states, "compute", refuse)
    head = OnStates(tuned, tmp_path / "features")
    assert head.prepare(examples) == 0
    assert sum(map(len, head.predict(examples, 4))) == len(examples)


def test_a_text_that_was_not_prepared_is_no_other_text(
    heads: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = heads("one").changed(lora=None)
    tuned = load_tuned(open_run(fit.train(recipe)))
    parts = data.load(recipe).parts
    head = OnStates(tuned, tmp_path / "features")
    head.prepare(parts["test"])
    with pytest.raises(KeyError, match="no states"):
        next(head.predict(parts["validation"], 4))


def test_a_cut_off_evaluation_gives_the_same_bits(
    heads: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predicted(walk.run(heads("whole"), steps))
    plain, wrote = unfinished._stored, []

    def stop(*given: Any) -> Any:
        wrote.append(given)
        if len(wrote) == PARTS["validation"] + 5:  # in the middle of the test part
            raise KeyboardInterrupt
        return plain(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(unfinished, "_stored", stop)
        walk.run(heads("cut"), steps)
    assert predicted(walk.run(heads("cut"), steps)) == whole


def test_other_data_leave_nothing_beside_the_runs(
    heads: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation of another file, and one of a run that was brought here alone."""
    run = walk.run(heads("one"), steps)
    head = next(run.rglob("head.safetensors")).parent

    def refuse(*_: Any) -> Iterator[None]:
        raise AssertionError("states were asked for")

    (run.parent / "other.jsonl").write_text('{"text": "a good film", "label": "positive"}\n' * 3)
    monkeypatch.setattr(on_states, "compute", refuse)
    job = make_job(
        None, str(head), str(run.parent / "other.jsonl"), None, None, run.parent / "out", []
    )
    assert harness.run(job) is not None
