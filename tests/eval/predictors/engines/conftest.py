"""The embedded model behind a server of this machine, and the recipe whose questions it is asked."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from eval.predictors.engines import client
from eval.predictors.kinds import EngineChoice
from llama_peft import tiny
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.training import fit as training
from tests.support.completions.server import Completions, serve
from tests.support.eval.jobs import evaluate, lines_of
from tests.support.runs import load

NAME = str(tiny.MODEL_DIR)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE", 0.01)
    for name in (client.KEY, client.URL):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def asked(make_recipe: Callable[..., Recipe]) -> Recipe:
    """Questions for the embedded model as it is."""
    return make_recipe(
        "generative_qa",
        NAME,
        lora={"r": 4},
        eval={"max_new_tokens": 6},
        dataset={"parts": {"train": 8, "validation": 3, "test": 6}},
    )


@pytest.fixture(scope="session")
def untouched(asked: Recipe) -> Completions:
    model = AutoModelForCausalLM.from_pretrained(NAME, dtype="float32").eval()
    return Completions(model, backbone.load_tokenizer(asked.model), (NAME,))


@pytest.fixture
def server(untouched: Completions) -> Iterator[Completions]:
    with serve(replace(untouched, faults=[], asked=[])) as served:
        yield served


@pytest.fixture(scope="session")
def local(asked: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What this process answers."""
    folder = tmp_path_factory.mktemp("local") / "out"
    evaluate(asked, NAME, folder)
    return lines_of(folder)


@pytest.fixture(scope="session")
def tuned_run(
    asked: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Path, Completions]:
    """A run that decides on "no answer" by a threshold, and a server of it."""
    folder = tmp_path_factory.mktemp("tuned") / "mine"
    keys = {"max_steps": 1, "max_length": 256, "learning_rate": 1e-5}
    recipe = asked.changed(
        train={**keys, "output_dir": str(folder)},
        prompt={"no_answer": "the"},  # some answers begin so
        eval={"fit_no_answer_threshold": True},
    )
    training.train(recipe)
    tuned = load(folder)
    return recipe, folder, Completions(tuned.model, tuned.encoder.tokenizer, ("mine",))


def openai(served: Completions, **changes: Any) -> EngineChoice:
    return EngineChoice(name="openai", base_url=served.url, **changes)
