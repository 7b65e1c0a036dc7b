"""A training on a GPU that is not here goes through, and what would fail there fails here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from llama_peft.errors import UserError
from llama_peft.prefix_tree.batch import packed
from llama_peft.recipe import load_recipe
from llama_peft.rehearsal import Outcome, Rehearsal, rows
from llama_peft.rehearsal.device import fake_cuda
from llama_peft.rehearsal.device.cards import card_named
from llama_peft.rehearsal.report import text
from llama_peft.training.rows import collator
from tests.rehearsal.__main__ import markdown
from tests.support.paths import ROOT

SHAPE = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4096},
    **{"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "head_dim": 64},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True},
}
"""Of a base, of which there is only this config."""
HALF = "model.dtype=null"
"""As a base of 16 bits, which the demo is too small for."""
PLAIN = "tiny-sst2", HALF, "train.packing=prefix_tree"
COMPILED = *PLAIN, "train.torch_compile=true"
FORMS = (
    ("tiny-squad", "train.activation_checkpointing=true"),
    ("tiny-squad-span", "lora.lora_dropout=0.1"),
    PLAIN,
    COMPILED,
    ("tiny-sst2", HALF, "lora=null", "dataset.name=reviews"),
    (
        "tiny-sst2",
        HALF,
        "train.per_device_train_batch_size=1",
        "train.per_device_eval_batch_size=1",
    ),
)
"""Recipes with settings, of each way to train."""
TWICE = """
import dataclasses, json, os, sys
from pathlib import Path
from llama_peft.rehearsal import Request, child
shim, folder = Path(sys.argv[1]), Path(sys.argv[2])
child.prepare(shim)
settings = ("dataset.parts={train: 60, validation: 10, test: 10}",)
request = Request(recipe="tiny-squad", card="t4", settings=settings)
(folder / "right").mkdir()
right = child.outcome_of(request, folder / "right")
from llama_peft.rehearsal import steps
steps._predict = lambda *_: None  # of the same kind in all forms
forms = []
for number, (name, *settings) in enumerate(json.loads(sys.argv[3])):
    few = "dataset.parts={train: 60, validation: 10, test: 4}"
    request = Request(recipe=name, card="t4", settings=(few, *settings), base=str(folder / "base"))
    (folder / str(number)).mkdir()
    forms.append(child.outcome_of(request, folder / str(number)))
request = Request(recipe="tiny-squad", card="t4", settings=("dataset.parts={train: 60, validation: 10, test: 10}",))
from llama_peft.prefix_tree import mask
rule = mask.mask_rule
mask.mask_rule = lambda ends, positions, window: rule(ends.cpu(), positions, window)  # the planted mistake
(folder / "wrong").mkdir()
wrong = child.outcome_of(request, folder / "wrong")
(folder / "outcomes.json").write_text(json.dumps([dataclasses.asdict(one) for one in (right, wrong, *forms)]))
sys.stdout.flush()
os._exit(0)
"""
"""All rehearsals in one process, because the libraries take seconds to load."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """A rehearsal of the demo on a card without bfloat16, and one with a tensor on the wrong device."""
    folder = tmp_path_factory.mktemp("rehearsals")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    (folder / "base").mkdir()
    (folder / "base/config.json").write_text(json.dumps(SHAPE))
    shim = fake_cuda.compile_shim(folder)
    words = [sys.executable, "-c", TWICE, str(shim), str(folder), json.dumps(FORMS)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (folder / "outcomes.json").is_file(), done.stderr[-3000:]
    found = json.loads((folder / "outcomes.json").read_text())
    return [TypeAdapter(Outcome).validate_python(one) for one in found]


def right(outcomes: list[Outcome]) -> Rehearsal:
    found = outcomes[0].rehearsal
    assert found is not None, outcomes[0].fault
    return found


def test_every_step_of_a_training_is_rehearsed(outcomes: list[Outcome]) -> None:
    found = right(outcomes)
    names = [step.name for step in found.steps]
    assert names == ["typical step", "fullest step", "validation", "prediction"]
    step = found.step("fullest step")
    assert sum(step.memory.values()) == step.peak
    assert step.memory["optimizer"] >= 2 * 0.9 * step.memory["trained weights"], (
        "Adam has two moments"
    )
    assert step.kept > 0 and sum(step.kernels.values()) > 500 and sum(step.flop.values()) > 1e9
    assert found.step("validation").peak < step.peak


def test_it_says_where_the_cpu_waits_for_the_gpu(outcomes: list[Outcome]) -> None:
    places = {site.where for site in right(outcomes).step("fullest step").syncs}
    assert any("llama_peft/training/" in place for place in places)
    assert not any("rehearsal/" in place for place in places)


@pytest.mark.parametrize("number", range(len(FORMS)), ids=map(" ".join, FORMS))
def test_the_estimate_is_what_a_rehearsal_holds(outcomes: list[Outcome], number: int) -> None:
    found = outcomes[2 + number].rehearsal
    assert found is not None, outcomes[2 + number].fault
    said = sum(found.estimated.values())
    assert 0.98 * found.training_peak <= said <= 1.1 * found.training_peak, found.estimated


def test_compiled_blocks_run_what_the_compiler_fused(outcomes: list[Outcome]) -> None:
    """The same products by libraries, and few kernels between them; every form has as many blocks."""
    plain, compiled = (
        outcomes[2 + number].rehearsal
        for number, form in enumerate(FORMS)
        if form in (PLAIN, COMPILED)
    )
    assert plain is not None and compiled is not None, outcomes
    before, after = (one.step("fullest step") for one in (plain, compiled))
    assert sum(after.kernels.values()) < 0.7 * sum(before.kernels.values())
    fused = [name for name in after.kernels if name.startswith("triton::")]
    assert any("silu" in name for name in fused) and "aten::silu" not in after.kernels
    assert after.kernels["bitsandbytes::gemm_4bit"] == before.kernels["bitsandbytes::gemm_4bit"]
    assert after.flop == before.flop and after.peak < before.peak


def test_no_step_multiplies_whole_matrices_on_an_old_gpu(outcomes: list[Outcome]) -> None:
    """A batch without padding, as of one row, would: torch drops a mask that hides nothing."""
    for outcome in outcomes[2:]:
        assert outcome.rehearsal is not None, outcome.fault
        used = {kernel for step in outcome.rehearsal.steps for kernel in step.attention}
        assert used <= {"memory-efficient"}, outcome.rehearsal.settings


def test_its_words_and_its_table(outcomes: list[Outcome]) -> None:
    found = right(outcomes)
    assert text(found)[0].startswith("tiny-squad on T4")
    assert "this fits into" in text(found)[-1]
    row = markdown([found], ["t4", "4090"])[-1].split(" | ")
    assert row[-2] == "yes" and row[-1] == "- |", "a card with bfloat16 runs other kernels"


def test_a_tensor_on_the_wrong_device_fails_in_one_line(outcomes: list[Outcome]) -> None:
    fault = outcomes[1].fault
    assert fault is not None and outcomes[1].rehearsal is None
    assert "on the same device" in fault.message
    assert fault.where.startswith("llama_peft/prefix_tree/") and "\n" not in str(fault)


@pytest.mark.parametrize("name", ["sst2", "squad", "squad-span", "go-emotions", "stsb"])
def test_invented_rows_are_those_of_the_recipe(name: str) -> None:
    """They stand in for data that are not here, also where a batch is computed as trees: none shares a beginning."""
    recipe = load_recipe(name, ["dataset.labels=[a,b]"] if name == "go-emotions" else [])
    made = rows.synthetic(recipe)[:3]
    batch = collator(recipe, 0)(made)
    wide = "labels" in batch and batch["labels"].dim() == 2
    assert wide == (name in ("squad", "go-emotions"))
    trees = packed([row["input_ids"] for row in made], 0)
    assert trees is None or not recipe.packs_batches


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match="no compiler here: install") as caught:
        fake_cuda.compile_shim(tmp_path)
    assert len(caught.value.args) == 1


def test_with_a_build_for_gpus_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version.py").write_text("cuda, hip, xpu = '12.8', None, None\n")
    monkeypatch.setattr(fake_cuda, "_torch_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="CPU build of torch") as caught:
        fake_cuda.compile_shim(tmp_path)
    assert len(caught.value.args) == 1


def test_cards_by_name() -> None:
    assert card_named("RTX-4090") == card_named("4090")
    assert not card_named("t4").has_bfloat16 and card_named("l4").has_bfloat16
    with pytest.raises(UserError, match="choose one of"):
        card_named("9999")
