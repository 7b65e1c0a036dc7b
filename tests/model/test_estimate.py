"""The estimate of a run equals what a real model takes."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from llama_peft.__main__ import app
from llama_peft.errors import UserError
from llama_peft.features import states
from llama_peft.model import backbone, counts, room
from llama_peft.model.estimate import LIBRARIES, Batch, Batches, cpu, estimate
from llama_peft.model.estimate import batch as batch_module
from llama_peft.model.estimate import blocks as blocks_module
from llama_peft.model.estimate.blocks import Blocks, Device
from llama_peft.model.estimate.choice import choose
from llama_peft.model.lora import add_lora
from llama_peft.prefix_tree import batch as prefix_tree_batch
from llama_peft.prefix_tree import block_attention, varlen
from llama_peft.prefix_tree.mask import install
from llama_peft.prefix_tree.pack import collate, pack
from llama_peft.recipe import Recipe, dump_recipe, load_recipe
from llama_peft.run_folder.record import read_record
from llama_peft.tokens.prompts import Encoded
from llama_peft.training import fit as training

SHAPE = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 64}
TOKENS = 128
ROW = Batch(1, TOKENS, mask="padding")


def kept(model: Any, **batch: Any) -> int:
    """Return the bytes that autograd keeps of one row, without weights.

    Its last token is padding, so that attention needs a mask, unless another batch is given.
    """
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    held: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # or its place would be given to another
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 300, (1, TOKENS))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    plain = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([1])}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**(batch or plain))
    return sum(held.values())


@pytest.mark.parametrize(
    ("family", "dtype", "lora"),
    [
        ("llama", "float32", {}),
        ("llama", "float32", {"target_modules": ["q_proj", "v_proj"]}),
        ("llama", "float32", {"lora_dropout": 0.1}),
        ("llama", "bfloat16", {}),
        ("llama", "bfloat16", {"modules_to_save": ["norm"]}),
        ("llama", "float32", {"layers_to_transform": [2, 3]}),
        ("llama", "float32", {"layers_to_transform": 3}),
        ("llama", "bfloat16", {"lora_dropout": 0.1}),
        ("gemma", "float32", {}),
        ("gemma2", "float32", {}),
        ("gemma3_text", "float32", {}),
    ],
)
def test_activations_are_what_autograd_keeps(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    family: str,
    dtype: str,
    lora: dict[str, Any],
) -> None:
    base = make_base(family, **SHAPE)
    recipe = make_recipe(
        "classification",
        base,
        bits=4,
        lora={"r": 8, **lora},
        model={"dtype": dtype},
        train={"max_length": TOKENS},
    )
    assert recipe.lora is not None
    model = add_lora(
        backbone.load(recipe, "classification", 2), recipe.lora, "classification", recipe
    )
    config = counts.text_config(json.loads((base / "config.json").read_text()))
    blocks = Blocks(recipe, config, Device("cpu", 4 if dtype == "float32" else 2))
    said = cpu.kept(blocks, ROW, False)
    held = kept(model.train())
    assert abs(said - held) <= 0.06 * held


def test_checkpointing_keeps_the_input_of_each_block(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    keys = {"max_length": TOKENS, "activation_checkpointing": True}
    base = make_base(**SHAPE)
    recipe = make_recipe("classification", base, bits=4, lora={"r": 8}, train=keys)
    assert recipe.lora is not None
    model = add_lora(
        backbone.load(recipe, "classification", 2), recipe.lora, "classification", recipe
    )
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    config = counts.text_config(json.loads((base / "config.json").read_text()))
    blocks = Blocks(recipe, config, Device("cpu", 4))
    held = kept(model.train())
    one_block = TOKENS * sum(blocks.kept(ROW))
    assert abs(cpu.kept(blocks, ROW, False) - one_block - held) <= 0.06 * held


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_a_tree_row_keeps_keys_for_each_block_of_queries(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], family: str
) -> None:
    length = 4 * block_attention.QUERIES
    base = make_base(family, **SHAPE)
    train = {"max_length": length, "packing": "prefix_tree", "per_device_train_batch_size": 1}
    recipe = make_recipe("generative_qa", base, lora={"r": 8}, train=train)
    assert recipe.lora is not None
    model = add_lora(backbone.load(recipe, "generative_qa"), recipe.lora, "generative_qa", recipe)
    install(model)
    [row] = pack([Encoded("1", tuple(range(length - 3)), (5, 6, 7))], length)
    batch = {key: value for key, value in collate([row]).items() if key != "labels"}
    config = counts.text_config(json.loads((base / "config.json").read_text()))
    blocks = Blocks(recipe, config, Device("cpu", 4))
    said = cpu.kept(blocks, Batch(1, length, mask="tree"), False)
    held = kept(model.train(), **batch, use_cache=False, logits_to_keep=1)
    assert held <= said <= 1.1 * held


def test_large_tensors_leave_no_holes_in_the_heap(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    """glibc gives what is larger than 32 MiB pages of its own, and a GPU has no such heap."""
    recipe = make_recipe("classification", make_base(), lora={"r": 4})
    config = counts.text_config(json.loads((make_base() / "config.json").read_text()))
    blocks = Blocks(recipe, config, Device("cpu", 4))
    assert cpu.holes(blocks, ROW, False) == cpu.kept(blocks, ROW, False)
    assert cpu.holes(blocks, Batch(10**9, TOKENS), False) == 0


def test_constants_are_those_of_the_modules_that_need_torch() -> None:
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    assert blocks_module.QUERIES == block_attention.QUERIES
    assert blocks_module.MOST == varlen.MOST
    assert batch_module.ROW_TOKENS == prefix_tree_batch.ROW_TOKENS == states.ROW_TOKENS
    assert batch_module.FEATURE_TEXTS == states.BATCH_SIZE
    tile = utils._CHUNKED_LOGPROB_CHUNK_SIZE, chunked_logprob.TOKEN_CHUNK_SIZE
    assert tile == blocks_module.TILE


def test_gradients_are_copied_while_a_step_is_accumulated(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    config = json.loads((make_base() / "config.json").read_text())
    sizes = [
        {term.name: term.bytes for term in estimate(recipe, config, "float32", "cpu").memory}
        for steps in (1, 2)
        for recipe in [
            make_recipe(
                "classification",
                make_base(),
                lora={"r": 4},
                train={"gradient_accumulation_steps": steps},
            )
        ]
    ]
    assert sizes[1]["gradients"] == 2 * sizes[0]["gradients"]


@pytest.mark.parametrize(
    ("said", "packed", "other"),
    [
        ({}, 2, 2),
        ({"dtype": "float32"}, 4, 4),
        ({"quantization_config": {"quant_method": "fp8"}}, 1.002, 2),
        ({"quantization_config": {"load_in_4bit": True}}, 0.516, 2),
    ],
)
def test_the_download_has_the_size_that_the_config_says(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    said: dict[str, Any],
    packed: float,
    other: int,
) -> None:
    config = json.loads((make_base() / "config.json").read_text())
    config = {key: value for key, value in config.items() if key != "dtype"} | said
    counted = counts.count(config)
    found = estimate(make_recipe("classification", make_base()), config, "bfloat16", "cuda")
    unpacked = counted.base - counted.quantized
    assert found.download == round(packed * counted.quantized) + other * unpacked


CHILD = """
import sys
from llama_peft.recipe import load_recipe
from llama_peft.system.memory import peak_memory
from llama_peft.training.fit import expected, train
recipe = load_recipe(sys.argv[1])
train(recipe)
found = expected(recipe)
print("RESULT", found.memory_total, peak_memory(), found.where)
"""


@pytest.mark.parametrize(
    ("task", "bits", "train"),
    [
        ("generative_qa", 4, {"max_length": 512, "packing": "prefix_tree"}),
    ],
)
def test_a_real_training_takes_no_more_than_is_said(
    big_base: Path,
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    task: str,
    bits: int,
    train: dict[str, Any],
) -> None:
    """One step of a base of 57M parameters on full rows, in a fresh process on the CPU."""
    text = "the film was slow and the sea was grey " * 40
    rows = [("text,label", *[f"{text}{i},{'ab'[i % 2]}" for i in range(40)])]
    rows += [
        (
            "id,question,context,answer,answer_start",
            *[f"{i},who said {i},{i} {text[:400]},film,{len(str(i)) + 5}" for i in range(6)],
        )
    ]
    data = tmp_path / "data.csv"
    data.write_text("\n".join(rows[task == "generative_qa"]))
    keys = {"max_steps": 1, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    keys |= {"output_dir": str(tmp_path / "run"), **train}
    recipe = make_recipe(
        task,
        big_base,
        bits=bits,
        lora={"r": 16},
        train=keys,
        dataset={"path": str(data), "name": None, "parts": {}},
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(file)], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr[-2000:]
    said, peak, where = child.stdout.rsplit("RESULT ", 1)[1].split(maxsplit=2)
    assert int(peak) <= int(said) <= 2 * int(peak)
    assert where.startswith("this machine's CPU in")


@pytest.fixture(scope="module")
def big_base(make_base: Callable[..., Path]) -> Path:
    """A random base of half of the blocks of SmolLM2-135M."""
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 16}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
    return make_base(**shape, **heads, dtype="bfloat16")


@pytest.mark.parametrize("bits", [4, 32])
def test_weights_are_what_the_loaded_base_holds(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], bits: int
) -> None:
    base = make_base(**SHAPE)
    recipe = make_recipe("classification", base, bits=bits)
    found = estimate(recipe, json.loads((base / "config.json").read_text()), "float32", "cpu")
    model = backbone.load(recipe, "classification", 2)
    held = sum(each.nbytes for name, each in model.named_parameters() if "score" not in name)
    # the scales of 4-bit weights are not parameters
    assert held <= found.memory[0].bytes <= (1.04 if bits == 4 else 1) * held


def test_llama_at_its_true_size(shared: Path, make_recipe: Callable[..., Recipe]) -> None:
    """Known from a rehearsal of recipes/squad.yaml: its step keeps 3.534 GB, and holds 4.780 GB at most."""
    train = {
        "max_length": 2048,
        "per_device_train_batch_size": 2,
        "packing": "prefix_tree",
    }
    recipe = make_recipe(
        "generative_qa", shared / "llama-3.2-1b", bits=4, lora={"r": 16}, train=train
    )
    config = json.loads((shared / "llama-3.2-1b/config.json").read_text())
    row = Batch(1, 2048, 221, "tree")
    rows = Batches(train=row, validation=row, smallest=row, source="a rehearsal")
    known = estimate(recipe, config, "bfloat16", "cuda", rows)
    assert known.memory_total - LIBRARIES["cuda"] == pytest.approx(4.780e9, rel=0.003)
    of_kernels = [kept_of(recipe, config, row, kernel) for kernel in (None, "flex", "varlen")]
    dense, flexible, uncounted = of_kernels
    assert uncounted == dense > flexible
    for each in (1, 4, varlen.MOST, varlen.MOST + 1):
        gathered = row._replace(keys=each * row.tokens, sequences=50)
        more = 16 * 2 * 2 * 512 * (gathered.keys - row.tokens) + 8 * gathered.keys
        expected = flexible + more if each <= varlen.MOST else dense
        assert kept_of(recipe, config, gathered, "varlen") == expected
    found = estimate(recipe, config, "bfloat16", "cuda")
    terms = {term.name: term.bytes for term in found.memory}
    assert terms["weights"] == pytest.approx(1.028e9, rel=0.003)
    assert terms["activations"] == pytest.approx(2 * 3.534e9, rel=0.01)
    assert terms["trained weights"] == 4 * 11_272_192
    assert found.download == 2 * 1_235_814_400
    assert found.smallest < found.memory_total - 0.5 * terms["activations"] + 1
    cut = recipe.changed(head={"layer": 8})
    half = estimate(cut, config, "bfloat16", "cuda").memory[0].bytes
    assert half < 0.8 * terms["weights"]


def kept_of(recipe: Recipe, config: dict[str, Any], row: Batch, kernel: Any) -> int:
    """What a step on a GPU keeps, whose tree rows a kernel computes."""
    rows = Batches(train=row, validation=row, smallest=row, source="a test")
    found = estimate(recipe, config, "bfloat16", "cuda", rows, kernel=kernel)
    return next(term.bytes for term in found.memory if term.name == "activations")


Usage = namedtuple("Usage", "total used free")


def test_a_run_that_cannot_fit_is_refused_before_it_starts(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = {"output_dir": str(tmp_path / "run")}
    recipe = make_recipe("classification", make_base(), lora={"r": 4}, train=folder)
    found, full = training.expected(recipe), room.for_machine(recipe)
    assert full is not None and found.least < full.least, "no row is full"
    monkeypatch.setattr(room, "_host_memory", lambda: found.least - 1)
    with pytest.raises(UserError, match=r"at least 0\.\d GB of memory.*activation_checkpointing"):
        training.train(recipe)
    monkeypatch.setattr(room, "_host_memory", lambda: found.memory_total - 1)
    room.check_room(recipe, tmp_path)
    assert "the system may end the process" in caplog.text
    assert "this machine's CPU in float32" in caplog.text
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 0, found.disk_total - 1))
    with pytest.raises(UserError, match=r"checkpoints take .* free: make room"):
        room.check_room(recipe, tmp_path / "run")
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_auto_takes_the_largest_batch_that_fits_and_checkpointing_last(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    auto = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": 6}
    recipe = make_recipe(
        "classification",
        make_base(),
        lora={"r": 4},
        train={**auto, "activation_checkpointing": "auto"},
    )

    def needed(one: Recipe) -> int:
        assert one.train_batch_size * one.train.gradient_accumulation_steps == 6
        return one.train_batch_size * (2 if one.train.activation_checkpointing else 9)

    def found(free: int) -> tuple[int, bool]:
        train = choose(recipe, needed, free).recipe.train
        return train.per_device_train_batch_size, train.activation_checkpointing

    assert [found(free) for free in (70, 40, 11, 9, 1)] == [
        (6, False),
        (3, False),
        (1, False),
        (3, True),
        (1, True),
    ]
    fixed = recipe.with_train({"per_device_train_batch_size": 6, "gradient_accumulation_steps": 1})
    assert choose(fixed, needed, 40).set == {"activation_checkpointing": True}


def test_a_run_keeps_what_was_chosen_for_it(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Less memory is free later: the same command finds the finished run, and its checkpoints."""
    keys = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": 8}
    recipe = make_recipe(
        "classification",
        make_base(),
        lora={"r": 4},
        train={**keys, "output_dir": str(tmp_path / "run")},
    )
    caplog.set_level("INFO")
    folder = training.train(recipe)
    assert "per_device_train_batch_size 8, gradient_accumulation_steps 1 (" in caplog.text
    kept, record = load_recipe(str(folder / "recipe.yaml")), read_record(folder)
    assert (kept.train_batch_size, kept.train.gradient_accumulation_steps) == (8, 1)
    assert record.chosen == {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    monkeypatch.setattr(room, "_host_memory", lambda: 50_000_000)
    training.train(recipe)
    assert "this run is finished" in caplog.text
    (folder / "training.json").unlink()
    monkeypatch.setattr(room, "check_room", lambda *_: None)
    training.train(recipe)
    assert read_record(folder).chosen == record.chosen, "an unfinished run continues as it began"


def test_the_command_explains_each_term() -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["estimate", "tiny-squad", "train.max_length=256"])
    assert result.exit_code == 0, result.output
    for word in (
        "this machine's",
        "heap",
        "weights",
        "packed",
        "activations",
        "2 x 256 tokens",
        "encoded rows",
        "logits",
        "download",
    ):
        assert word in result.output
    found = json.loads(runner.invoke(app, ["estimate", "tiny-squad", "--json"]).output)
    assert found["memory_total"] == sum(found["memory"].values()) >= found["memory_smallest"]
