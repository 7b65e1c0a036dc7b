"""Checkpoints that are packed already: loaded as their form and the recipe say, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from llama_peft.errors import UserError
from llama_peft.export.merged.folder import merge
from llama_peft.model import backbone, preflight
from llama_peft.model.lora import add_lora, count_loaded
from llama_peft.recipe import Recipe
from llama_peft.training.fit import train

WORDS = {
    "classification": {"labels": torch.tensor([1])},
    "extractive_qa": {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([2])},
    "generative_qa": {"labels": torch.tensor([[1, 5, 6, 7]])},
}
"""What the loss of each task reads beside the ids."""


def packed(base: Path, to: Path, form: str) -> Path:
    """Save a base as bitsandbytes or fp8 packs it, in bfloat16."""
    shutil.copytree(base, to)
    if form == "fp8":
        return _in_fp8(to)
    words = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    packing = BitsAndBytesConfig(
        **words if form == "4bit" else {"load_in_8bit": True}, llm_int8_skip_modules=["lm_head"]
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=packing
    )
    model.save_pretrained(to)
    return to


def _in_fp8(folder: Path) -> Path:
    tensors: dict[str, torch.Tensor] = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            scale = value.abs().max() / 448
            tensors[name] = (value / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
        else:
            tensors[name] = value.bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    describe(folder, {"quant_method": "fp8", "weight_block_size": [128, 128]})
    return folder


def describe(folder: Path, packing: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": packing}))


@pytest.mark.parametrize("task", WORDS)
@pytest.mark.parametrize(("form", "bits"), [("4bit", 4), ("8bit", 8), ("4bit", 32), ("fp8", 32)])
def test_a_packed_checkpoint_trains_every_head(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    task: str,
    form: str,
    bits: int,
) -> None:
    """Its own list of what is not packed would pack our heads."""
    base = packed(make_base(), tmp_path / form, form)
    for dtype in ("float32", "bfloat16"):
        recipe = make_recipe(task, base, bits=bits, lora={"r": 4}, model={"dtype": dtype})
        preflight.check(recipe, long=True)
        model = backbone.load(recipe, task, 2)
        kinds = [type(one).__name__ for name, one in model.named_modules() if "_proj" in name]
        assert set(kinds) == {{4: "Linear4bit", 8: "Linear8bitLt", 32: "Linear"}[bits]}
        assert model.get_input_embeddings().weight.dtype == getattr(torch, dtype)
        said = [getattr(model, f"is_loaded_in_{packed}bit", False) for packed in (4, 8)]
        assert said == [bits == 4, bits == 8]  # libraries go by this
        adapted = add_lora(model, recipe.lora, task, recipe)
        adapted(input_ids=torch.tensor([[1, 5, 6, 7]]), **WORDS[task]).loss.backward()
        assert count_loaded(model, task).adapter


@pytest.mark.parametrize(("form", "bits"), [("4bit", 4), ("fp8", 32)])
def test_a_run_on_a_packed_checkpoint_is_merged(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    form: str,
    bits: int,
) -> None:
    base = packed(make_base(), tmp_path / "base", form)
    out = {"output_dir": str(tmp_path / "run")}
    run = train(make_recipe("classification", base, bits=bits, lora={"r": 4}, train=out))
    merge(run, tmp_path / "merged")
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert "quantization_config" not in config


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "mxfp4", "unknown"])
def test_other_forms_are_refused_in_one_line(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    method: str,
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(make_base(), folder)
    describe(folder, {"quant_method": method})
    with pytest.raises(UserError, match=rf"packed as '{method}'.*name the base that it was made"):
        preflight.check(make_recipe("classification", folder), long=False)


def test_a_recipe_that_names_another_form_is_refused(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    base = make_base()
    cases = [
        ("4bit", 8, {}, "load_in_8bit: false and load_in_4bit: true"),
        ("8bit", 4, {}, "load_in_4bit: false and load_in_8bit: true"),
        ("fp8", 4, {}, "set quantization.load_in_4bit: false"),
        ("4bit", 4, {"bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type: nf4"),
    ]
    for number, (form, bits, keys, said) in enumerate(cases):
        folder = packed(base, tmp_path / str(number), form)
        recipe = make_recipe("classification", folder, bits=bits, quantization=keys)
        with pytest.raises(UserError, match=said):
            preflight.check(recipe, long=False)
