"""Training end to end on small real models: runs load back, resume and are bit-identical."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.inference import predict
from llama_peft.recipe import GIVEN, Recipe, load_recipe
from llama_peft.training import fit as training
from tests.support import runs

CASES = [
    ("classification", {"r": 4}),
    ("classification", None),
    ("extractive_qa", {"r": 4}),
    ("extractive_qa", None),
    ("generative_qa", {"r": 4}),
]


@pytest.fixture(scope="module")
def run_of(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Recipe, Path]]:
    """Trains each case once in this module, in 4-bit."""
    done: dict[str, tuple[Recipe, Path]] = {}

    def run(task: str, lora: dict[str, Any] | None) -> tuple[Recipe, Path]:
        name = f"{task}-{lora}"
        if name not in done:
            folder = tmp_path_factory.mktemp("runs") / "run"
            recipe = make_recipe(
                task, make_base(), bits=4, lora=lora, train={"output_dir": str(folder)}
            )
            done[name] = recipe, training.train(recipe)
        return done[name]

    return run


def outputs(folder: Path) -> dict[str, Any]:
    run = runs.load(folder)
    dataset = data.load(run.recipe)
    batches = predict.predict(run, dataset.parts["test"])
    return {p.id: p for batch in batches for p in batch}


@pytest.mark.parametrize(("task", "lora"), CASES)
def test_run_folder_is_complete_and_loads_back(
    run_of: Callable[..., tuple[Recipe, Path]], task: str, lora: dict[str, Any] | None
) -> None:
    _, folder = run_of(task, lora)
    names = {path.name for path in folder.iterdir()}
    export = {"adapter"} if lora else {"head.safetensors"}
    assert {
        "recipe.yaml",
        "split.json",
        "history.jsonl",
        "checkpoints",
        "training.json",
    } | export <= names
    facts = runs.record_of(folder)
    assert facts.steps == 2 and facts.examples == {"train": 24, "validation": 8}
    losses = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in losses if "loss" in entry] == [1, 2]
    split = json.loads((folder / "split.json").read_text())
    assert {part: len(ids) for part, ids in split.items()} == {
        "train": 24, "validation": 8, "test": 16,
    }  # fmt: skip
    first, second = outputs(folder), outputs(folder)
    assert first == second and set(first) == set(split["test"])


@pytest.mark.parametrize(("task", "lora"), CASES)
def test_exported_weights_are_those_of_the_best_checkpoint(
    run_of: Callable[..., tuple[Recipe, Path]], task: str, lora: dict[str, Any] | None
) -> None:
    _, folder = run_of(task, lora)
    best = folder / "checkpoints" / f"checkpoint-{runs.record_of(folder).best_step}"
    exported = folder / ("adapter/adapter_model.safetensors" if lora else "head.safetensors")
    saved = best / ("adapter_model.safetensors" if lora else "model.safetensors")
    mine, its = load_file(exported), load_file(saved)
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    assert all(value.dtype == torch.float32 for value in mine.values()), "adapters learn in float32"


def test_finished_run_is_not_trained_again(run_of: Callable[..., tuple[Recipe, Path]]) -> None:
    recipe, folder = run_of(*CASES[0])
    before = (folder / "training.json").stat().st_mtime_ns
    assert training.train(recipe) == folder
    assert (folder / "training.json").stat().st_mtime_ns == before


def test_a_folder_of_another_recipe_is_refused(run_of: Callable[..., tuple[Recipe, Path]]) -> None:
    recipe, folder = run_of(*CASES[0])
    other = recipe.changed(train={"learning_rate": 1.0})
    with pytest.raises(UserError, match=r"another recipe.*learning_rate: 1\.0"):
        training.train(other)
    assert runs.record_of(folder).steps == 2


@pytest.mark.parametrize(("task", "lora"), CASES)
def test_resume_in_a_later_epoch_is_bit_identical(
    run_of: Callable[..., tuple[Recipe, Path]],
    tmp_path: Path,
    task: str,
    lora: dict[str, Any] | None,
) -> None:
    """A run was cut off, and its newest checkpoint is damaged: it ends as one without that.

    The stock samplers would replay the order of the first epoch: some rows twice, others never.
    """
    recipe, _ = run_of(task, lora)

    def seven_steps(folder: Path) -> Recipe:
        keys = {
            "max_steps": 7,
            "eval_steps": 1,
            "output_dir": str(folder),
            "save_total_limit": 9,
            "per_device_train_batch_size": 8,
        }
        return recipe.changed(train=keys)

    whole = training.train(seven_steps(tmp_path / "whole"))
    state = json.loads((whole / "checkpoints/checkpoint-5/trainer_state.json").read_text())
    assert state["epoch"] > 1 and state["epoch"] % 1, "in the middle of a later epoch"
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints/checkpoint-7")
    runs.cut_off(cut)
    damaged = cut / "checkpoints/checkpoint-6/optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-7])
    resumed = training.train(seven_steps(cut))
    assert runs.record_of(resumed).resumed_from == "checkpoint-5"
    shutil.rmtree(cut / "checkpoints/checkpoint-7")
    runs.cut_off(cut)
    again = runs.record_of(training.train(seven_steps(cut)))
    assert again.resumed_at == [5, 6] and again.resumed_from == "checkpoint-6"
    last = "checkpoints/checkpoint-7/" + ("adapter_" if lora else "") + "model.safetensors"
    best = "adapter/adapter_model.safetensors" if lora else "head.safetensors"
    for name in (last, best):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    lines = (cut / "history.jsonl").read_text().splitlines()
    steps = [json.loads(line).get("step") for line in lines]
    assert steps == sorted(steps), "the loss curve holds no step twice over"


@pytest.mark.parametrize("weights", [None, {"positive": 5.0}])
def test_accumulation_does_not_change_the_step(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    weights: dict[str, float] | None,
) -> None:
    """Trap 24: the stock loss of a classification model multiplies the gradient by the accumulation steps."""
    norms = []
    for size, accumulation in ((8, 1), (2, 4)):
        keys = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 1,
            "output_dir": str(tmp_path / str(size)),
            "class_weights": weights,
        }
        parts = {"parts": {"train": 8, "validation": 8, "test": 8}}
        recipe = make_recipe(
            "classification", make_base(), lora={"r": 4}, train=keys, dataset=parts
        )
        folder = training.train(recipe)
        history = (folder / "history.jsonl").read_text().splitlines()
        norms.append(json.loads(history[0])["grad_norm"])
        named = {"negative": 1.0, "positive": 5.0}
        assert runs.record_of(folder).loss_weights == (named if weights else {})
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_tree_rows_and_plain_rows_train_alike(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The same examples in one step give the same loss and gradient, in either kind of row."""
    first = {}
    for packing in ("none", "prefix_tree"):
        keys = {
            "packing": packing, "max_steps": 1, "per_device_train_batch_size": 64,
            "output_dir": str(tmp_path / packing), "max_length": 480,
        }  # fmt: skip
        recipe = make_recipe("generative_qa", make_base(), lora={"r": 4}, train=keys)
        history = (training.train(recipe) / "history.jsonl").read_text().splitlines()
        first[packing] = json.loads(history[0])
    for name in ("loss", "grad_norm"):
        assert first["none"][name] == pytest.approx(first["prefix_tree"][name], rel=1e-4)


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        (
            "classification",
            {"gradient_accumulation_steps": 2, "class_weights": {"positive": 5.0}},
        ),
        ("extractive_qa", {"max_length": 300, "activation_checkpointing": True}),
    ],
)
def test_a_head_trains_alike_on_packed_and_on_padded_batches(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    task: str,
    keys: dict[str, Any],
) -> None:
    """The same examples in every step, so the same losses, step by step and in validation."""
    caplog.set_level("INFO")
    histories = []
    for packing in ("none", "prefix_tree"):
        its = {"packing": packing, "output_dir": str(tmp_path / packing), "max_steps": 4, **keys}
        recipe = make_recipe(task, make_base(), lora={"r": 4}, train=its)
        history = (training.train(recipe) / "history.jsonl").read_text().splitlines()
        histories.append([json.loads(line) for line in history])
    assert "as a tree, and" in caplog.text
    for plain, packed in zip(*histories, strict=True):
        for name in plain.keys() & {"loss", "eval_loss", "grad_norm"}:
            assert packed[name] == pytest.approx(plain[name], abs=1e-5, rel=1e-5)


def test_second_process_on_a_run_folder_is_refused(
    run_of: Callable[..., tuple[Recipe, Path]], tmp_path: Path
) -> None:
    from filelock import FileLock

    recipe, _ = run_of(*CASES[0])
    keys = {"output_dir": str(tmp_path / "held")}
    recipe = recipe.changed(train=keys)
    (tmp_path / "held").mkdir()
    (tmp_path / "held/.holder").write_text("4711")
    with FileLock(tmp_path / "held/.lock"), pytest.raises(UserError, match="process 4711"):
        training.train(recipe)


def test_a_fresh_start_removes_evaluations_of_the_old_weights(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Results of the untouched base stay right; those of the old weights and their report do not."""
    keys = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    run = training.train(make_recipe("classification", "tiny", train=keys))
    left = {"zero-shot/results.json", "tuned/results.json", "comparison.json", "report.html"}
    for name in left:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("")
    training.train(make_recipe("classification", "tiny", train=keys | {"seed": 7}), fresh=True)
    assert {name for name in left if (run / name).exists()} == {"zero-shot/results.json"}


def test_a_mended_recipe_follows_a_first_try_that_trained_nothing(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    keys = {"output_dir": str(tmp_path / "run")}
    with pytest.raises(UserError, match="matches no linear layer"):
        training.train(
            make_recipe("classification", base, lora={"target_modules": ["q_prj"]}, train=keys)
        )
    training.train(
        make_recipe("classification", base, lora={"target_modules": ["q_proj"]}, train=keys)
    )


def test_a_finished_run_outlives_a_change_of_its_data(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "x.csv"
    rows = "".join(f"text number {i},{i % 2}\n" for i in range(40))
    file.write_text("text,label\n" + rows)
    dataset = {"path": str(file), "name": None, "parts": {}}
    keys = {"output_dir": str(tmp_path / "run")}
    recipe = make_recipe("classification", base, lora={"r": 2}, train=keys, dataset=dataset)
    run = training.train(recipe)
    file.write_text("text,label\n" + rows + "one more,1\n")
    training.train(recipe)
    runs.record_of(run)


def test_rows_from_python_train_like_the_same_file(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    import datasets
    import pandas

    rows = [{"text": f"text number {i}", "label": "np"[i % 2]} for i in range(40)]
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"{x['text']},{x['label']}\n" for x in rows))

    def recipe_in(name: str) -> Recipe:
        dataset = {"path": None, "name": None, "parts": {"train": str(file)}}
        keys = {"output_dir": str(tmp_path / name / "run")}
        return make_recipe("classification", base, train=keys, dataset=dataset)

    expected = (training.train(recipe_in("file")) / "head.safetensors").read_bytes()
    kinds = {
        "list": rows, "DataFrame": pandas.DataFrame(rows), "Dataset": datasets.Dataset.from_list(rows),
    }  # fmt: skip
    for name, given in kinds.items():
        recipe = recipe_in(name)
        if name == "list":
            recipe = data.mark_given(recipe, ["train"])
        run = training.train(recipe, given={"train": given})
        assert (run / "head.safetensors").read_bytes() == expected, name
        written = load_recipe(run / "recipe.yaml")
        assert written.dataset.parts.train == GIVEN
        assert training.train(written, given={"train": given}) == run, "it is finished"
        with pytest.raises(
            UserError, match=r"dataset\.parts\.train: its rows were given from Python"
        ):
            training.train(written)
