"""Which checkpoint a run continues from, which ones it removes, and what they record."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.system import seal
from llama_peft.training import checkpoints
from llama_peft.training import fit as training
from tests.support import runs
from tests.support.trainings import hurt, lose_power, recipe_of, weights


def folder_of(path: Path) -> Path:
    """A sealed checkpoint whose records are right; its other files are never loaded here."""
    path.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (path / name).write_bytes(bytes(range(200)))
    step = int(path.name[11:])
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 99}))
    nothing = checkpoints.Spent(), checkpoints.Origin(), checkpoints.Sharing()
    checkpoints.write_spent(path, *nothing)
    seal.seal(path)
    return path


def test_the_newest_intact_checkpoint_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 9, 10):
        folder_of(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-11").mkdir()
    assert checkpoints.newest_sealed(tmp_path) == tmp_path / "checkpoint-10"
    assert "checkpoint-11 is incomplete" in caplog.text
    (tmp_path / "checkpoint-10/optimizer.pt").unlink()
    assert checkpoints.newest_sealed(tmp_path) == tmp_path / "checkpoint-9"
    assert checkpoints.newest_sealed(tmp_path / "none") is None


def test_links_and_odd_names_among_checkpoints_hurt_nothing(tmp_path: Path) -> None:
    """An old checkpoint was moved to another disk, and a folder only looks like a checkpoint."""
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


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        folder_of(tmp_path / f"checkpoint-{step}")
    checkpoints.rotate(tmp_path, 2, best=str(tmp_path / "checkpoint-1"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint-1", "checkpoint-3", "checkpoint-10",
    }  # fmt: skip


def test_removing_a_checkpoint_leaves_what_its_user_put_there(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        folder_of(tmp_path / f"checkpoint-{step}")
        (tmp_path / f"checkpoint-{step}/plots").mkdir()
    note, outside = tmp_path / "checkpoint-1/notes.txt", tmp_path / "outside"
    note.write_text("mine")
    outside.write_text("mine")
    state = tmp_path / "checkpoint-4/optimizer.pt"
    state.unlink()
    state.symlink_to(outside)
    checkpoints.remove_newer(tmp_path, tmp_path / "checkpoint-3")
    checkpoints.rotate(tmp_path, 1, best=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-1", "checkpoint-3", "outside",
    ]  # fmt: skip
    assert [*note.parent.iterdir()] == [note] and note.read_text() == outside.read_text() == "mine"
    assert checkpoints.newest_first(tmp_path) == [tmp_path / "checkpoint-3"]


def test_a_run_never_ends_with_a_damaged_best_checkpoint(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(folder: Path) -> Recipe:
        # The rate is so high that the first validation stays the best.
        keys = {"eval_steps": 1, "save_total_limit": 1, "learning_rate": 1.0, "max_steps": 4}
        return recipe_of(make_recipe, base, "classification", folder, **keys)

    whole = training.train(recipe(tmp_path / "whole"))
    assert runs.record_of(whole).best_step < 4

    def damage(trainer: Any, inputs: dict[str, Any]) -> None:
        if trainer.state.global_step == 3:
            best = Path(trainer.state.best_model_checkpoint) / "adapter_model.safetensors"
            raw = bytearray(best.read_bytes())
            raw[-1] ^= 1
            best.write_bytes(raw)

    hurt(monkeypatch, damage)
    with pytest.raises(UserError, match="the best checkpoint is missing or damaged"):
        training.train(recipe(tmp_path / "cut"))
    assert (
        checkpoints.newest_sealed(tmp_path / "cut/checkpoints") is None
    )  # all name it as the best
    monkeypatch.undo()
    again = training.train(recipe(tmp_path / "cut"))
    assert all(torch.equal(weights(again)[key], value) for key, value in weights(whole).items())


def test_skipped_checkpoints_do_not_push_out_sealed_ones(tmp_path: Path) -> None:
    for step in (5, 10):
        folder_of(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-10" / seal.SEAL).unlink()
    resumed = checkpoints.newest_sealed(tmp_path)
    assert resumed == tmp_path / "checkpoint-5"
    checkpoints.remove_newer(tmp_path, resumed)
    folder_of(tmp_path / "checkpoint-7")
    checkpoints.rotate(tmp_path, 1, None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]


def test_a_resumed_run_records_what_all_its_starts_took(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(folder: Path) -> Recipe:
        keys = {"eval_steps": 1, "logging_steps": 1}
        return recipe_of(make_recipe, base, "classification", folder, **keys)

    whole = runs.record_of(training.train(recipe(tmp_path / "whole")))
    hurt(monkeypatch, lose_power)
    with pytest.raises(RuntimeError, match="power"):
        training.train(recipe(tmp_path / "cut"))
    monkeypatch.undo()
    path = checkpoints.newest_sealed(tmp_path / "cut/checkpoints")
    assert path is not None
    kept = checkpoints.read_origin(path), checkpoints.read_sharing(path)
    checkpoints.write_spent(path, checkpoints.Spent(1000.0, 2**49), *kept)
    seal.seal(path)
    cut = runs.record_of(training.train(recipe(tmp_path / "cut")))
    assert cut.train_loss == pytest.approx(whole.train_loss, rel=1e-6)
    assert 1000 < cut.wall_seconds < 1300 and cut.peak_memory_bytes == 2**49
