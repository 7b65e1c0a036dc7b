"""Law 2, and the mathematics of heads against transformers' own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from llama_peft.model import backbone, heads
from llama_peft.model.lora import add_lora
from llama_peft.recipe import Recipe
from llama_peft.tasks import TASKS, Task

FAMILIES = ["llama", "gemma", "gemma2", "gemma3_text"]


def batch(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(5, vocabulary, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = mask[2, 4:] = 0
    return ids, mask


@pytest.mark.parametrize("family", FAMILIES)
def test_classification_equals_the_stock_model(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], family: str
) -> None:
    """Same weights, same logits and loss as the class that users will load the adapter into."""
    folder = make_base(family)
    ours = backbone.load(make_recipe("classification", folder), "classification", 3)
    stock = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    stock.score.load_state_dict(ours.score.state_dict())
    ids, mask = batch(ours.config.vocab_size)
    ids[mask == 0] = ours.config.pad_token_id
    labels = torch.tensor([0, 2, 1])
    with torch.no_grad():
        found = ours(input_ids=ids, attention_mask=mask, labels=labels)
        wanted = stock(input_ids=ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.loss, wanted.loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("multi_label_classification", [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        ("regression", [0.5, -2.0, 3.0]),
    ],
)
def test_other_problems_have_the_loss_of_the_stock_model(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    task: Task,
    labels: list[object],
) -> None:
    folder, kind = make_base(), TASKS[task]
    ours = backbone.load(make_recipe("classification", folder), task, 3)
    stock = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=kind.outputs(3), problem_type=kind.problem_type
    ).eval()
    stock.score.load_state_dict(ours.score.state_dict())
    ids, mask = batch(ours.config.vocab_size)
    ids[mask == 0] = ours.config.pad_token_id
    with torch.no_grad():
        found = ours(input_ids=ids, attention_mask=mask, labels=torch.tensor(labels))
        wanted = stock(input_ids=ids, attention_mask=mask, labels=torch.tensor(labels))
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.loss, wanted.loss, atol=1e-5, rtol=1e-5)


def test_mean_pooling_leaves_padding_out() -> None:
    hidden = torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    pooled = heads.pool(hidden, mask, "mean")
    torch.testing.assert_close(pooled[0], hidden[0, :3].mean(0))
    torch.testing.assert_close(heads.pool(hidden, mask, "last")[0], hidden[0, 2])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["classification", "extractive_qa"])
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_heads_are_float32_and_never_quantised(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    family: str,
    task: str,
    bits: int,
) -> None:
    if bits == 8 and family != "llama":
        pytest.skip("one 8-bit case a task is enough")
    recipe = make_recipe(task, make_base(family), bits=bits, lora={"r": 4})
    model = backbone.load(recipe, task, num_labels=2)
    name = str(TASKS[task].head)
    for wrapped in (model, add_lora(model, recipe.lora, task, recipe)):
        mine = [p for n, p in wrapped.named_parameters() if name in n and "original" not in n]
        assert mine and all(p.dtype == torch.float32 for p in mine)
    kinds = {type(m).__name__ for m in model.modules() if "Linear" in type(m).__name__}
    assert ({4: "Linear4bit", 8: "Linear8bitLt", 32: "Linear"}[bits]) in kinds
    assert (
        (model.qa_outputs.bias is not None)
        if task == "extractive_qa"
        else (model.score.bias is None)
    )


def test_a_quantised_head_is_refused() -> None:
    from bitsandbytes.nn import Linear4bit

    with pytest.raises(TypeError, match="Linear4bit"):
        heads.as_float32(Linear4bit(64, 32))


def test_head_keeps_its_updates_on_bfloat16_states_and_under_autocast() -> None:
    """Trap: a bfloat16 head loses most small updates, and a float32 head fails on bfloat16 states."""
    head = heads.as_float32(torch.nn.Linear(64, 2, bias=False))
    before = head.weight.detach().clone()
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-5, weight_decay=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(torch.randn(8, 64, dtype=torch.bfloat16))
    assert out.dtype == torch.float32
    out.square().sum().backward()
    optimizer.step()
    assert ((head.weight - before) != 0).all()


def test_span_loss_sees_the_allowed_positions_only() -> None:
    torch.manual_seed(2)
    logits, allowed = torch.randn(2, 6, 2), torch.tensor([[0, 0, 1, 1, 0, 1], [0, 1, 1, 0, 0, 1]])
    starts, ends = torch.tensor([2, 5]), torch.tensor([3, 5])
    loss = heads.span_loss(*heads.span_scores(logits, allowed), starts, ends)
    by_hand = torch.stack(
        [
            F.cross_entropy(logits[i, allowed[i].bool(), side], torch.tensor(index))
            for side, labels in ((0, starts), (1, ends))
            for i, index in enumerate(
                int(allowed[i, :label].sum()) for i, label in enumerate(labels.tolist())
            )
        ]
    ).mean()
    torch.testing.assert_close(loss, by_hand)
    changed = logits.clone()
    changed[allowed == 0] += 100.0
    again = heads.span_loss(*heads.span_scores(changed, allowed), starts, ends)
    torch.testing.assert_close(loss, again)
