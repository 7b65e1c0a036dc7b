"""Every packaged recipe is valid, and the real ones walk end to end on the real architecture with random weights."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from llama_peft.recipe import RECIPES, load_recipe
from tests.support import runs
from tests.support.paths import ROOT, tracked

NAMES = [path.stem for path in tracked() if path.parent == ROOT / "recipes"]
"""Recipes that a user has added are not tested."""
REAL = ["sst2", "sst2-head", "squad", "squad-span", "squad-span-head"]


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_valid_short_and_its_name(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert recipe.name == name
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ") and len(lines) <= 32


@pytest.mark.parametrize("name", NAMES)
def test_recipe_says_only_what_differs(name: str) -> None:
    """A key that repeats its default would hide the ones that matter. (`lora.r` stands for "with LoRA".)"""
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    written = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    for section, keys in written.items():
        fields = type(getattr(recipe, section)).model_fields if isinstance(keys, dict) else {}
        for key in fields.keys() & (keys.keys() if isinstance(keys, dict) else set()):
            field = fields[key]
            if not field.is_required() and (section, key) != ("lora", "r"):
                value = getattr(getattr(recipe, section), key)
                assert value != field.get_default(call_default_factory=True), f"{section}.{key}"


@pytest.fixture(scope="module")
def real_shape(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 3.2's config and tokenizer with two narrow layers of random weights."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder = tmp_path_factory.mktemp("llama-3.2")
    config = json.loads((shared / "llama-3.2-1b/config.json").read_text())
    small = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**(config | small | heads)))
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in (shared / "llama-3.2-1b").glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def real_rows(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the parts of each data set lie; the first ones are enough here."""
    folder, real = tmp_path_factory.mktemp("rows"), shared / "data"
    lines = (real / "sst2/train.tsv").read_text("utf-8").splitlines(keepends=True)
    (folder / "train.tsv").write_text("".join(lines[:1000]), "utf-8")
    passages = json.loads((real / "squad/squad_v2.json").read_text("utf-8"))
    for article in passages["data"]:
        del article["paragraphs"][4:]
    (folder / "squad.json").write_text(json.dumps(passages), "utf-8")
    return {
        "sst2": f"{{train: {folder}/train.tsv, official: {real}/sst2/dev.tsv}}",
        "squad": f"{{train: {folder}/squad.json}}",
    }


@pytest.mark.parametrize("name", REAL)
def test_real_recipes_walk_end_to_end_in_4bit(
    real_shape: Path, real_rows: dict[str, str], tmp_path: Path, name: str
) -> None:
    """Train, then evaluate zero-shot and tuned, on real rows: the recipe as it is but for base, data files and length."""
    from eval import harness
    from eval.job import make_job
    from llama_peft.training.fit import train

    run = tmp_path / "run"
    overrides = [
        f"model.model_name_or_path={real_shape}",
        "dataset.path=null",
        f"dataset.parts={real_rows[name.split('-')[0]]}",
        "dataset.max_train_samples=16",
        "dataset.max_eval_samples=6",
        "dataset.validation_size=0.1",
        "train.max_steps=1",
        "train.eval_steps=1",
        "train.use_cpu=true",
        "eval.max_new_tokens=2",
        f"train.output_dir={run}",
    ]
    recipe = load_recipe(name, overrides)
    assert recipe.quantization.load_in_4bit
    train(recipe)
    zero = harness.run(make_job(name, output=tmp_path / "zero", overrides=overrides))
    tuned = harness.run(make_job(model=str(run), output=tmp_path / "tuned"))
    assert zero.results.keys() == tuned.results.keys()
    assert set(zero.results) == ({name, f"{name}_official"} if "sst2" in name else {name})
    trainable = runs.record_of(run).parameters.trainable
    if name.endswith("-head"):
        assert trainable == (2 * 64 if "sst2" in name else 2 * 64 + 2)
    else:
        assert trainable > 10_000
