"""Examples that are longer than every row are counted and reported, and whoever prepares batches, they are the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.inference import predict
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.training import fit as training
from llama_peft.training import rows


def test_examples_that_fit_no_row_are_counted(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = make_recipe("generative_qa", make_base(), lora={"r": 4})
    encoder = predict.PromptEncoder(backbone.load_tokenizer(recipe.model), recipe.prompt)
    examples = data.load(recipe).parts["train"]
    lengths = sorted(len(one.prompt) for one in encoder.encode(examples))
    short = recipe.changed(train={"max_length": lengths[12]})
    found = rows.encode_part(short, encoder, "train", examples)
    kept = {id_ for row in found for id_ in row["ids"]}
    assert f"{len(examples) - len(kept)} of {len(examples)} examples are longer" in caplog.text
    none = recipe.changed(train={"max_length": 8})
    with pytest.raises(UserError, match="no example fits"):
        rows.encode_part(none, encoder, "train", examples)


@pytest.mark.parametrize(
    ("task", "lora", "keys"),
    [
        ("classification", True, {"packing": "prefix_tree"}),
        ("classification", False, {}),
        ("extractive_qa", True, {"gradient_accumulation_steps": 2}),
        ("generative_qa", True, {}),
        ("generative_qa", True, {"packing": "prefix_tree", "max_length": 480}),
    ],
)
def test_batches_that_workers_prepare_train_to_the_same_bits(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    task: str,
    lora: bool,
    keys: dict[str, Any],
) -> None:
    """Also in a second epoch, with dropout: whoever prepares batches draws nothing from its stream."""
    base, found = make_base(), []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        own = {"output_dir": str(folder), "dataloader_num_workers": workers, "max_steps": 4, **keys}
        adapter = {"r": 4, "lora_dropout": 0.3} if lora else None
        run = training.train(make_recipe(task, base, lora=adapter, train=own))
        lines = map(json.loads, (run / "history.jsonl").read_text().splitlines())
        losses = [[line.get(name) for name in ("loss", "eval_loss", "grad_norm")] for line in lines]
        found.append(
            (
                losses,
                load_file(
                    next(run.glob("**/head.safetensors"), run / "adapter/adapter_model.safetensors")
                ),
            )
        )
    (losses, one), (again, other) = found
    assert losses == again and len(losses) >= 4
    assert all(torch.equal(one[name], other[name]) for name in one)
