"""Files of strangers cannot make the libraries work for ever: each is refused in one line, at once."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_peft.errors import UserError
from llama_peft.model import backbone, counts, preflight
from llama_peft.model.lora import add_lora
from llama_peft.run_folder.weights import attach_adapter
from llama_peft.system import limits
from tests.support.small import make_recipe, save_base

ENDLESS = "(([a-z_.0-9])+)+$$!"


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give work that has no end a fraction of a second."""
    right = limits.limited
    monkeypatch.setattr(limits, "limited", lambda work: right(work, seconds=0.2))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and an adapter of it."""
    folder = tmp_path_factory.mktemp("adapter")
    recipe = make_recipe("generative_qa", save_base(folder / "base"), lora={"r": 4})
    assert recipe.lora is not None
    model = add_lora(backbone.load(recipe, recipe.task), recipe.lora, recipe.task, recipe)
    model.save_pretrained(str(folder / "own"), save_embedding_layers=False)
    return folder / "base", folder / "own"


def attach(adapter: tuple[Path, Path], folder: Path, changes: dict[str, Any]) -> None:
    base, own = adapter
    shutil.copytree(own, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
    recipe = make_recipe("generative_qa", base, lora={"r": 4})
    attach_adapter(backbone.load(recipe, recipe.task), folder)


def test_a_pattern_that_ends_is_read_as_before(adapter: tuple[Path, Path], tmp_path: Path) -> None:
    attach(adapter, tmp_path / "a", {"target_modules": r".*\.([qkvo]|gate|up|down)_proj"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ENDLESS}, "target_modules: .* longer than 0.2 seconds"),
        ({"exclude_modules": ENDLESS}, "exclude_modules: .* longer"),
        ({"modules_to_save": [ENDLESS]}, "modules_to_save: .* longer"),
        ({"rank_pattern": {ENDLESS: 4}}, "rank_pattern: .* longer"),
        ({"alpha_pattern": {ENDLESS: 4}}, "alpha_pattern: .* longer"),
        ({"layers_to_transform": [0], "layers_pattern": ENDLESS}, "layers_pattern: .* longer"),
        ({"ensure_weight_tying": True, "target_modules": ["lm_head", ENDLESS]}, "longer"),
        ({"target_modules": "(("}, "cannot be used as a pattern .missing"),
        ({"target_modules": "(" * 20_000}, "cannot be used as a pattern .it never ends"),
        ({"rank_pattern": {f"x{n}": 4 for n in range(10_000)}}, "it lists 10,000 names"),
        ({"layer_replication": [[0, 2]] * 1000}, "adapters with layer_replication are not loaded"),
        ({"init_lora_weights": "pissa_niter_1_000_000_000"}, "computes the first weights again"),
        ({"r": 10**5}, "asks for rank 100000, and its weights have 4"),
        ({"rank_pattern": {"q_proj": 10**5}}, "asks for rank 100000, and its weights have 4"),
        ({"trainable_token_indices": [10**12]}, "does not fit the base"),
    ],
)
def test_settings_of_an_adapter_that_would_not_end_are_refused(
    adapter: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    if "longer" in message:
        hurry(monkeypatch)
    with pytest.raises(UserError, match=message):
        attach(adapter, tmp_path / "a", changes)


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
def test_a_recipes_patterns_are_tried_before_anything_is_counted_or_trained(
    adapter: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    hurry(monkeypatch)
    recipe = make_recipe("generative_qa", adapter[0], lora={key: ENDLESS})
    assert recipe.lora is not None
    config = json.loads((adapter[0] / "config.json").read_text("utf-8"))
    with pytest.raises(UserError, match=rf"lora\.{key}: .* longer than"):
        counts.count(config, recipe.task, lora=recipe.lora)
    with pytest.raises(UserError, match=rf"lora\.{key}: .* longer than"):
        add_lora(backbone.load(recipe, recipe.task), recipe.lora, recipe.task, recipe)


def _zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(50 * 10**9)


def _brackets(path: Path) -> None:
    path.write_text("[" * 100_000, "utf-8")


def _outside(path: Path) -> None:
    path.write_text(json.dumps({"weight_map": {"a": "../../other.safetensors"}}), "utf-8")


FILES: list[tuple[str, Callable[[Path], None], str]] = [
    ("tokenizer.json", os.mkfifo, "is not a regular file"),
    ("model.safetensors", os.mkfifo, "is not a regular file"),
    ("generation_config.json", _zero, "is not a regular file"),
    ("chat_template.jinja", os.mkfifo, "is not a regular file"),
    ("tokenizer.json", _sparse, "is larger than"),
    ("config.json", _brackets, "not readable as a model's config"),
    ("tokenizer.json", _brackets, "its tokenizer does not load"),
    ("tokenizer_config.json", _brackets, "its tokenizer does not load"),
    ("model.safetensors.index.json", _outside, "is not the name of a file beside it"),
]


@pytest.mark.parametrize(("name", "plant", "message"), FILES)
def test_a_bases_folder_with_a_file_without_end_is_refused(
    tmp_path: Path, name: str, plant: Callable[[Path], None], message: str
) -> None:
    base = save_base(tmp_path / "base")
    (base / name).unlink(missing_ok=True)
    plant(base / name)
    recipe = make_recipe("generative_qa", base, lora={"r": 4})
    with pytest.raises(UserError, match=message):
        backbone.load(recipe, recipe.task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is more than 1,000"),
        ({"model_type": "gpt2", "n_layer": 10**9}, "n_layer is more than"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers is more than 1,000"),
        ({"num_labels": 10**9}, "num_labels is more than"),
        ({"vocab_size": 10**12}, "vocab_size is more than"),
        ({"vocab_size": 10**9}, "describes 64,0.* parameters, but its files hold"),
        ({"quantization_config": {"llm_int8_skip_modules": [ENDLESS]}}, "is not the name of a mod"),
    ],
)
def test_a_config_that_asks_for_more_than_any_base_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    base = save_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps({**config, **changes}), "utf-8")
    recipe = make_recipe("generative_qa", base, lora={"r": 4})
    with pytest.raises(UserError, match=message):
        preflight.check(recipe, long=False)
