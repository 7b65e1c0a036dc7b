"""Merged models: checkpoint folders that give the scores of base and adapter, or one line that says
why not.
"""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from llama_peft.errors import UserError
from llama_peft.export.merged import folder as merging
from llama_peft.recipe import Recipe
from llama_peft.run_folder import self_check
from llama_peft.training.fit import train
from tests.support import runs

AUTO = {
    "classification": AutoModelForSequenceClassification,
    "generative_qa": AutoModelForCausalLM,
}
LEARN = {"max_steps": 3, "learning_rate": 0.02, "warmup_steps": 0}


@pytest.mark.parametrize(
    ("task", "family", "bits", "head"),
    [
        ("classification", "llama", 4, {}),
        ("classification", "gemma3_text", 32, {"layer": 1}),
        ("generative_qa", "llama", 4, {}),
    ],
)
def test_transformers_alone_loads_a_merged_folder(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    task: str,
    family: str,
    bits: int,
    head: dict[str, Any],
) -> None:
    base = make_base(family)
    keys = LEARN | {"output_dir": str(tmp_path / "run")}
    run = train(make_recipe(task, base, bits=bits, lora={"r": 4}, head=head, train=keys))
    (tmp_path / "mine").mkdir()
    (tmp_path / ".merged.partial").symlink_to(tmp_path / "mine")
    merging.merge(run, tmp_path / "merged")
    assert not list((tmp_path / "mine").iterdir())
    (tmp_path / ".merged.partial").unlink()
    loaded = runs.load(run, full_precision=True)
    model = AUTO[task].from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    for example, expected in zip(
        self_check.samples(loaded.recipe), self_check.sample_scores(loaded), strict=True
    ):
        ids = self_check.input_ids(loaded.encoder, loaded.recipe, example)
        text = tokenizer.decode(ids)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == list(ids)
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0]
        row = logits if task == "classification" else logits[-1]
        assert row.tolist() == pytest.approx(expected, abs=1e-4)
    if task == "classification":
        assert list(model.config.id2label.values()) == ["negative", "positive"]
        assert not hasattr(model.config, "head_pooling")
    assert not list(tmp_path.glob(".merged*"))


def test_an_adapter_counts_in_a_merged_model(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The merged weights differ from the base's only where the adapter is, not by rounding to 4
    bits.
    """
    base = make_base()
    keys = LEARN | {"output_dir": str(tmp_path / "run")}
    lora = {"r": 4, "target_modules": ["q_proj"]}
    run = train(make_recipe("generative_qa", base, bits=4, lora=lora, train=keys))
    merging.merge(run, tmp_path / "merged")
    before, after = (
        load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged")
    )
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) != ("q_proj" in name), name


def test_what_cannot_be_merged_says_why(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    base = make_base()
    for number, (task, lora, head, why) in enumerate(
        [
            ("classification", None, {}, "nothing to merge"),
            ("extractive_qa", {"r": 2}, {}, "span head"),
            ("classification", {"r": 2}, {"pooling": "mean"}, "mean over all tokens"),
            ("generative_qa", {"r": 2, "lora_bias": True}, {}, "biases"),
        ]
    ):
        keys = {"max_steps": 1, "output_dir": str(tmp_path / str(number))}
        run = train(make_recipe(task, base, lora=lora, head=head, train=keys))
        with pytest.raises(UserError, match=why):
            merging.merge(run, tmp_path / "merged")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for taken in (tmp_path, tmp_path / "dangling"):
        with pytest.raises(UserError, match="exists already"):
            merging.merge(run, taken)


def test_a_merged_model_that_answers_otherwise_is_not_left(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = LEARN | {"output_dir": str(tmp_path / "run")}
    run = train(make_recipe("generative_qa", make_base(), lora={"r": 2}, train=keys))
    write = merging._write

    def late(loaded: Any, folder: Path, dtype: str) -> None:
        write(loaded, folder, dtype)
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken/mine").touch()

    monkeypatch.setattr(merging, "_write", late)
    with pytest.raises(UserError, match=r"taken: this folder cannot be written: .*not empty"):
        merging.merge(run, tmp_path / "taken")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "taken"}
    shutil.rmtree(tmp_path / "taken")

    def torn(loaded: Any, folder: Path, dtype: str) -> None:
        write(loaded, folder, dtype)
        path = folder / "model.safetensors"
        weights = load_file(path)
        weights["model.norm.weight"] *= 1.5
        save_file(weights, path, metadata={"format": "pt"})

    monkeypatch.setattr(merging, "_write", torn)
    with pytest.raises(UserError, match="gives other scores"):
        merging.merge(run, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_full_disk_leaves_nothing_and_says_so(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Files may grow to a limit that the merged weights exceed, as on a disk that is full."""
    keys = LEARN | {"output_dir": str(tmp_path / "run")}
    run = train(make_recipe("generative_qa", make_base(), lora={"r": 2}, train=keys))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
    try:
        with pytest.raises(UserError, match=r"merged: this folder cannot be written: .*make room"):
            merging.merge(run, tmp_path / "merged")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
