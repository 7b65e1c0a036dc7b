"""Recipes of other tasks share what an untouched base predicts, if it depends on the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.ladder import steps
from llama_peft.inference import unfinished
from llama_peft.ladder import walk
from llama_peft.recipe import Recipe
from tests.support.small import make_recipe, save_base

KEYS = {"rungs": ["zero-shot"], "forgetting": False}
PARTS = {"train": 8, "validation": 2, "test": 6}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of what is predicted, and not taken from elsewhere."""
    found: list[str] = []
    plain = unfinished._stored
    monkeypatch.setattr(
        unfinished, "_stored", lambda one, more: (found.append(one.id), plain(one, more))[1]
    )
    return found


def recipe_in(folder: Path, task: str, **changes: Any) -> Recipe:
    base, name = folder / "base", changes.pop("name", task)
    if not base.exists():
        save_base(base)
    keys: dict[str, Any] = {"max_new_tokens": 4, **changes.pop("eval", {})}
    data = {"parts": {**PARTS, **changes.pop("parts", {})}, **changes.pop("dataset", {})}
    found = make_recipe(
        task,
        base,
        lora={"r": 2},
        ladder=KEYS,
        eval=keys,
        dataset=data,
        train={"output_dir": str(folder / "runs" / name), **changes.pop("train", {})},
        **changes,
    )
    return found.model_copy(update={"name": name})


def test_another_task_takes_the_same_predictions(tmp_path: Path, computed: list[str]) -> None:
    """It has its own training part and its own lengths, which the base's answers do not depend on."""
    walk.run(recipe_in(tmp_path, "generative_qa"), steps)
    assert len(computed) == 6
    other = recipe_in(tmp_path, "extractive_qa", parts={"train": 12}, train={"max_length": 300})
    run = walk.run(other, steps)
    assert len(computed) == 6, "nothing was predicted again"
    first = tmp_path / "runs/generative_qa/zero-shot"
    lines = [(folder / "predictions.jsonl").read_bytes() for folder in (first, run / "zero-shot")]
    assert lines[0] == lines[1]
    own, lent = (
        json.loads((folder / "results.json").read_text()) for folder in (run / "zero-shot", first)
    )
    assert (
        own["config"]["recipe"] == "extractive_qa"
        and own["configs"]["extractive_qa"]["max_length"] == 300
    )
    assert own["results"]["extractive_qa"] == lent["results"]["generative_qa"]
    assert own["costs"] == lent["costs"], "what it takes was measured there"
    walk.run(other, steps, fresh=True, only="zero-shot")
    assert len(computed) == 12, "--fresh measures"
    assert (run / "zero-shot/predictions.jsonl").read_bytes() == lines[0], "and finds the same"


def test_what_depends_on_something_else_or_is_not_whole_is_not_taken(
    tmp_path: Path, computed: list[str]
) -> None:
    walk.run(recipe_in(tmp_path, "generative_qa"), steps)
    changes: list[dict[str, Any]] = [
        {"eval": {"max_new_tokens": 3}},
        {"parts": {"test": 5}},
        {"prompt": {"instruction": "Say it in a word."}},
        {"model": {"dtype": "bfloat16"}},
    ]
    for number, change in enumerate(changes):
        computed.clear()
        walk.run(recipe_in(tmp_path, "extractive_qa", name=f"other-{number}", **change), steps)
        assert len(computed) == (5 if number == 1 else 6), change
    first = tmp_path / "runs/generative_qa/zero-shot/predictions.jsonl"
    first.write_text(first.read_text().replace('"prediction": "', '"prediction": "x', 1))
    computed.clear()
    walk.run(recipe_in(tmp_path, "extractive_qa"), steps)
    assert len(computed) == 6, "a changed file"
