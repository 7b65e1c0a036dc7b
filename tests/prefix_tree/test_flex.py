"""FlexAttention on tree rows: its blocks, its count of compilations, and what follows a failure.

The kernel is compiled by a backend that runs on a CPU, where FlexAttention has no derivative.
"""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from llama_peft.prefix_tree import flex
from llama_peft.prefix_tree.mask import install, mask_rule
from llama_peft.prefix_tree.pack import TreeBatch, collate, pack
from llama_peft.recipe import load_recipe
from llama_peft.system import memory
from llama_peft.training import setup
from tests.support.tree_examples import WINDOW, families, tiny_model

WIDTHS = ((12, 300, 2), (12, 200, 3), (30, 700, 1))
"""How many families of examples, the longest row, and how many rows."""


def trees(number: int, room: int, rows: int) -> TreeBatch:
    return collate(pack(families(number), room)[:rows])


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> flex.Kernel:
    """A kernel of this test alone, compiled to what torch computes on a CPU."""
    made = flex.Kernel("eager")
    monkeypatch.setattr(flex, "kernel", made)
    return made


@pytest.mark.parametrize("window", [None, WINDOW])
def test_its_blocks_and_its_rule_are_those_of_the_dense_mask(window: int | None) -> None:
    batch = trees(*WIDTHS[0])
    end, position = batch["subtree_end"], batch["position_ids"]
    rows, width = end.shape
    rule = mask_rule(end, position, window)

    def in_one_row(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = query // width == key // width
        return same & rule(query // width, head, query % width, key % width)

    count = rows * width
    exact = create_block_mask(in_one_row, 1, 1, count, count, device="cpu")
    found = flex.block_mask(end, position, window)
    index = torch.arange(count)
    zero = torch.zeros((), dtype=torch.long)
    seen = found.mask_mod(zero, zero, index[:, None], index)
    assert torch.equal(seen, in_one_row(zero, zero, index[:, None], index))
    if window is None:
        assert torch.equal(found.to_dense(), exact.to_dense()) and found.sparsity() > 30
    else:  # a window only hides pairs in blocks that are computed
        assert (found.to_dense() >= exact.to_dense()).all()


def test_one_compilation_serves_every_width_row_count_and_window(kernel: flex.Kernel) -> None:
    model, plain = tiny_model("gemma3-sdpa"), tiny_model("gemma3-eager")
    for each in (model, plain):
        install(each)
    with torch.no_grad():
        model.config._attn_implementation = flex.NAME
        flex.AttentionInterface.register(flex.NAME, flex.attention)
        flex.AttentionMaskInterface.register(flex.NAME, flex.sdpa_mask)
        for width in WIDTHS:
            batch = trees(*width)
            given = {key: batch[key] for key in batch if key not in ("ids", "labels")}
            found, expected = model(**given).logits, plain(**given).logits
            assert (found - expected)[batch["attention_mask"].bool()].abs().max() < 1e-4
        assert kernel.compilations == 1 and not kernel.refused
        ids = torch.arange(3, 43)[None]
        assert (model(input_ids=ids).logits - plain(input_ids=ids).logits).abs().max() < 1e-4


@pytest.mark.parametrize("trouble", ["it has no compiler", "it has compiled too often"])
def test_a_kernel_that_does_not_compile_is_replaced_with_one_line(
    kernel: flex.Kernel,
    trouble: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the middle of a batch, too: the first layer finds out."""
    if trouble == "it has no compiler":
        monkeypatch.setattr(kernel, "_backend", "there is no such backend")
    else:
        kernel.compilations = flex.MOST
    model, plain = tiny_model("llama-sdpa"), tiny_model("llama-eager")
    for each in (model, plain):
        install(each)
    model.config._attn_implementation = flex.NAME
    flex.AttentionInterface.register(flex.NAME, flex.attention)
    flex.AttentionMaskInterface.register(flex.NAME, flex.sdpa_mask)
    batch = trees(*WIDTHS[0])
    given = {key: batch[key] for key in batch if key not in ("ids", "labels")}
    with caplog.at_level(logging.WARNING), torch.no_grad():
        found = [model(**given).logits for _ in range(2)]
        expected = plain(**given).logits
    real = batch["attention_mask"].bool()
    assert kernel.refused and all((one - expected)[real].abs().max() < 1e-4 for one in found)
    (line,) = caplog.messages
    assert line.startswith("FlexAttention does not compile here") and "\n" not in line


@pytest.mark.parametrize(
    ("capability", "triton", "attention", "chosen"),
    [
        ((8, 9), True, None, True),
        ((7, 5), True, None, False),
        ((8, 9), False, None, False),
        ((8, 9), True, "sdpa", False),
    ],
)
def test_it_is_the_default_of_tree_rows_where_it_compiles(
    capability: tuple[int, int],
    triton: bool,
    attention: str | None,
    chosen: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU that is not here: the functions that ask for it answer as on that card."""
    used: list[object] = []
    monkeypatch.setattr(flex, "use", lambda config, *_: used.append(config))
    monkeypatch.setattr(memory, "gpu_kind", lambda: "cuda")
    monkeypatch.setattr(memory, "has_triton", lambda: triton)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    settings = ["train.packing=prefix_tree", "quantization.load_in_4bit=false"]
    settings += [f"model.attn_implementation={attention}"] if attention else []
    recipe = load_recipe("tiny-squad", settings)
    base = tiny_model("llama-sdpa")
    setup.trained_module(recipe, base)
    assert bool(used) == chosen


def test_out_of_memory_is_no_failure_of_the_compiler(kernel: flex.Kernel) -> None:
    def runs_out(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    kernel._compiled = runs_out
    query = torch.zeros(1, 1, 128, 8)
    with pytest.raises(torch.OutOfMemoryError):
        kernel(query, query, query, SimpleNamespace(), None)
    assert not kernel.refused
