"""Law 4: prefix-tree rows give the loss and the gradients of one example per row."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from llama_peft.errors import UserError
from llama_peft.prefix_tree import mask
from llama_peft.prefix_tree.loss import answer_logits, answer_loss, self_check
from llama_peft.prefix_tree.mask import Rule, install, mask_rule
from llama_peft.prefix_tree.pack import IGNORE_INDEX, TreeRow, collate, pack, packing
from tests.support.tree_examples import (
    MODELS,
    ROOM,
    TOLERANCE,
    VARLEN,
    WINDOW,
    Example,
    families,
    gradients,
    paths,
    real_questions,
    tiny_model,
    with_lora,
)


def stock_backward(model: torch.nn.Module, examples: Sequence[Example]) -> float:
    """Return the loss of one example per row through the model's own loss, without this package."""
    loss, total = 0.0, sum(len(e.completion) for e in examples)
    for example in examples:
        ids = torch.tensor([[*example.prompt, *example.completion]])
        labels = ids.clone()
        labels[:, : len(example.prompt)] = IGNORE_INDEX
        part = model(input_ids=ids, labels=labels, num_items_in_batch=total, use_cache=False).loss
        part.backward()
        loss += part.item()
    return loss


def tree_backward(model: torch.nn.Module, rows: Sequence[TreeRow], batch_size: int) -> float:
    loss, total = 0.0, sum(n != IGNORE_INDEX for row in rows for n in row["labels"])
    for start in range(0, len(rows), batch_size):
        part = answer_loss(model, collate(rows[start : start + batch_size]), total)
        part.backward()
        loss += part.item()
    return loss


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", [*MODELS, *VARLEN])
def test_loss_and_gradients_equal_one_example_a_row(kind: str, checkpointing: bool) -> None:
    model, examples = with_lora(kind), families(6)
    if checkpointing:
        model.gradient_checkpointing_enable()
    plain = stock_backward(model, examples)
    expected = gradients(model)
    assert expected.abs().max() > 0.01
    rows = pack(examples, ROOM)
    assert len(rows) > 2 and max(len(row["input_ids"]) for row in rows) > WINDOW
    for batch_size in (1, 3):  # accumulated row by row; padded batches
        tree = tree_backward(model, rows, batch_size)
        error = (gradients(model) - expected).abs().max().item()
        print(f"{kind}: loss {abs(tree - plain):.1e}, largest gradient error {error:.1e}")
        assert abs(tree - plain) < TOLERANCE
        assert error < TOLERANCE


def test_only_answer_positions_are_projected() -> None:
    model = tiny_model("gemma2-eager")  # soft-caps its logits
    install(model)
    batch = collate(pack(families(6), ROOM))
    logits, labels = answer_logits(model, batch)
    full = model(**batch).logits[:, :-1]
    assert len(labels) == (batch["labels"] != IGNORE_INDEX).sum() < batch["labels"].numel() / 3
    assert torch.allclose(logits, full[batch["labels"][:, 1:] != IGNORE_INDEX], atol=1e-6)


def siblings_seen(end: torch.Tensor, position: torch.Tensor, window: int | None = None) -> Rule:
    return lambda row, head, q, k: (k <= q) & (q >= k)


def window_in_row_indices(
    end: torch.Tensor, position: torch.Tensor, window: int | None = None
) -> Rule:
    right = mask_rule(end, position)
    wide = window or 10_000
    return lambda row, head, q, k: right(row, head, q, k) & (q - k < wide)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("llama-sdpa", siblings_seen),
        ("gemma2-eager", siblings_seen),
        ("gemma3-sdpa", window_in_row_indices),
    ],
)
def test_the_self_check_refuses_a_wrong_mask(
    kind: str, wrong: Callable[..., Rule], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, examples = with_lora(kind), families(6)
    right = self_check(model, examples, ROOM)
    assert right.tree == pytest.approx(right.one_by_one, abs=TOLERANCE)
    monkeypatch.setattr(mask, "mask_rule", wrong)
    with pytest.raises(UserError, match="one by one"):
        self_check(model, examples, ROOM)


def test_the_self_check_refuses_a_model_without_the_hook() -> None:
    with pytest.raises(UserError, match="one by one"):
        self_check(tiny_model("llama-sdpa"), families(6), ROOM)


def test_the_self_check_leaves_dropout_as_it_was() -> None:
    config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny_model("llama-sdpa"), config).train()
    install(model)
    self_check(model, families(6), ROOM)
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts and all(m.training for m in dropouts)


def test_a_4_bit_model_passes_the_self_check(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny_model("llama-sdpa").save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=quantization, dtype=torch.float32
    )
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")).train()
    install(model)
    losses = self_check(model, families(6), ROOM)
    assert losses.tree == pytest.approx(losses.one_by_one, abs=1e-4)


def test_real_questions_pass_the_self_check(shared: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(shared / "llama-mini", dtype=torch.float32)
    install(model)
    examples = real_questions(shared, 200)
    rows = pack(examples, 1024)
    assert packing(rows).plain_tokens > 4 * packing(rows).tokens
    by_id = {e.id: e for e in examples}
    for row in rows:
        for name, path in paths(row).items():
            unpacked = tuple(row["input_ids"][k] for k in path)
            assert unpacked == by_id[name].prompt + by_id[name].completion
    losses = self_check(model, examples[:25], 1024)
    assert losses.tree == pytest.approx(losses.one_by_one, abs=TOLERANCE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention trains on CUDA only")
@pytest.mark.parametrize("kind", ["llama-flex_attention", "gemma2-flex_attention"])
def test_flex_attention_gives_the_same_loss_and_gradients(kind: str) -> None:
    eager, flexible = with_lora(kind.split("-")[0] + "-eager"), with_lora(kind).cuda()
    batch = collate(pack(families(6), 128))
    answer_loss(eager, batch).backward()
    answer_loss(flexible, {k: v.cuda() for k, v in batch.items()}).backward()
    expected = gradients(eager)
    error = (gradients(flexible).cpu() - expected).abs().max()
    assert error < 1e-4 * expected.abs().max()
