"""A mistake that only the libraries notice gives one line, and costs no earlier run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.inference.ask import load_run
from llama_peft.recipe import Recipe
from llama_peft.training import fit as training
from llama_peft.training import setup

MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    (
        "lora",
        {"modules_to_save": ["nonsense"]},
        "lora.modules_to_save: this model has no module 'nonsense'",
    ),
    (
        "lora",
        {"exclude_modules": ["nonsense"]},
        "lora.exclude_modules: this model has no module 'nonsense'",
    ),
    ("lora", {"rank_pattern": {"nonsense": 3}}, "lora.rank_pattern: 'nonsense' matches no module"),
    ("lora", {"layers_to_transform": [0, 99]}, "lora.layers_to_transform: there is no block 99"),
    ("lora", {"trainable_token_indices": [999_999]}, "lora: PEFT cannot put this on the base"),
    ("train", {"report_to": ["tensorboard"]}, "train: .*[tT]ensorboard"),
    ("train", {"lr_scheduler_kwargs": {"foo": 1}}, "train.lr_scheduler_type.*foo"),
    ("model", {"attn_implementation": "flex_attention"}, "flex_attention needs CUDA"),
]


@pytest.mark.parametrize(("section", "keys", "said"), MISTAKES, ids=[m[2][:28] for m in MISTAKES])
def test_what_only_the_libraries_know_is_one_line_and_costs_no_earlier_run(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    section: str,
    keys: dict[str, Any],
    said: str,
) -> None:
    sections: dict[str, Any] = {"lora": {"r": 2}, "train": {"output_dir": str(tmp_path / "run")}}
    run = training.train(make_recipe("classification", base, **sections))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    sections[section] = {**sections.get(section, {}), **keys}
    with pytest.raises(UserError, match=said):
        training.train(make_recipe("classification", base, **sections), fresh=True)
    assert {
        p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"
    } == before
    training.train(make_recipe("classification", base, lora={"r": 4}, train=sections["train"] | {
        "report_to": [], "optim": "adamw_torch", "lr_scheduler_kwargs": {}}), fresh=True)  # fmt: skip
    assert not (run / ".previous").exists()


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_one_process_trains_on_one_gpu_of_several(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
) -> None:
    """Trainer counts the GPUs that it sees, multiplies the batch by them, and copies the model."""
    arguments = setup.training_arguments
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(setup, "training_arguments", lambda *given: {**arguments(*given), "use_cpu": False})  # fmt: skip
    lora = {"r": 2} if task == "generative_qa" else None  # and a head alone
    head = {"features": "none"}
    keys = {"output_dir": str(tmp_path), "per_device_train_batch_size": 4}
    recipe = make_recipe(task, base, lora=lora, head=head, train=keys)
    dataset = data.load(recipe)
    loaded = setup.load(recipe, setup.encode(recipe, dataset), dataset, tmp_path)
    attached = setup.attach(loaded, tmp_path)
    rows = attached.rows["train"], attached.rows["validation"]
    trainer = setup.build_trainer(
        recipe, attached.model, loaded.encoder, *rows, attached.collate, tmp_path
    )
    seen = [trainer.args.n_gpu, trainer.args.train_batch_size, trainer._train_batch_size]
    assert seen == [1, 4, 4] and trainer.args.parallel_mode.value == "not_parallel"


@pytest.mark.parametrize("task", ["classification", "extractive_qa"])
def test_activation_checkpointing_of_a_head_alone_is_nothing(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, task: str
) -> None:
    keys = {
        "output_dir": str(tmp_path / "run"),
        "activation_checkpointing": True,
        "max_length": 300,
    }
    training.train(make_recipe(task, base, train=keys))


@pytest.mark.parametrize("task", ["classification", "extractive_qa", "generative_qa"])
@pytest.mark.parametrize("packing", ["none", "prefix_tree"])
def test_rows_beyond_the_base_s_positions_are_refused_before_it_is_loaded(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    task: str,
    packing: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A limit that no row reaches is a warning; texts to predict are then cut to the positions."""
    keys = {"max_length": 2000, "packing": packing, "max_steps": 1}

    def recipe(positions: int, name: str) -> Recipe:
        out = keys | {"output_dir": str(tmp_path / name)}
        base = make_base(max_position_embeddings=positions)
        return make_recipe(task, base, lora={"r": 2}, train=out, eval={"max_new_tokens": 4})

    with pytest.raises(
        UserError, match=r"^train: .* rows are longer than the 16 positions of .*16"
    ):
        training.train(recipe(16, "short"))
    run = training.train(recipe(1024, "long"))
    said = [one.getMessage() for one in caplog.records if "2000" in one.getMessage()]
    assert len(said) == 1 and "more than the 1024 positions" in said[0]
    if task == "classification":
        loaded = load_run(run)
        assert loaded.predict(["long " * 1200, "A fine film."])
        assert "1 of 2 texts are cut to the model's 1024 positions" in caplog.text
