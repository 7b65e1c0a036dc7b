"""Law 4 for heads: a batch as tree rows gives the loss and the gradients of its padded rows."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from llama_peft.model import heads
from llama_peft.prefix_tree import batch as batches
from llama_peft.prefix_tree.batch import packed, unpacked
from llama_peft.prefix_tree.mask import install
from llama_peft.tasks import TASKS, Task
from llama_peft.tokens.batches import pad
from tests.support.tree_examples import TOLERANCE, VOCABULARY, WINDOW, gradients, tiny_model

KINDS = ("llama-sdpa", "gemma2-eager", "gemma3-sdpa", "gemma3-varlen")
TEXTS = st.lists(
    st.lists(st.integers(1, 3), min_size=1, max_size=9).map(tuple), min_size=1, max_size=9
)


def with_head(kind: str, task: Task, pooling: str) -> torch.nn.Module:
    """Return a tiny model with LoRA and a head that train."""
    attention = kind.split("-")[1]
    config = tiny_model(kind).config
    config.num_labels, config.head_pooling = TASKS[task].outputs(3), pooling
    config.problem_type, config.pad_token_id = TASKS[task].problem_type, 0
    torch.manual_seed(0)
    model = heads.model_class(config, task)._from_config(config, attn_implementation=attention)
    head = str(TASKS[task].head)
    setattr(model, head, heads.as_float32(getattr(model, head)))
    install(model)
    adapter = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        init_lora_weights=False,
        modules_to_save=[head],
        task_type=TASKS[task].peft_task_type,
    )
    return get_peft_model(model, adapter).train()


def drawn_texts(count: int) -> list[list[int]]:
    """Texts of several lengths, longer than the window, that share beginnings; one comes twice."""
    rng = random.Random(0)
    start = [rng.randrange(3, VOCABULARY) for _ in range(WINDOW)]
    texts = [
        start[: rng.randint(1, WINDOW)] + [rng.randrange(3, VOCABULARY) for _ in range(length)]
        for length in (rng.randint(1, 20) for _ in range(count - 1))
    ]
    return [*texts, texts[0]]


def batch_of(task: Task, texts: list[list[int]]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    input_ids, mask = pad(texts, 0)
    batch = {"input_ids": input_ids, "attention_mask": mask}
    if TASKS[task].finds_spans:
        ends = mask.sum(1) - 1
        return batch | {"span_mask": mask, "start_positions": ends // 2, "end_positions": ends}
    drawn = torch.rand(len(texts), 3, generator=generator)
    labels = {"labels": drawn.argmax(1), "label_sets": drawn.round(), "numbers": drawn[:, 0]}
    return batch | {"labels": labels[TASKS[task].side]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("task", "pooling", "checkpointing"),
    [
        ("classification", "last", True),
        ("classification", "mean", False),
        ("multi_label_classification", "last", False),
        ("regression", "mean", False),
        ("extractive_qa", "last", True),
    ],
)
def test_loss_and_gradients_equal_padded_rows(
    kind: str, task: Task, pooling: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one row of several blocks of queries, and in several padded rows."""
    model, texts = with_head(kind, task, pooling), drawn_texts(10)
    batch = batch_of(task, texts)
    plain = model(**batch).loss
    plain.backward()
    expected = gradients(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    for room, rows in ((1024, 1), (40, 4)):
        monkeypatch.setattr(batches, "ROW_TOKENS", room)
        trees = packed(texts, 0)
        assert trees is not None and len(trees["input_ids"]) == rows
        loss = model(**batch, packed=trees).loss
        loss.backward()
        assert abs(loss - plain) < TOLERANCE
        error = (gradients(model) - expected).abs().max() / expected.abs().max()
        print(f"{kind}, {task}, {rows} rows: largest gradient error {error:.1e}")
        assert error < TOLERANCE


@settings(max_examples=30, deadline=None)
@given(TEXTS)
def test_unpacking_gives_the_padded_rows_back(texts: list[tuple[int, ...]]) -> None:
    trees = packed(texts, 0)
    padded, mask = pad(texts, 0)
    if trees is None:
        return
    assert trees["input_ids"].numel() < padded.numel()
    wide = packed(texts, 0, 4)
    assert wide is None or wide["input_ids"].shape[1] % 4 == 0
    found = unpacked(trees["input_ids"][..., None], trees["paths"])[..., 0]
    assert torch.equal(found * mask, padded)


def test_rows_that_share_nothing_and_need_no_padding_stay_as_they_are() -> None:
    assert packed([(1, 2, 3), (4, 5, 6), (7, 8, 9)], 0) is None


def test_rows_of_a_batch_have_about_equal_width() -> None:
    """Forty texts of 40 tokens do not leave a second row nearly empty."""
    texts = [[1, *(100 * number + k for k in range(39))] for number in range(28)]
    texts += [[1, number + 5000] for number in range(8)]
    trees = packed(texts, 0)
    assert trees is not None and trees["input_ids"].shape[0] == 2
    assert trees["attention_mask"].float().mean() > 0.9


@pytest.mark.parametrize("kind", ["llama-sdpa", "gemma3-sdpa"])
def test_padding_on_the_right_needs_no_mask(kind: str) -> None:
    """On a GPU, padded rows under a head run without one."""
    backbone, texts = tiny_model(kind).model, drawn_texts(6)
    input_ids, mask = pad(texts, 0)
    masked, bare = (
        backbone(input_ids=input_ids, attention_mask=given).last_hidden_state[mask.bool()]
        for given in (mask, None)
    )
    assert (masked - bare).abs().max() < TOLERANCE
