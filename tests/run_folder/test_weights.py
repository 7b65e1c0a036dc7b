"""Changed, damaged or foreign weights and records are never loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.run_folder import layout
from llama_peft.system.files import sha256
from llama_peft.training import fit as training
from tests.support import runs


@pytest.fixture(scope="module")
def finished(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    keys = {"output_dir": str(folder), "max_steps": 1}
    return training.train(make_recipe("classification", make_base(), lora={"r": 4}, train=keys))


def test_changed_exports_are_refused(finished: Path, tmp_path: Path) -> None:
    for name in (
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "recipe.yaml",
        "split.json",
    ):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(finished, copy)
        raw = (copy / name).read_bytes()
        (copy / name).write_bytes(raw[:-3] + b"xyz")
        with pytest.raises(UserError, match="changed after the training"):
            runs.load(copy)
        (copy / name).unlink()
        with pytest.raises(UserError, match="no finished run"):
            runs.load(copy)


def resealed(folder: Path) -> None:
    facts = json.loads((folder / "training.json").read_text())
    facts["files"] = {name: sha256(folder / name) for name in facts["files"]}
    runs.write_record(folder, facts)


def test_an_adapter_of_another_depth_is_refused(finished: Path, tmp_path: Path) -> None:
    """Trap 20: PEFT loads it without an error, and the layers that it lacks stay untrained."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    path = copy / "adapter/adapter_model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if ".layers.1." not in name}
    save_file(kept, path)
    resealed(copy)
    with pytest.raises(UserError, match=r"does not fit the base.*layers\.1\."):
        runs.load(copy)


def test_another_base_of_the_same_shape_is_refused(
    finished: Path, make_base: Callable[..., Path], tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    text = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(
        "\n".join(
            f"  model_name_or_path: {make_base(initializer_range=0.03)}"
            if "model_name_or_path" in line
            else line
            for line in text.splitlines()
        )
    )
    resealed(copy)
    with pytest.raises(UserError, match="trained on another"):
        runs.load(copy)


def test_a_folder_without_a_run_names_the_command_that_trains_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="llama-peft train"):
        runs.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "null",
        '{"files": {}, "parameters": {}, "head": {}, "base_fingerprint": null}',
        '{"files": {}, "parameters": {}, "head": "x", "base_fingerprint": "sha256:1"}',
        '{"files": [], "parameters": {}, "head": {}, "base_fingerprint": "sha256:1"}',
    ],
)
def test_a_damaged_record_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / layout.TRAINING
    if text.startswith("{"):
        runs.write_record(tmp_path, json.loads(text))  # its sum is right
    else:
        path.write_text(text)
    with pytest.raises(UserError, match="this record of a run cannot be read"):
        runs.record_of(tmp_path)
