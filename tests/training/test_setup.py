"""A mistake that only the libraries notice gives one line, and costs no earlier run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.training import fit as training


@pytest.fixture(scope="module")
def base(make_base: Callable[..., Path]) -> Path:
    return make_base()


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
