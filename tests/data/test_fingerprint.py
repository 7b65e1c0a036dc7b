"""The sums of a data set: equal to those of version 0.1.0, and changed by what matters."""

from dataclasses import replace

import pytest

from llama_peft import data
from llama_peft.data import TextExample
from llama_peft.recipe import load_recipe
from tests.support.paths import RUNS_0_1_0


@pytest.mark.parametrize("run", ["classifier", "generative", "head", "span"])
def test_split_and_record_are_those_that_version_0_1_0_wrote(run: str) -> None:
    folder = RUNS_0_1_0 / run
    dataset = data.load(load_recipe(folder / "recipe.yaml"))
    assert data.split_text(dataset) == (folder / "split.json").read_text("utf-8")
    assert data.record_text(dataset) == (folder / "data.sha256").read_text("utf-8")


def test_what_changes_a_sum() -> None:
    one = TextExample(id="1", text="A good film", label=1)
    asked = [replace(one, id="2"), replace(one, label=0), replace(one, text=" a GOOD\n film")]
    assert {data.asked_sum(example) for example in asked} == {data.asked_sum(one)}
    assert data.asked_sum(replace(one, text="A good film!")) != data.asked_sum(one)
    sets = [data.Dataset(labels=("n", "p"), parts={"train": [each]}) for each in (one, *asked)]
    assert len(set(map(data.content_sum, sets))) == 4
    unused = data.Dataset(labels=("n", "p"), parts={"test": [one]})
    assert data.asked_sums(unused) == set()
