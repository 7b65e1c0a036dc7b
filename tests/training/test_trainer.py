"""Steps when memory runs out, and when a loss or a gradient is not finite."""

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
from llama_peft.training.features.cache import FeatureHead, FeatureRow, collate
from llama_peft.training.loss_weights import LossWeights, loss_weights
from llama_peft.training.trainer import SteadyTrainer
from tests.support import runs
from tests.support.trainings import hurt, recipe_of, weights

TASKS = ["classification", "extractive_qa", "generative_qa"]


@pytest.fixture(scope="module")
def base(make_base: Callable[..., Path]) -> Path:
    return make_base()


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
        UserError, match=r"step 3: .* is (nan|inf); its batch: reviews-train-"
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
