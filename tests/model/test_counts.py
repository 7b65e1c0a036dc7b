"""Law 3: counts are exact, from the config alone, in full precision and in 4-bit."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_peft.model import backbone, counts, params
from llama_peft.model.lora import add_lora, count_loaded, live_counts
from llama_peft.recipe import Lora, Recipe
from llama_peft.tasks import TASKS

GEMMA_3_1B = {
    "model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "head_dim": 256,
    "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 262144,
}  # fmt: skip
GEMMA_2_2B = {
    "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "head_dim": 256,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 256000,
}  # fmt: skip
LLAMA_3B = {
    "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "head_dim": 128,
    "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
    "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_1B = LLAMA_3B | {
    "hidden_size": 2048, "head_dim": 64, "num_hidden_layers": 16, "num_attention_heads": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "base", "classification", "spans"),
    [
        (LLAMA_1B, 1_235_814_400, 4096, 4098),
        (LLAMA_3B, 3_212_749_824, 6144, 6146),
        (GEMMA_3_1B, 999_885_952, 2304, 2306),
        (GEMMA_2_2B, 2_614_341_888, 4608, 4610),
    ],
)
def test_published_bases(config: dict, base: int, classification: int, spans: int) -> None:
    assert counts.count(config).base == base
    assert counts.count(config, "classification").with_head == base + classification
    assert counts.count(config, "extractive_qa").with_head == base + spans


def test_lora_of_the_1b() -> None:
    assert (
        counts.count(LLAMA_1B, lora=Lora(r=16, target_modules="all-linear")).adapter == 11_272_192
    )


def test_params_command_answers_from_the_config_alone(shared: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "llama_peft", "params"]
    done = subprocess.run(
        [*command, str(shared / "llama-3.2-1b"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["base"] == 1_235_814_400
    assert found["classification"] == 1_235_818_496
    assert found["extractive_qa"] == 1_235_818_498
    assert "| torch" not in done.stderr.replace("|   ", "|"), "counting needs no torch"


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [4, 32])
def test_formula_equals_the_loaded_model(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    family: str,
    tied: bool,
    bits: int,
) -> None:
    """`count_loaded` raises if formula and model differ; LoRA and head are in place."""
    if not tied and family != "llama":
        pytest.skip("Gemma is always tied")
    if bits == 4 and not tied:
        pytest.skip("one quantised case a family is enough")
    folder = make_base(family, tie_word_embeddings=tied)
    config = json.loads((folder / "config.json").read_text())
    for task in ("classification", "extractive_qa", "generative_qa"):
        recipe = make_recipe(task, folder, bits=bits, lora={"r": 4})
        model = backbone.load(recipe, task, num_labels=3)
        before, _ = live_counts(model, TASKS[task].head)
        assert recipe.lora is not None
        add_lora(model, recipe.lora, task, recipe)
        counted = count_loaded(model, task)
        expected = counts.count(config, task, 3, recipe.lora)
        assert counted == expected
        assert before == expected.total - expected.adapter


@pytest.mark.parametrize(
    "keys",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["norm", "layers.1.mlp.up_proj"], "target_modules": ["q_proj"]},
        {"modules_to_save": ["self_attn"], "target_modules": ["down_proj"]},
        {"modules_to_save": ["self_attn"]},
        {"modules_to_save": ["layers.1"]},
        {"modules_to_save": ["q_proj"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0, 0]},
        {"trainable_token_indices": [1, 5, 7]},
        {"trainable_token_indices": {"embed_tokens": [1, 5]}},
        {"trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [1, 5]}},
        {"lora_bias": True},
        {"use_dora": True, "rank_pattern": {"q_proj": 2}, "layers_to_transform": [1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("task", ["classification", "generative_qa"])
@pytest.mark.parametrize(
    ("family", "tied"), [("llama", False), ("llama", True), ("gemma3_text", True)]
)
def test_what_trains_beside_the_matrices_is_counted(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    keys: dict,
    task: str,
    family: str,
    tied: bool,
) -> None:
    if "lm_head" in str(keys) and task == "classification":
        pytest.skip("a model with a head has none for words")
    folder = make_base(family, tie_word_embeddings=tied)
    recipe = make_recipe(task, folder, lora={"r": 4} | keys)
    model = backbone.load(recipe, task, num_labels=3)
    assert recipe.lora is not None
    add_lora(model, recipe.lora, task, recipe)
    config = json.loads((folder / "config.json").read_text())
    expected = counts.count(config, task, 3, recipe.lora)
    assert count_loaded(model, task) == expected


@pytest.mark.parametrize("key", ["hidden_size", "head_dim", "num_key_value_heads"])
@pytest.mark.parametrize("value", ["x", 0, 1.5, [1]])
def test_a_config_without_whole_numbers_is_refused(key: str, value: object) -> None:
    with pytest.raises(counts.BadConfig, match=f"{key} is "):
        counts.count(LLAMA_1B | {key: value})


def test_assumed_labels_are_called_so() -> None:

    named = params.report("tiny-sst2", ["dataset.labels=[a, b, c]"])
    assert (named["labels"], named["head"]) == (3, 3 * 128)
    assert str(params.report("tiny-sst2", [])["labels"]).startswith("2, assumed")
