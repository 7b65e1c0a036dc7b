"""Seals: nothing unsealed, damaged or foreign is ever loaded."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.run_folder import layout, threshold
from llama_peft.system import seal
from llama_peft.system.files import sha256, with_sum
from llama_peft.training import checkpoints
from llama_peft.training import fit as training
from tests.support import runs


def folder_of(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "weights").write_bytes(bytes(range(200)))
    (path / "state.json").write_text("{}")
    seal.seal(path)
    return path


def test_any_damage_breaks_the_seal(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "checkpoint-1")
    assert seal.is_sealed(folder)
    rng = random.Random(0)
    for name in ("weights", "state.json", "manifest.json"):
        raw = (folder / name).read_bytes()
        flipped = bytearray(raw)
        flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(7)
        for damage in (bytes(flipped), raw[: len(raw) // 2], b""):
            (folder / name).write_bytes(damage)
            assert not seal.is_sealed(folder), (name, damage)
        (folder / name).unlink()
        assert not seal.is_sealed(folder), name
        (folder / name).write_bytes(raw)
    assert seal.is_sealed(folder)


def test_the_newest_whole_checkpoint_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 9, 10):
        folder_of(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-11").mkdir()
    assert checkpoints.newest_sealed(tmp_path) == tmp_path / "checkpoint-10"
    assert "checkpoint-11 is incomplete" in caplog.text
    (tmp_path / "checkpoint-10/weights").unlink()
    assert checkpoints.newest_sealed(tmp_path) == tmp_path / "checkpoint-9"
    assert checkpoints.newest_sealed(tmp_path / "none") is None


def test_links_and_odd_names_among_checkpoints_hurt_nothing(tmp_path: Path) -> None:
    """An old one moved to another disk, and what only looks like one."""
    for step in (1, 2, 3):
        folder_of(tmp_path / f"run/checkpoint-{step}")
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.move(run / "checkpoint-1", elsewhere)
    (run / "checkpoint-1").symlink_to(elsewhere)
    (run / "checkpoint-99").symlink_to("/etc")
    (run / "checkpoint-\u00b2").mkdir()
    newest = checkpoints.newest_sealed(run)
    assert newest == run / "checkpoint-3"
    checkpoints.remove_newer(run, newest)
    checkpoints.rotate(run, 1, best=None)
    assert {path.name for path in run.iterdir()} == {"checkpoint-3", "checkpoint-\u00b2"}
    assert seal.is_sealed(elsewhere)


def threshold_of(folder: Path, record: dict[str, Any]) -> float:
    """What is read of a record that lies beside the weights `its`."""
    runs.write_record(folder, {"files": {"head.safetensors": "its"}})
    (folder / layout.THRESHOLD).write_text(json.dumps(with_sum(record)))
    found = threshold.read_threshold(folder)
    assert found is not None
    return found.no_answer_threshold


@pytest.mark.parametrize("value", ["NaN", "-5", "1e999", "null", '"x"', "1.5"])
def test_a_threshold_that_is_no_probability_is_damaged(tmp_path: Path, value: str) -> None:
    record = json.loads(f'{{"no_answer_threshold": {value}, "adapter_sha256": "its"}}')
    with pytest.raises(UserError, match=r"damaged, or belongs to other weights.*llama-eval run"):
        threshold_of(tmp_path, record)


def test_a_threshold_is_of_the_run_s_weights(tmp_path: Path) -> None:
    record = {"no_answer_threshold": 0.25, "adapter_sha256": "its"}
    assert threshold_of(tmp_path, record) == 0.25
    with pytest.raises(UserError, match="belongs to other weights"):
        threshold_of(tmp_path, record | {"adapter_sha256": "another's"})


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        folder_of(tmp_path / f"checkpoint-{step}")
    checkpoints.rotate(tmp_path, 2, best=str(tmp_path / "checkpoint-1"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint-1", "checkpoint-3", "checkpoint-10",
    }  # fmt: skip


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
    """Trap 20: PEFT loads it without a word, and the layers it lacks stay untrained."""
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


def test_a_folder_without_a_run_says_what_makes_one(tmp_path: Path) -> None:
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
def test_a_record_that_is_none_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / layout.TRAINING
    if text.startswith("{"):
        runs.write_record(tmp_path, json.loads(text))  # its sum is right
    else:
        path.write_text(text)
    with pytest.raises(UserError, match="this record of a run cannot be read"):
        runs.record_of(tmp_path)
