"""Tree rows as sequences: each query sees its path, and attention is that of the dense mask.

The kernel runs on a GPU only. Its plain twin computes the same sequences on a CPU.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen as of_torch
from transformers import AutoModelForCausalLM

from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.model.preflight import problems, weights_of
from llama_peft.prefix_tree import mask, varlen
from llama_peft.prefix_tree import segments as segments_module
from llama_peft.prefix_tree.loss import answer_loss
from llama_peft.prefix_tree.mask import install, mask_rule
from llama_peft.prefix_tree.pack import TreeBatch, collate, pack
from llama_peft.prefix_tree.segments import Segments, on_device, segments
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.rehearsal.device.kernels import _blocks
from llama_peft.system import memory
from llama_peft.training import rows as training_rows
from llama_peft.training.processes.batch import first_rows, split
from tests.support.tree_examples import (
    TOLERANCE,
    WINDOW,
    Example,
    drawn_examples,
    families,
    lists_of_examples,
    real_questions,
    tiny_model,
)

ASKED = "model.attn_implementation=varlen"


def trees(examples: list[Example], room: int, multiple: int = 1) -> TreeBatch:
    return collate(pack(examples, room), multiple=multiple)


def of(batch: TreeBatch) -> Segments:
    return segments(batch["subtree_end"], batch["attention_mask"])


def test_the_sequences_drawn_in_the_docstring() -> None:
    found = of(trees(drawn_examples(), 9))
    lines = str(segments_module.__doc__).splitlines()
    for word, tokens, starts in (
        ("queries", range(9), found["query_starts"]),
        ("keys", found["keys"].tolist(), found["key_starts"]),
    ):
        (drawn,) = (line.split()[1:] for line in lines if line.split()[:1] == [word])
        assert drawn == ["iAqarbBsc"[k] for k in tokens], word
        assert starts.tolist() == [0, *{"queries": (4, 6, 9), "keys": (4, 8, 12)}[word]]
    assert (found["most_queries"], found["most_keys"]) == (4, 4)


@settings(max_examples=100, deadline=None)
@given(lists_of_examples, st.integers(0, 12), st.sampled_from([1, 16]))
def test_every_query_sees_its_path_and_is_a_query_once(
    examples: list[Example], slack: int, multiple: int
) -> None:
    """By the kernel's rule: the last query of a sequence sees every key, the one before it one less."""
    room = max(len(e.prompt + e.completion) for e in examples) + slack
    batch = trees(examples, room, multiple)
    rows, width = batch["input_ids"].shape
    found, index, asked = of(batch), torch.arange(width), 0
    starts = found["query_starts"].tolist(), found["key_starts"].tolist()
    counts = [found[key].diff() for key in ("query_starts", "key_starts")]  # type: ignore[literal-required]
    assert [int(count.max()) for count in counts] == [found["most_queries"], found["most_keys"]]
    for first, stop, first_key, stop_key in zip(
        starts[0], starts[0][1:], starts[1], starts[1][1:], strict=False
    ):
        keys = found["keys"][first_key:stop_key]
        for query in range(first, stop):
            assert query == asked
            asked += 1
            row, place = divmod(query, width)
            if batch["attention_mask"][row, place]:
                rule = mask_rule(batch["subtree_end"], batch["position_ids"])
                seen = rule(row, 0, place, index).nonzero()[:, 0] + row * width
                assert torch.equal(keys[: len(keys) - (stop - 1 - query)], seen)
    assert asked == rows * width


@settings(max_examples=60, deadline=None)
@given(lists_of_examples, st.integers(0, 9), st.sampled_from([None, 1, 3]))
def test_outputs_and_gradients_are_those_of_the_dense_mask(
    examples: list[Example], slack: int, window: int | None
) -> None:
    """In several rows with padding, with fewer heads of keys than of queries; in float64, where a
    gradient that is zero has less noise."""
    room = max(len(e.prompt + e.completion) for e in examples) + slack
    batch = trees(examples, room, 16)
    rows, width = batch["input_ids"].shape
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.randn(rows, width, heads, 8, generator=generator, dtype=torch.float64)
        .transpose(1, 2)
        .requires_grad_()
        for heads in (4, 2, 2)
    ]
    real = batch["attention_mask"].bool()
    weight = torch.randn(rows, width, 4, 8, generator=generator) * real[..., None, None]
    index = torch.arange(width)
    rule = mask_rule(batch["subtree_end"], batch["position_ids"], window)
    seen = rule(torch.arange(rows)[:, None, None, None], 0, index[:, None], index)
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(*given, attn_mask=seen, scale=0.3, enable_gqa=True).transpose(1, 2)
    found, _ = varlen.attention(
        torch.nn.Module(), *given, None, scaling=0.3, sliding_window=window, segments=of(batch)
    )
    assert found.shape == expected.shape and (found - expected)[real].abs().max() < 1e-12
    slopes = [torch.autograd.grad((out * weight).sum(), given) for out in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        assert (one - other).abs().max() < 1e-12 * max(1.0, float(other.abs().max()))


def test_real_questions_give_the_loss_and_the_gradients_of_the_dense_mask(shared: Path) -> None:
    batch = trees(real_questions(shared, 16), 420)
    assert len(batch["input_ids"]) > 1
    found = []
    for name in (varlen.NAME, "eager"):
        model = AutoModelForCausalLM.from_pretrained(
            shared / "llama-mini", dtype=torch.float32, attn_implementation="eager"
        )
        if name == varlen.NAME:
            varlen.register(model.config)
        install(model)
        answer_loss(model, {**batch, "segments": of(batch)}).backward()
        found.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert (found[0] - found[1]).abs().max() < TOLERANCE * found[1].abs().max()


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("newest", [True, False], ids=["torch 2.12 and newer", "torch 2.11"])
def test_the_kernel_is_asked_for_what_the_twin_computes(
    monkeypatch: pytest.MonkeyPatch, window: int | None, newest: bool
) -> None:
    """By the words of torch's documentation, where a window of (W, 0) has W keys before the query's."""

    def documented(
        query: Tensor, key: Tensor, value: Tensor, starts_q: Tensor, starts_k: Tensor,
        max_q: int, max_k: int, *, return_aux: object = None, scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1), **groups: bool,
    ) -> Tensor:  # fmt: skip
        assert groups == ({"enable_gqa": True} if newest else {})
        assert starts_q.dtype == starts_k.dtype == torch.int32
        left, right = window_size
        outputs = []
        for number in range(len(starts_q) - 1):
            q, k, v = (
                one[starts[number] : starts[number + 1]].transpose(0, 1)
                for one, starts in ((query, starts_q), (key, starts_k), (value, starts_k))
            )
            assert q.shape[1] <= max_q and k.shape[1] <= max_k
            own = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
            index = torch.arange(k.shape[1])
            seen = (index <= own + right) & ((index >= own - left) | (left < 0))
            k, v = (one.repeat_interleave(len(q) // len(k), 0) for one in (k, v))
            scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
            outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
        return torch.cat(outputs)

    def older(
        *given: Any, return_aux: object = None, scale: Any = None, window_size: Any
    ) -> Tensor:
        return documented(*given, scale=scale, window_size=window_size)

    def newer(*given: Any, enable_gqa: bool = False, **named: Any) -> Tensor:
        return documented(*given, enable_gqa=enable_gqa, **named)

    used = newer if newest else older
    monkeypatch.setattr(of_torch, "varlen_attn", used)
    monkeypatch.setattr(varlen, "_GROUPS", varlen._groups(used))
    batch = trees(families(6), 100)
    found, count = of(batch), batch["input_ids"].numel()
    query = torch.randn(count, 4, 8)
    key, value = (torch.randn(len(found["keys"]), 2, 8) for _ in range(2))
    given = query, key, value, found, 0.3, window
    assert (varlen._kernel(*given) - varlen._one_by_one(*given)).abs().max() < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on CUDA only")
@pytest.mark.parametrize("window", [None, WINDOW])
def test_the_kernel_computes_what_the_twin_does(window: int | None) -> None:
    batch = trees(families(6), 100)
    found, count = of(batch), batch["input_ids"].numel()
    leaves = [
        torch.randn(rows, heads, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        for rows, heads in ((count, 4), (len(found["keys"]), 2), (len(found["keys"]), 2))
    ]
    twins = [one.detach().cpu().float().requires_grad_() for one in leaves]
    output = varlen._kernel(*leaves, on_device(found, torch.device("cuda")), 0.3, window)
    expected = varlen._one_by_one(*twins, found, 0.3, window)
    output.sum().backward()
    expected.sum().backward()
    pairs = [(output, expected), *((a.grad, b.grad) for a, b in zip(leaves, twins, strict=True))]
    for one, other in pairs:
        assert one is not None and other is not None
        assert (one.cpu().float() - other).norm() < 0.02 * other.norm()


def test_many_branches_on_a_long_prefix_get_a_mask_and_plain_batches_nothing_new() -> None:
    model, plain = tiny_model("llama-varlen"), tiny_model("llama-sdpa")
    for each in (model, plain):
        install(each)
    long = [Example(str(k), (*range(3, 43), 50 + k), (1,)) for k in range(20)]
    for examples, served in ((long, False), (families(3), True)):
        batch = trees(examples, 200)
        config, tokens = model.config, batch["input_ids"].numel()
        assert varlen.serves(config, of(batch), tokens) == served
        inputs = {key: one for key, one in batch.items() if key != "labels"}
        with torch.no_grad():
            difference = (model(**inputs).logits - plain(**inputs).logits).abs()
        assert difference[batch["attention_mask"].bool()].max() < TOLERANCE
    ids = torch.arange(3, 43)[None]
    assert torch.equal(model(input_ids=ids).logits, tiny_model("llama-sdpa")(input_ids=ids).logits)


def test_a_kernel_that_does_not_run_is_replaced_with_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on a CPU, for which torch has none."""
    config = tiny_model("llama-sdpa").config
    with caplog.at_level(logging.WARNING):
        varlen.use(config, torch.device("cpu"), torch.bfloat16, asked=True)
    (line,) = caplog.messages
    assert line.startswith("varlen attention does not run here (") and "\n" not in line
    assert config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("kind", "dtype", "changes", "said"),
    [
        ("gemma2-eager", torch.bfloat16, {}, "its scores are capped"),
        ("llama-eager", torch.bfloat16, {}, "the library computes its attention by eager"),
        ("llama-sdpa", torch.float32, {}, "it computes in float32"),
        ("llama-sdpa", torch.bfloat16, {"head_dim": 20}, "its heads have 20 numbers"),
        ("llama-sdpa", torch.bfloat16, {"head_dim": 264}, "its heads have 264 numbers"),
        ("gemma3-sdpa", torch.bfloat16, {"attention_dropout": 0.1}, "it drops weights"),
    ],
)
def test_what_the_kernel_cannot_compute_is_refused_in_one_line_or_left_to_sdpa(
    kind: str,
    dtype: torch.dtype,
    changes: dict[str, Any],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tiny_model(kind).config
    config.update(changes)
    before = config._attn_implementation
    with pytest.raises(UserError, match=said):
        varlen.use(config, torch.device("cpu"), dtype, asked=True)
    varlen.use(config, torch.device("cpu"), dtype)
    assert config._attn_implementation == before and not caplog.messages


@pytest.fixture
def new_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int], bool], None]:
    """A GPU that is not here: the functions that ask for it answer as on that card."""

    def appear(capability: tuple[int, int], triton: bool) -> None:
        for module in (memory, backbone):
            monkeypatch.setattr(module, "gpu_kind", lambda: "cuda")
        monkeypatch.setattr(memory, "has_triton", lambda: triton)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return appear


@pytest.mark.parametrize(
    ("capability", "triton", "asked", "chosen"),
    [
        ((8, 9), False, None, "varlen"),
        ((8, 9), False, "varlen", "varlen, asked"),
        ((8, 9), True, "varlen", "varlen, asked"),
        ((8, 9), True, None, "flex varlen"),
        ((8, 9), False, "sdpa", ""),
        ((7, 5), False, None, ""),
        ((7, 5), True, "varlen", ""),
    ],
)
def test_it_is_the_default_where_flex_attention_does_not_compile(
    new_gpu: Callable[[tuple[int, int], bool], None],
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    triton: bool,
    asked: str | None,
    chosen: str,
) -> None:
    """For want of Triton, or because the compiler fails."""
    tried: list[str] = []

    def fails(*_: object) -> bool:
        tried.append("flex")
        return False

    monkeypatch.setattr(mask.flex, "use", fails)
    monkeypatch.setattr(
        mask.varlen, "use", lambda *given: tried.append("varlen, asked" if given[3] else "varlen")
    )
    new_gpu(capability, triton)
    mask.use_kernel(tiny_model("llama-sdpa").config, torch.device("cpu"), torch.bfloat16, asked)
    assert " ".join(tried) == chosen


@pytest.mark.parametrize("name", ["tiny-squad", "tiny-sst2"])
def test_a_batch_brings_its_sequences_and_its_pieces_find_their_own(
    new_gpu: Callable[[tuple[int, int], bool], None], name: str
) -> None:
    settings = ["train.packing=prefix_tree", "quantization.load_in_4bit=false"]
    texts = [(1, 2, 3, number) for number in range(4, 40)]
    rows: Any = (
        pack([Example(str(number), (1, 2, number), (1,)) for number in range(3, 30)], 30)[:2]
        if name == "tiny-squad"
        else [{"ids": [str(text)], "input_ids": text, "labels": 0} for text in texts]
    )
    new_gpu((8, 9), False)

    def tree_of(recipe: Recipe) -> Any:
        batch: Any = training_rows.collator(recipe, 0)(rows)
        if name == "tiny-squad":
            for piece in (*split(batch, 2), first_rows(batch, 1)):
                assert len(piece["input_ids"]) == 1 and "segments" not in piece
        return batch.get("packed", batch)

    trees = tree_of(load_recipe(name, [*settings, "train.use_cpu=false"]))
    assert torch.equal(trees["segments"]["keys"], of(trees)["keys"])
    for others in (["model.attn_implementation=sdpa"], ["train.use_cpu=true"]):
        assert "segments" not in tree_of(load_recipe(name, [*settings, *others]))


def test_what_can_never_run_is_refused_before_a_download(
    new_gpu: Callable[[tuple[int, int], bool], None],
) -> None:
    """A run that was trained with it is used anywhere: only training computes tree rows so."""
    settings = ["train.packing=prefix_tree", "quantization.load_in_4bit=false", ASKED]
    recipe = load_recipe("tiny-squad", settings)
    weights = weights_of(recipe)

    def said(long: bool) -> str:
        return " ".join(problems(recipe, weights, long))

    assert "varlen attention needs a GPU of NVIDIA" in said(True) and "varlen" not in said(False)
    model = backbone.load(recipe, "generative_qa")
    assert model.config._attn_implementation == "sdpa"


def test_the_blocks_of_a_rehearsal_are_those_of_gathered_keys() -> None:
    starts = [torch.tensor(each) for each in ([0, 128, 138, 338], [0, 128, 328, 628])]
    assert _blocks(*starts) == 1 + 2 + (2 + 3)
