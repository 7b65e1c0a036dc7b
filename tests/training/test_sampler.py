"""The order of rows in each epoch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_peft.recipe import Recipe
from llama_peft.training import fit as training
from llama_peft.training.sampler import LongestFirst
from llama_peft.training.trainer import SteadyTrainer


def test_each_epoch_has_an_order_of_its_own_and_every_row_once(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(
        "classification",
        make_base(),
        lora={"r": 2},
        train={
            "output_dir": str(tmp_path / "run"),
            "max_steps": 9,
            "per_device_train_batch_size": 8,
        },
    )
    seen: list[list[str]] = []
    step = SteadyTrainer.training_step

    def noting(self: SteadyTrainer, model: Any, inputs: Any, *rest: Any) -> Any:
        seen.append([id_ for row in inputs["ids"] for id_ in row])
        return step(self, model, inputs, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SteadyTrainer, "training_step", noting)
        training.train(recipe)
    epochs = [[*a, *b, *c] for a, b, c in (seen[0:3], seen[3:6], seen[6:9])]
    assert all(len(set(epoch)) == 24 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_validation_has_rows_of_like_length_together() -> None:
    rows = [{"input_ids": [0] * length} for length in (3, 9, 1, 8, 2, 7)]
    order = list(LongestFirst(rows))
    assert [len(rows[i]["input_ids"]) for i in order] == [9, 8, 7, 3, 2, 1]
