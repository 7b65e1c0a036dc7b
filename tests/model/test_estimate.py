"""The estimate of a run equals what a real model takes."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from llama_peft.__main__ import app
from llama_peft.errors import UserError
from llama_peft.model import backbone, counts, preflight
from llama_peft.model.estimate import Activations, estimate
from llama_peft.model.lora import add_lora
from llama_peft.recipe import Recipe
from llama_peft.training import fit as training

SHAPE = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 64}
TOKENS = 128


def kept(model: Any, autocast: bool) -> int:
    """Return the bytes that autograd keeps of one full row, without weights."""
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    held: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # or its place would be given to another
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 300, (1, TOKENS))
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([1]))
    return sum(held.values())


@pytest.mark.parametrize(
    ("family", "dtype", "lora"),
    [
        ("llama", "float32", {}),
        ("llama", "float32", {"target_modules": ["q_proj", "v_proj"]}),
        ("llama", "float32", {"lora_dropout": 0.1}),
        ("llama", "bfloat16", {}),
        ("llama", "bfloat16", {"lora_dropout": 0.1}),
        ("gemma", "float32", {}),
        ("gemma2", "float32", {}),
        ("gemma3_text", "float32", {}),
    ],
)
def test_activations_are_what_autograd_keeps(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    family: str,
    dtype: str,
    lora: dict[str, Any],
) -> None:
    base = make_base(family, **SHAPE)
    recipe = make_recipe(
        "classification",
        base,
        bits=4,
        lora={"r": 8, **lora},
        model={"dtype": dtype},
        train={"max_length": TOKENS},
    )
    assert recipe.lora is not None
    model = add_lora(
        backbone.load(recipe, "classification", 2), recipe.lora, "classification", recipe
    )
    config = counts.text_config(json.loads((base / "config.json").read_text()))
    said = Activations(recipe, config, 4 if dtype == "float32" else 2, "cpu").bytes(1)
    held = kept(model.train(), dtype == "bfloat16")
    # bfloat16 keeps casts of the adapter's weights too, which do not grow with the tokens
    casts = 2 * counts.count_text(config, lora=recipe.lora).adapter
    held -= casts if dtype == "bfloat16" else 0
    assert abs(said - held) <= 0.06 * held


def test_checkpointing_keeps_the_input_of_each_block(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    keys = {"max_length": TOKENS, "activation_checkpointing": True}
    base = make_base(**SHAPE)
    recipe = make_recipe("classification", base, bits=4, lora={"r": 8}, train=keys)
    assert recipe.lora is not None
    model = add_lora(
        backbone.load(recipe, "classification", 2), recipe.lora, "classification", recipe
    )
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    config = counts.text_config(json.loads((base / "config.json").read_text()))
    term = Activations(recipe, config, 4, "cpu")
    held = kept(model.train(), False)
    assert abs(term.bytes(1) - TOKENS * term.a_token() - held) <= 0.06 * held


@pytest.mark.parametrize("bits", [4, 32])
def test_weights_are_what_the_loaded_base_holds(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], bits: int
) -> None:
    base = make_base(**SHAPE)
    recipe = make_recipe("classification", base, bits=bits)
    found = estimate(recipe, json.loads((base / "config.json").read_text()), "float32", "cpu")
    model = backbone.load(recipe, "classification", 2)
    held = sum(each.nbytes for name, each in model.named_parameters() if "score" not in name)
    # the scales of 4-bit weights are not parameters
    assert held <= found.memory[0].bytes <= (1.04 if bits == 4 else 1) * held


def test_llama_at_its_true_size(shared: Path, make_recipe: Callable[..., Recipe]) -> None:
    """Known: NF4 weights of 1.03 GB, and 3.85 GB of activations in a row of 2,048 tokens without checkpointing."""
    train = {"max_length": 2048, "per_device_train_batch_size": 2}
    recipe = make_recipe(
        "generative_qa", shared / "llama-3.2-1b", bits=4, lora={"r": 16}, train=train
    )
    config = json.loads((shared / "llama-3.2-1b/config.json").read_text())
    found = estimate(recipe, config, "bfloat16", "cuda")
    terms = {term.name: term.bytes for term in found.memory}
    assert terms["weights"] == pytest.approx(1.03e9, rel=0.01)
    assert terms["activations"] == pytest.approx(2 * 3.85e9, rel=0.01)
    assert terms["trained weights"] == 4 * 11_272_192
    assert found.download == 2 * 1_235_814_400
    assert found.smallest < found.memory_total - 0.5 * terms["activations"] + 1
    cut = recipe.model_copy(update={"head": recipe.head.model_copy(update={"layer": 8})})
    half = estimate(cut, config, "bfloat16", "cuda").memory[0].bytes
    assert half < 0.8 * terms["weights"]


Usage = namedtuple("Usage", "total used free")


def test_a_run_that_cannot_fit_is_refused_before_it_starts(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = {"output_dir": str(tmp_path / "run")}
    recipe = make_recipe("classification", make_base(), lora={"r": 4}, train=folder)
    found = preflight.for_machine(recipe)
    assert found is not None
    monkeypatch.setattr(preflight, "_host_memory", lambda: found.smallest - 1)
    with pytest.raises(UserError, match=r"at least 0\.\d GB of memory.*activation_checkpointing"):
        training.train(recipe)
    monkeypatch.setattr(preflight, "_host_memory", lambda: found.memory_total - 1)
    preflight.room(recipe, tmp_path)
    assert "smaller pieces" in caplog.text
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 0, found.disk_total - 1))
    with pytest.raises(UserError, match=r"checkpoints take .* free: make room"):
        preflight.room(recipe, tmp_path / "run")
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_the_command_explains_each_term() -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["estimate", "tiny-squad", "train.max_length=256"])
    assert result.exit_code == 0, result.output
    for word in ("weights", "packed", "activations", "2 x 256 tokens", "logits", "download"):
        assert word in result.output
    found = json.loads(runner.invoke(app, ["estimate", "tiny-squad", "--json"]).output)
    assert found["memory_total"] == sum(found["memory"].values()) >= found["memory_smallest"]
