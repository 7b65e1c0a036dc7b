"""Heads on cached states train as with the backbone in the loop, and `head.layer: auto` finds the layer that knows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama_peft.errors import UserError
from llama_peft.features import states
from llama_peft.model import backbone
from llama_peft.recipe import Recipe, validate
from llama_peft.system.files import with_sum
from llama_peft.training import fit as training
from llama_peft.training import setup
from llama_peft.training.features import layer_choice
from tests.support import runs

FAMILIES = ["llama", "gemma", "gemma3_text"]
LAYERS = 3

Made = tuple[Recipe, Any, list[dict[str, Any]]]


def test_head_on_states_trains_as_with_the_backbone_in_the_loop(
    make: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps on the same random batches: the same weights."""
    final = {}
    for kind in ("prefix_tree", "length_sorted", "none"):
        recipe, _, _ = make(features=kind)
        keys = {"max_steps": 10, "learning_rate": 0.01, "output_dir": str(tmp_path / kind)}
        recipe = recipe.changed(train=keys)
        plain = setup.training_arguments
        monkeypatch.setattr(
            setup,
            "training_arguments",
            lambda *a, plain=plain: {**plain(*a), "train_sampling_strategy": "random"},
        )
        training.train(recipe)
        monkeypatch.undo()
        final[kind] = load_file(tmp_path / kind / "head.safetensors")["score.weight"]
    for kind in ("prefix_tree", "length_sorted"):
        assert (final[kind] - final["none"]).abs().max() <= 1e-6
    model = backbone.load(recipe, "classification", 2)
    assert (final["none"] - model.score.weight).abs().max() > 0.01, "it has learned"


def test_a_second_run_uses_the_states_of_the_first(
    make: Callable[..., Made], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    recipe, _, _ = make()
    training.train(recipe)
    assert "there already" not in caplog.text
    other = {"output_dir": recipe.train.output_dir + "-2", "learning_rate": 0.5}
    recipe = recipe.changed(train=other)
    training.train(recipe)
    assert "there already" in caplog.text


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_auto_chooses_says_so_and_loads_back(
    make: Callable[..., Made], caplog: pytest.LogCaptureFixture, family: str
) -> None:
    caplog.set_level("INFO")
    recipe, _, _ = make(family, 4, layer="auto")
    folder = training.train(recipe)
    choice = json.loads((folder / "head.json").read_text())
    assert len(choice["tried"]) == 2 * LAYERS
    losses = [one["loss"] for one in choice["tried"]]
    assert losses == sorted(losses)
    best = choice["tried"][0]
    assert "layer auto: 6 candidates" in caplog.text and f"{best['loss']:.4f}" in caplog.text
    facts = runs.record_of(folder)
    assert (facts.head.layer, facts.head.pooling) == (best["layer"], best["pooling"])
    run = runs.load(folder)
    assert len(run.model.model.layers) == best["layer"]
    assert run.recipe.head.layer == best["layer"] and run.recipe.head.pooling == best["pooling"]


def test_auto_keeps_its_choice(make: Callable[..., Made]) -> None:
    """A resumed run does not choose again, whatever was computed since."""
    recipe, model, rows = make(layer="auto")
    run = Path(recipe.train.output_dir)
    run.mkdir(parents=True)
    parts = {"train": rows, "validation": rows[:16]}
    chosen = layer_choice.choose(recipe, model, parts, run)
    held = json.loads((run / "head.json").read_text())
    held["tried"] = held["tried"][::-1]
    (run / "head.json").write_text(json.dumps(with_sum(held)))
    again = layer_choice.choose(recipe, model, parts, run)
    assert again != chosen and again.layer == held["tried"][0]["layer"]
    (run / "head.json").write_text(json.dumps(held))
    assert layer_choice.choose(recipe, model, parts, run) == chosen, (
        "what is damaged is tried again"
    )


def test_auto_finds_the_layer_that_knows(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label that is written in the states of block 2 alone is found there."""
    recipe, model, rows = make(layer="auto", rows=200)
    plain = states.layer_states

    def marked(model: Any, inputs: dict[str, Any], wanted: set[int]) -> dict[int, torch.Tensor]:
        found = plain(model, inputs, wanted)
        sign = (inputs["input_ids"] % 2 * 2 - 1).unsqueeze(-1)
        return {k: v + sign * (k == 2) * 3 for k, v in found.items()}

    monkeypatch.setattr(states, "layer_states", marked)
    named = [{**row, "labels": int(row["input_ids"][-1] % 2)} for row in _with_ends(rows)]
    run = Path(recipe.train.output_dir)
    run.mkdir(parents=True)
    head = layer_choice.choose(
        recipe, model, {"train": named[:150], "validation": named[150:]}, run
    )
    assert (head.layer, head.pooling) == (2, "last")


def _with_ends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows that end with an even or an odd token, at random."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(20, 200, (len(rows),), generator=generator).tolist()
    return [
        {**row, "input_ids": (*row["input_ids"], end)} for row, end in zip(rows, ends, strict=True)
    ]


def test_frozen_backbone_of_a_span_head_keeps_no_graph(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    """Its states are too many to keep, so the backbone runs; only the head has a backward pass."""
    recipe = make_recipe("extractive_qa", make_base())
    base = backbone.load(recipe, "extractive_qa")
    model = setup.trained_module(recipe, base)
    graphs = []
    base.model.register_forward_hook(lambda *a: graphs.append(a[-1].last_hidden_state.grad_fn))
    batch = {"input_ids": torch.tensor([[1, 5, 6, 7]])}
    positions = {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([2])}
    model(**batch, **positions).loss.backward()
    assert graphs == [None]


def _values(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "task": "classification", "dataset": {"path": "tiny"}} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": {"layer": 0}}, "number of a block"),
        ({"head": {"layer": -2}}, "number of a block"),
        ({"head": {"layer": "last"}}, "auto"),
        ({"head": {"layer": "auto"}, "lora": {"r": 4}}, "classification head without lora"),
        ({"head": {"layer": "auto", "features": "none"}}, "auto needs cached features"),
        ({"head": {"layer": 1}, "task": "generative_qa", "lora": {"r": 4}}, "has no head"),
        ({"head": {"layer": "auto"}, "task": "extractive_qa"}, "classification head without lora"),
    ],
)
def test_heads_that_cannot_work_are_faults(changes: dict[str, Any], message: str) -> None:
    recipe, faults = validate(_values(**changes))
    assert recipe is None and any(message in str(fault) for fault in faults), faults


def test_a_layer_the_base_does_not_have(make: Callable[..., Made]) -> None:
    with pytest.raises(UserError, match=r"head\.layer is 4, but this base has 3 blocks"):
        make(layer=4)


def test_only_the_blocks_above_may_be_left_over(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    base = make_base(num_hidden_layers=LAYERS)
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.mlp.extra_proj.weight"] = torch.ones(2, 2)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    recipe = make_recipe("classification", base, head={"layer": 2})
    with pytest.raises(UserError, match="no place"):
        backbone.load(recipe, "classification", 2)
