"""Steps when memory runs out, and when a loss or a gradient is not finite."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.training import checkpoints
from llama_peft.training import fit as training
from llama_peft.training import trainer as steady
from llama_peft.training.features.head import FeatureHead, FeatureRow, collate
from llama_peft.training.loss_weights import LossWeights, loss_weights
from llama_peft.training.trainer import SteadyTrainer
from tests.support import runs
from tests.support.trainings import autocast, hurt, recipe_of, weights

TASKS = ["classification", "extractive_qa", "generative_qa"]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_out_of_memory_does_the_same_step_in_smaller_pieces(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: str,
    accumulation: int,
) -> None:
    """The weights stay the same, although the failed attempt has already changed the gradients."""
    keys: dict[str, Any] = {"gradient_accumulation_steps": accumulation}
    if accumulation == 2 and task != "generative_qa":  # its pieces have padded rows
        keys["packing"] = "prefix_tree"
    whole = training.train(recipe_of(make_recipe, base, task, tmp_path / "whole", **keys))

    def run_out(trainer: Any, inputs: dict[str, Any]) -> None:
        if len(inputs["input_ids"]) > 3:
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.ones_like(parameter)
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hurt(monkeypatch, run_out)
    cut = training.train(recipe_of(make_recipe, base, task, tmp_path / "cut", **keys))
    assert "computed in 2 pieces" in caplog.text and "computed in 4 pieces" in caplog.text
    expected, found = weights(whole), weights(cut)
    learnt = [key for key in expected if "lora_B" in key]  # these start at zero
    moved = torch.cat([expected[key].flatten() for key in learnt]).norm()
    distance = torch.cat([(expected[key] - found[key]).flatten() for key in learnt]).norm()
    assert distance < 2e-2 * moved  # Adam turns noise in a tiny gradient into a step
    losses = [runs.record_of(run).train_loss for run in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_step_that_ran_out_of_memory_draws_the_same_dropout(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failed attempt has drawn some of it."""

    def trained(name: str) -> dict[str, torch.Tensor]:
        keys = {"output_dir": str(tmp_path / name), "per_device_train_batch_size": 8}
        lora = {"r": 4, "lora_dropout": 0.4}
        return weights(training.train(make_recipe("classification", base, lora=lora, train=keys)))

    def run_out(trainer: Any, inputs: dict[str, Any]) -> None:
        if len(inputs["input_ids"]) > 4:
            torch.rand(7)
            raise RuntimeError("CUDA error: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(SteadyTrainer, "_pieces", 2)
        expected = trained("pieces")
    hurt(monkeypatch, run_out)
    found = trained("replayed")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_memory_for_less_than_one_row_is_one_line(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(trainer: Any, inputs: dict[str, Any]) -> None:
        raise MemoryError

    hurt(monkeypatch, run_out)
    with pytest.raises(UserError, match=r"one row at a time: lower train\.max_length"):
        training.train(recipe_of(make_recipe, base, "classification", tmp_path / "run"))


def test_other_errors_are_not_mistaken_for_memory(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(trainer: Any, inputs: dict[str, Any]) -> None:
        raise RuntimeError("a bug")

    hurt(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="a bug"):
        training.train(recipe_of(make_recipe, base, "classification", tmp_path / "run"))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_the_first_number_that_is_not_finite_stops_the_run_and_names_its_rows(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    recipe = recipe_of(make_recipe, base, "classification", tmp_path / "run", eval_steps=1)
    right = steady.SteadyTrainer.compute_loss

    def compute(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = right(self, *args, **kwargs)
        if self.state.global_step == 2 and args[0].training:
            if where == "loss":
                return found * float("nan")
            found.register_hook(lambda gradient: gradient * float("inf"))
        return found

    monkeypatch.setattr(steady.SteadyTrainer, "compute_loss", compute)
    with pytest.raises(
        UserError, match=r"step 3: .* is (nan|inf) in float32; its batch: reviews-train-"
    ) as error:
        training.train(recipe)
    assert str(error.value).count("reviews-train-") == 8
    run = tmp_path / "run"
    kept = checkpoints.newest_sealed(run / "checkpoints")
    assert kept is not None and kept.name == "checkpoint-2"
    state = load_file(kept / "adapter_model.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())
    assert not (run / "training.json").exists()


@pytest.mark.parametrize("task", TASKS)
def test_validation_that_runs_out_of_memory_gives_the_same_loss(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: str,
) -> None:
    def validated(folder: Path) -> float:
        run = training.train(recipe_of(make_recipe, base, task, folder, max_steps=1))
        return float(runs.record_of(run).best_validation_loss)

    from llama_peft.training.tree_trainer import TreeTrainer

    expected = validated(tmp_path / "whole")
    trainer = TreeTrainer if task == "generative_qa" else steady.SteadyTrainer
    right = trainer.compute_loss

    def compute(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not model.training and len(inputs["input_ids"]) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return right(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", compute)
    assert validated(tmp_path / "cut") == pytest.approx(expected, rel=1e-5)
    assert "computed in 2 pieces" in caplog.text


def test_a_loss_that_is_not_a_number_stops_the_run(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    keys = {
        "learning_rate": 1e30,
        "max_steps": 6,
        "output_dir": str(tmp_path / "run"),
        "max_grad_norm": 0.0,
    }
    recipe = make_recipe("classification", make_base(), lora={"r": 4}, train=keys)
    with pytest.raises(UserError, match=r"is (nan|inf)"):
        training.train(recipe)
    assert not (tmp_path / "run/training.json").exists()


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_mixed_precision_as_on_a_gpu_trains_like_float32(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
) -> None:
    """On a base of the same type, with an adapter and a head that stay float32."""

    def trained(dtype: str) -> list[float]:
        keys = {"output_dir": str(tmp_path / dtype), "max_steps": 2}
        recipe = make_recipe(task, base, lora={"r": 4}, train=keys, model={"dtype": dtype})
        run = training.train(recipe)
        kept = weights(run).values()
        assert all(one.dtype == torch.float32 and one.isfinite().all() for one in kept)
        lines = (run / "history.jsonl").read_text("utf-8").splitlines()
        return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]

    expected = trained("float32")
    for dtype in ("bfloat16", "float16"):
        with monkeypatch.context() as patch:
            autocast(patch, dtype)
            assert trained(dtype) == pytest.approx(expected, rel=2e-2)


def overflow(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the gradients of the first steps overflow."""
    right = steady.SteadyTrainer.compute_loss

    def compute(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = right(self, *args, **kwargs)
        if args[0].training and self.state.global_step < steps:
            found.register_hook(lambda gradient: gradient * float("inf"))
        return found

    monkeypatch.setattr(steady.SteadyTrainer, "compute_loss", compute)


def test_the_scale_of_float16_is_resumed_and_an_overflow_is_no_error(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first steps are left out. A newer GPU, which has no scaler, continues the run too."""
    recipe = make_recipe(
        "classification", base, lora={"r": 4}, model={"dtype": "float16"},
        train={"output_dir": str(tmp_path / "run"), "max_steps": 4, "eval_steps": 1, "save_total_limit": 9},
    )  # fmt: skip
    with monkeypatch.context() as patch:
        autocast(patch, "float16", scale=1024.0)
        overflow(patch, steps=2)
        run = training.train(recipe)
        expected, steps = weights(run), run / "checkpoints"
        scales = [torch.load(steps / f"checkpoint-{n}/scaler.pt")["scale"] for n in (1, 2, 3, 4)]
        assert scales == [512.0, 256.0, 256.0, 256.0]
        for name in ("training.json", "checkpoints/checkpoint-3", "checkpoints/checkpoint-4"):
            shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
        shutil.copytree(run, tmp_path / "newer")
        training.train(recipe)
    assert all(torch.equal(weights(run)[name], value) for name, value in expected.items())
    training.train(recipe.with_train({"output_dir": str(tmp_path / "newer")}))
    assert runs.record_of(tmp_path / "newer").resumed_from == "checkpoint-2"


@pytest.mark.parametrize(("steps", "said"), [(2, "all 2 steps overflow"), (5, "step 3: the norm")])
def test_a_scale_that_shrinks_to_nothing_is_an_error(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    said: str,
) -> None:
    autocast(monkeypatch, "float16", scale=4.0)
    overflow(monkeypatch, steps=99)
    recipe = recipe_of(make_recipe, base, "classification", tmp_path / "run", max_steps=steps)
    recipe = recipe.changed(model={"dtype": "float16"})
    for _ in range(2):  # the same command again does not export the untrained weights either
        with pytest.raises(UserError, match=f"{said}.*float16.*set model.dtype: float32"):
            training.train(recipe)
    assert not (tmp_path / "run/training.json").exists()


class Step(NamedTuple):
    """A head before and after one step of plain gradient descent, and what was logged of it."""

    before: torch.Tensor
    after: torch.Tensor
    loss: float
    validation_loss: float


def one_step(
    folder: Path, weights: LossWeights, states: torch.Tensor, labels: torch.Tensor, batch: int
) -> Step:
    """Train a head on all rows in one step, in batches of at most `batch` rows."""
    score = torch.nn.Linear(states.shape[1], 3, bias=False)
    before = score.weight.detach().clone()
    problem = "multi_label_classification" if labels.dim() == 2 else None
    rows = [
        FeatureRow(ids=[str(i)], features=state, labels=labels[i].tolist())
        for i, state in enumerate(states)
    ]
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=1,
        logging_steps=1,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        gradient_accumulation_steps=-(-len(rows) // batch),
        save_strategy="no",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
    )
    trainer = SteadyTrainer(
        model=FeatureHead(score, problem),
        args=arguments,
        data_collator=collate,
        train_dataset=rows,
        eval_dataset=rows[:7],
    )
    trainer.weigh(weights)
    validation_loss = trainer.evaluate()["eval_loss"]
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return Step(before, score.weight.detach(), logged["loss"], validation_loss)


@pytest.mark.parametrize("runs_out", [False, True])
@pytest.mark.parametrize("batch", [11, 4])
@pytest.mark.parametrize("several", [False, True])
def test_a_weighted_step_is_that_of_a_plain_torch_loss_on_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: bool, batch: int, runs_out: bool
) -> None:
    """Loss, gradient and validation loss, also if batches are uneven or computed in pieces."""
    torch.manual_seed(3)
    states = torch.randn(11, 5)
    one_label = torch.tensor([0, 0, 0, 0, 0, 0, 1, 0, 2, 1, 0])
    labels = (torch.rand(11, 3) < 0.3).float() if several else one_label
    weight = torch.tensor([0.25, 3.0, 8.0])
    weights = LossWeights(dict(zip("abc", weight.tolist(), strict=True)), several, labels[:7])
    if runs_out:

        def run_out(trainer: Any, inputs: dict[str, Any]) -> None:
            if len(inputs["features"]) > 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

        hurt(monkeypatch, run_out)
    found = one_step(tmp_path, weights, states, labels, batch)
    loss = (
        torch.nn.BCEWithLogitsLoss(pos_weight=weight)
        if several
        else torch.nn.CrossEntropyLoss(weight=weight)
    )
    twin = found.before.clone().requires_grad_(True)
    expected = loss(states @ twin.T, labels)
    expected.backward()
    assert twin.grad is not None
    torch.testing.assert_close(found.before - found.after, twin.grad, atol=1e-5, rtol=1e-5)
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)
    validated = loss(states[:7] @ found.before.T, labels[:7])
    assert found.validation_loss == pytest.approx(validated.item(), rel=1e-5)


def test_balanced_weights_are_those_of_scikit_learn(
    make_recipe: Callable[..., Recipe],
) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    def of(labels: list[Any], key: str, **dataset: Any) -> dict[str, float]:
        named = {"labels": ["a", "b", "c"], **dataset}
        recipe = make_recipe("classification", "tiny", dataset=named, train={key: "balanced"})
        rows = [{"ids": [], "input_ids": (), "labels": label} for label in labels]
        found = loss_weights(recipe, {"train": rows, "validation": []})  # type: ignore[dict-item]
        assert found is not None
        return found.by_label

    labels = [0, 0, 0, 2, 2, 0, 0]
    theirs = compute_class_weight("balanced", classes=np.array([0, 2]), y=np.array(labels))
    assert of(labels, "class_weights") == pytest.approx({"a": theirs[0], "b": 1.0, "c": theirs[1]})
    sets = [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    found = of(sets, "pos_weight", single_label=False)
    assert found == {"a": 2.0, "b": 1.0, "c": 1.0}
