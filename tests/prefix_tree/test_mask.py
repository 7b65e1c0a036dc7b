"""The mask: every token sees exactly its ancestors, on each attention backend and layer type."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_peft.errors import UserError
from llama_peft.prefix_tree import block_attention, mask
from llama_peft.prefix_tree.mask import install, mask_rule, row_masks
from llama_peft.prefix_tree.pack import collate, pack
from tests.support.tree_examples import (
    ROOM,
    WINDOW,
    Example,
    drawn_examples,
    families,
    lists_of_examples,
    paths,
    seen_by,
    tiny_model,
)


def test_the_mask_drawn_in_the_docstring() -> None:
    [row] = pack(drawn_examples(), 9)
    lines = [line.removeprefix("    query").split() for line in str(mask.__doc__).splitlines()]
    drawn = {words[0]: words[1:] for words in lines if words and set(words[1:]) & {"x"}}
    assert list(drawn) == list("iAqarbBsc")
    seen = [["x" if cell else "." for cell in line] for line in seen_by(row).tolist()]
    assert list(drawn.values()) == [line[: index + 1] for index, line in enumerate(seen)]
    [end] = [line.split()[1:] for line in str(mask.__doc__).splitlines() if "end[k]   " in line]
    assert end == [str(index) for index in row["subtree_end"]]


@settings(max_examples=200, deadline=None)
@given(lists_of_examples, st.integers(0, 12))
def test_every_token_sees_exactly_its_ancestors(examples: list[Example], slack: int) -> None:
    room = max(len(e.prompt + e.completion) for e in examples) + slack
    for row in pack(examples, room):
        mask, covered = seen_by(row), set()
        for path in paths(row).values():
            covered.update(path)
            for depth, token in enumerate(path):
                assert mask[token].nonzero()[:, 0].tolist() == path[: depth + 1]
        assert covered == set(range(len(row["input_ids"])))


def test_other_batches_are_computed_as_before() -> None:
    model = tiny_model("gemma3-sdpa")
    ids = torch.randint(3, 90, (3, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 30:] = mask[2, 9:] = 0
    before = model(input_ids=ids, attention_mask=mask).logits
    install(model)
    tree = model(**collate(pack(families(6), ROOM))).logits
    assert model.config._attn_implementation == block_attention.NAME and tree.isfinite().all()
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)


def test_an_attention_backend_without_masks_is_refused() -> None:
    model = tiny_model("llama-sdpa")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="flash_attention_2"):
        install(model)


def test_the_block_mask_rule_is_the_dense_mask() -> None:
    """FlexAttention evaluates the same rule index by index; it has no backward on CPU."""
    from torch.nn.attention.flex_attention import create_mask

    batch = collate(pack(families(6), ROOM))
    end, position = batch["subtree_end"], batch["position_ids"]
    config = tiny_model("gemma3-sdpa").config
    dense = row_masks(config, end, position, torch.float32)
    for name, window in (("full_attention", None), ("sliding_attention", WINDOW)):
        rule = mask_rule(end, position, window)
        flexible = create_mask(rule, len(end), 1, end.shape[1], end.shape[1], device="cpu")
        assert torch.equal(dense[name] == 0, flexible)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_what_the_dense_mask_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is written in torch, and not compiled for a GPU; on a row of several of its blocks."""
    from torch.nn.attention import flex_attention as of_torch
    from transformers.integrations import flex_attention as library

    eager = of_torch.flex_attention
    monkeypatch.setattr(library, "WrappedFlexAttention", lambda training: lambda: eager)
    monkeypatch.setattr(of_torch, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    batch = collate(pack(families(12), 300)[:1])
    assert batch["input_ids"].shape[1] > 2 * 128
    states = []
    for attention in ("flex_attention", "eager"):
        model = tiny_model(f"gemma3-{attention}")
        install(model)
        inputs = {key: value for key, value in batch.items() if key not in ("ids", "labels")}
        with torch.no_grad():
            states.append(model(**inputs, use_cache=False).logits)
    real = batch["attention_mask"].bool()
    assert (states[0] - states[1])[real].abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sdpa_gets_the_numbers_that_it_would_make_of_booleans(dtype: torch.dtype) -> None:
    """So it gives the same bits, and need not make them in every layer."""
    config = tiny_model("llama-sdpa").config
    batch = collate(pack(families(2), ROOM), multiple=16)
    width = batch["input_ids"].shape[1]
    index = torch.arange(width)
    row = torch.arange(len(batch["input_ids"]))[:, None, None, None]
    seen = mask_rule(batch["subtree_end"], batch["position_ids"])(row, 0, index[:, None], index)
    added = row_masks(config, batch["subtree_end"], batch["position_ids"], dtype)
    assert added.dtype == dtype and width % 16 == 0
    torch.manual_seed(0)
    query, key, value = torch.randn(3, len(row), 2, width, 8).to(dtype)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert torch.equal(attend(query, key, value, added), attend(query, key, value, seen))
