"""Law 4: prefix-tree rows give the loss and the gradients of one example a row."""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model

from llama_peft.errors import UserError
from llama_peft.prefix_tree import block_attention
from llama_peft.prefix_tree import pack as prefix_tree
from llama_peft.prefix_tree.pack import (
    IGNORE_INDEX,
    Row,
    answer_logits,
    collate,
    install,
    mask_rule,
    oversized,
    pack,
    packing,
    plain_rows,
    row_masks,
)
from tests.support import forked
from tests.support.paths import ROOT
from tests.support.tree_examples import (
    MODELS,
    WINDOW,
    Example,
    families,
    real_questions,
    tiny_model,
)

ROOM = 64
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _rows_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small rows must not hide in one block of queries."""
    monkeypatch.setattr(block_attention, "QUERIES", 16)


def with_lora(kind: str) -> PeftModel:
    """Random B matrices, so that no gradient is zero for a trivial reason."""
    config = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = get_peft_model(tiny_model(kind), config)
    install(model)
    return model.train()


def gradients(model: torch.nn.Module) -> torch.Tensor:
    grads = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return torch.cat(grads)


def seen_by(row: Row) -> torch.Tensor:
    """The row's mask (Q, K), made in a batch where it is padded by three tokens."""
    width = len(row["input_ids"])
    batch = collate([row, *plain_rows([Example("wider", (0,) * (width + 3))])])
    index = torch.arange(width + 3)
    mask = mask_rule(batch["subtree_end"], batch["position_ids"])(0, 0, index[:, None], index)
    assert torch.equal(mask[width:], torch.eye(width + 3, dtype=torch.bool)[width:])
    assert not mask[:width, width:].any()
    return mask[:width, :width]


def paths(row: Row) -> dict[str, list[int]]:
    """Indices of each example's tokens: what its last token sees, read from the mask alone."""
    mask = seen_by(row)
    ends = [row["subtree_end"][start] - 1 for start in row["starts"]]
    return {
        name: mask[end].nonzero()[:, 0].tolist() for name, end in zip(row["ids"], ends, strict=True)
    }


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple)
answers = st.lists(st.integers(0, 2), min_size=0, max_size=3).map(tuple)
tries = st.lists(st.tuples(tokens, answers), min_size=1, max_size=14).map(
    lambda pairs: [Example(str(i), *pair) for i, pair in enumerate(pairs)]
)


def test_the_row_drawn_in_the_docstring() -> None:
    i, A, q, a, r, b, B, s, c = range(9)
    examples = [Example("1", (i, A, q), (a,)), Example("2", (i, A, r), (b,))]
    [row] = pack([*examples, Example("3", (i, B, s), (c,))], 9)
    assert row["input_ids"] == [i, A, q, a, r, b, B, s, c]
    assert row["position_ids"] == [0, 1, 2, 3, 2, 3, 1, 2, 3]
    assert row["subtree_end"] == [9, 6, 4, 4, 6, 6, 9, 9, 9]
    assert [n for n in row["labels"] if n != IGNORE_INDEX] == [a, b, c]
    lines = [line[46:] for line in str(prefix_tree.__doc__).splitlines()]
    drawn = [line.split()[1:] for line in lines if line[:1] in "iAqarbBsc" and line[3:4] == "x"]
    seen = [["x" if cell else "." for cell in line] for line in seen_by(row).tolist()]
    assert drawn == [line[: index + 1] for index, line in enumerate(seen)]


@settings(max_examples=200, deadline=None)
@given(tries, st.integers(0, 12), st.sampled_from([None, 1, 2]))
def test_unpacking_gives_the_examples_back(
    examples: list[Example], slack: int, max_branches: int | None
) -> None:
    room = max(len(e.prompt + e.completion) for e in examples) + slack
    rows = pack(examples, room, max_branches)
    assert sorted(name for row in rows for name in row["ids"]) == sorted(e.id for e in examples)
    by_id = {e.id: e for e in examples}
    for row in rows:
        assert len(row["input_ids"]) <= room
        for name, path in paths(row).items():
            unpacked = [row["input_ids"][k] for k in path]
            assert unpacked == list(by_id[name].prompt + by_id[name].completion)
            assert [row["position_ids"][k] for k in path] == list(range(len(path)))


@settings(max_examples=200, deadline=None)
@given(tries, st.integers(0, 12))
def test_every_token_sees_exactly_its_ancestors(examples: list[Example], slack: int) -> None:
    room = max(len(e.prompt + e.completion) for e in examples) + slack
    for row in pack(examples, room):
        mask, covered = seen_by(row), set()
        for path in paths(row).values():
            covered.update(path)
            for depth, token in enumerate(path):
                assert mask[token].nonzero()[:, 0].tolist() == path[: depth + 1]
        assert covered == set(range(len(row["input_ids"])))


@settings(max_examples=200, deadline=None)
@given(tries, st.integers(0, 12))
def test_answers_alone_are_labels_and_no_prefix_is_stored_twice(
    examples: list[Example], slack: int
) -> None:
    room = max(len(e.prompt + e.completion) for e in examples) + slack
    by_id = {e.id: e for e in examples}
    for row in pack(examples, room):
        labelled = [k for k, label in enumerate(row["labels"]) if label != IGNORE_INDEX]
        own = {name: path[len(by_id[name].prompt) - 1 :] for name, path in paths(row).items()}
        assert labelled == [k for branch in own.values() for k in branch[1:]]
        assert all(branch == list(range(branch[0], branch[-1] + 1)) for branch in own.values())
        prompts = [by_id[name].prompt for name in row["ids"]]
        shared = {prompt[:n] for prompt in prompts for n in range(1, len(prompt))}
        assert len(row["input_ids"]) == len(shared) + sum(len(b) for b in own.values())


def test_a_cap_holds_in_every_row_and_spreads_families() -> None:
    examples = [e for e in families(12, questions=9) if len(e.prompt) > 11]
    rows = pack(examples, 200, max_branches=2)
    assert sorted(n for row in rows for n in row["ids"]) == sorted(e.id for e in examples)
    by_id = {e.id: e.prompt for e in examples}
    for row in rows:
        paragraphs = [by_id[name][:9] for name in row["ids"]]
        assert max(paragraphs.count(p) for p in paragraphs) <= 2
    assert packing(rows).tokens > packing(pack(examples, 200)).tokens


def test_rows_are_full() -> None:
    """Two rows that fit together are never left apart, whatever they hold."""
    examples = [Example(str(n), (n, n, n), (1,) * (1 + n % 5)) for n in range(3, 40)]
    lengths = sorted(len(row["input_ids"]) for row in pack(examples, 20))
    assert lengths[0] + lengths[1] > 20


def test_an_example_that_fits_no_row_is_named() -> None:
    examples = families(3)
    long = examples[0]._replace(id="the-long-one", completion=(5,) * ROOM)
    assert oversized([*examples, long], ROOM) == ["the-long-one"]
    with pytest.raises(UserError, match=r"1 of \d+ .*64 tokens .*the-long-one"):
        pack([*examples, long], ROOM)
    with pytest.raises(UserError, match="empty prompt: bare"):
        pack([Example("bare", (), (1,))], ROOM)


def test_packing_counts() -> None:
    examples = families(8)
    counts = packing(pack(examples, ROOM))
    assert counts.examples == len(examples)
    assert counts.plain_tokens == sum(len(e.prompt + e.completion) for e in examples)
    assert packing(plain_rows(examples)).tokens == counts.plain_tokens > counts.tokens
    assert f"{counts.examples} examples in {counts.rows} rows" in str(counts)


@settings(max_examples=200, deadline=None)
@given(tries, st.integers(0, 12), st.integers(1, 9))
def test_a_block_gathers_the_keys_that_its_queries_see(
    examples: list[Example], slack: int, queries: int
) -> None:
    room = max(len(e.prompt + e.completion) for e in examples) + slack
    batch = collate(pack(examples, room))
    end, index = batch["subtree_end"], torch.arange(batch["input_ids"].shape[1])
    block_attention.QUERIES = queries  # the fixture puts it back
    for row, blocks in enumerate(block_attention.blocks(end)):
        seen = mask_rule(end, batch["position_ids"])(row, 0, index[:, None], index)
        assert [i for block in blocks for i in range(block.start, block.stop)] == index.tolist()
        for block in blocks:
            assert torch.equal(block.keys, seen[block.start : block.stop].any(0).nonzero()[:, 0])


def test_blocks_leave_most_pairs_of_a_long_row_out() -> None:
    examples = families(30)
    [row] = pack(examples, 10_000)
    width = len(row["input_ids"])
    blocks = block_attention.blocks(torch.tensor([row["subtree_end"]]))[0]
    assert sum((b.stop - b.start) * len(b.keys) for b in blocks) < width * width / 8


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


def stock_backward(model: torch.nn.Module, examples: Sequence[Example]) -> float:
    """One example a row through the model's own loss, with nothing of this package."""
    loss, total = 0.0, sum(len(e.completion) for e in examples)
    for example in examples:
        ids = torch.tensor([[*example.prompt, *example.completion]])
        labels = ids.clone()
        labels[:, : len(example.prompt)] = IGNORE_INDEX
        part = model(input_ids=ids, labels=labels, num_items_in_batch=total, use_cache=False).loss
        part.backward()
        loss += part.item()
    return loss


def tree_backward(model: torch.nn.Module, rows: Sequence[Row], batch_size: int) -> float:
    from llama_peft.training.tree_trainer import answer_loss

    loss, total = 0.0, sum(n != IGNORE_INDEX for row in rows for n in row["labels"])
    for start in range(0, len(rows), batch_size):
        part = answer_loss(model, collate(rows[start : start + batch_size]), total)
        part.backward()
        loss += part.item()
    return loss


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", MODELS)
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


def siblings_seen(end: Any, position: Any, window: int | None = None) -> Any:
    return lambda row, head, q, k: (k <= q) & (q >= k)


def window_in_row_indices(end: Any, position: Any, window: int | None = None) -> Any:
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
    kind: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_peft.training.tree_trainer import check

    model, examples = with_lora(kind), families(6)
    right = check(model, examples, ROOM)
    assert right.tree_loss == pytest.approx(right.plain_loss, abs=TOLERANCE)
    monkeypatch.setattr(prefix_tree, "mask_rule", wrong)
    with pytest.raises(UserError, match="one by one"):
        check(model, examples, ROOM)


def test_the_self_check_refuses_a_model_without_the_hook() -> None:
    from llama_peft.training.tree_trainer import check

    with pytest.raises(UserError, match="one by one"):
        check(tiny_model("llama-sdpa"), families(6), ROOM)


def test_the_self_check_leaves_dropout_as_it_was() -> None:
    from llama_peft.training.tree_trainer import check

    config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny_model("llama-sdpa"), config).train()
    install(model)
    check(model, families(6), ROOM)
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts and all(m.training for m in dropouts)


def test_a_4_bit_model_passes_the_self_check(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from llama_peft.training.tree_trainer import check

    tiny_model("llama-sdpa").save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=quantization, dtype=torch.float32
    )
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")).train()
    install(model)
    losses = check(model, families(6), ROOM)
    assert losses.tree_loss == pytest.approx(losses.plain_loss, abs=1e-4)


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
        assert torch.equal(dense[name], flexible)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention trains on CUDA only")
@pytest.mark.parametrize("kind", ["llama-flex_attention", "gemma2-flex_attention"])
def test_flex_attention_gives_the_same_loss_and_gradients(kind: str) -> None:
    from llama_peft.training.tree_trainer import answer_loss

    eager, flexible = with_lora(kind.split("-")[0] + "-eager"), with_lora(kind).cuda()
    batch = collate(pack(families(6), 128))
    answer_loss(eager, batch).backward()
    answer_loss(flexible, {k: v.cuda() for k, v in batch.items()}).backward()
    expected = gradients(eager)
    error = (gradients(flexible).cpu() - expected).abs().max()
    assert error < 1e-4 * expected.abs().max()


def steps_of_two_rows(steps: int) -> tuple[list[Row], list[Row]]:
    """The same examples as tree rows, two a step, and as plain rows, twelve a step."""
    trees: list[Row] = []
    plain: list[Row] = []
    for step in range(steps):
        pool = families(40, seed=step)
        halves = [[e for e in pool if e.id.startswith(f"{f}-")][:6] for f in range(40)]
        both = [half for half in halves if len(half) == 6][:2]
        trees += [row for half in both for row in pack(half, 200)]
        plain += plain_rows(e for half in both for e in half)
    assert len(trees) == 2 * steps and len(plain) == 12 * steps
    return trees, plain


def stock_collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    batch = collate(rows)
    return {key: batch[key] for key in ("input_ids", "labels", "attention_mask")}


def trainer_arguments(folder: Path, batch_size: int, **more: Any) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        learning_rate=1e-3,
        train_sampling_strategy="sequential",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **more,
    )


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"<{n}>": n for n in range(8)}, unk_token="<0>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<1>", pad_token="<2>", unk_token="<0>"
    )


def train(trainer_class: Any, kind: str, rows: Iterable[Row], arguments: Any, collator: Any) -> Any:
    from datasets import Dataset

    trainer = trainer_class(
        model=with_lora(kind),
        args=arguments,
        train_dataset=Dataset.from_list(list(rows)),
        data_collator=collator,
        processing_class=tokenizer(),
    )
    trainer.train()
    return trainer


def losses(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def trained(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


@pytest.mark.parametrize(
    ("kind", "ours", "checkpointing"),
    [("llama-sdpa", True, True), ("gemma3-sdpa", True, False), ("gemma3-sdpa", False, False)],
    ids=["llama, checkpointing", "gemma3", "gemma3, trl's own loss as on CUDA"],
)
def test_eight_steps_of_the_real_trainer(
    kind: str, ours: bool, checkpointing: bool, tmp_path: Path
) -> None:
    from trl import SFTTrainer

    from llama_peft.training.tree_trainer import TreeTrainer

    trees, plain = steps_of_two_rows(8)
    arguments = trainer_arguments(tmp_path, 1, gradient_checkpointing=checkpointing)
    tree = train(TreeTrainer if ours else SFTTrainer, kind, trees, arguments, collate)
    assert tree.model.is_activation_checkpointing == checkpointing
    arguments = trainer_arguments(tmp_path, 6, gradient_checkpointing=False)
    stock = train(SFTTrainer, kind, plain, arguments, stock_collate)
    assert len(losses(tree)) == len(losses(stock)) == 8
    for name in ("loss", "grad_norm"):
        pairs = zip(losses(tree), losses(stock), strict=True)
        error = max(abs(a[name] - b[name]) for a, b in pairs)
        print(f"{kind}: largest difference of {name} over 8 steps {error:.1e}")
        assert error < TOLERANCE
    assert (trained(tree) - trained(stock)).abs().max() < 1e-4  # Adam divides by small gradients
    if ours:
        held = [entry["tokens_per_step"] for entry in losses(tree)]
        assert held == [len(a["input_ids"]) + len(b["input_ids"]) for a, b in pairwise(trees)]
        assert {entry["examples_per_step"] for entry in losses(tree)} == {12}
    else:
        assert losses(tree)[-1]["num_tokens"] == packing(trees).tokens


def pairwise(rows: list[Row]) -> Iterable[tuple[Row, Row]]:
    return zip(rows[::2], rows[1::2], strict=True)


def start_worker(rank: int, folder: Path) -> subprocess.Popen[bytes]:
    """One of two gloo processes, with what torchrun would set."""
    here = Path(__file__)
    port = folder / "port"
    if rank == 0:
        port.write_text(str(forked.free_port()))
    environment = {
        "PYTHONPATH": os.pathsep.join([str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port.read_text(),
    }
    return subprocess.Popen([sys.executable, str(here), str(folder)], env=os.environ | environment)


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    from llama_peft.training.tree_trainer import TreeTrainer

    trees, _ = steps_of_two_rows(2)
    arguments = trainer_arguments(tmp_path, 1)
    one = train(TreeTrainer, "llama-sdpa", trees, arguments, collate)
    workers = [start_worker(rank, tmp_path) for rank in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    found = torch.load(tmp_path / "weights.pt")
    assert (found["weights"] - trained(one)).abs().max() < TOLERANCE
    for ours, expected in zip(found["losses"], losses(one), strict=True):
        assert ours["tokens_per_step"] == expected["tokens_per_step"]
        for name in ("loss", "grad_norm"):  # Adam would hide a gradient of the wrong scale
            assert ours[name] == pytest.approx(expected[name], abs=TOLERANCE)


def test_real_questions_pass_the_self_check(shared: Path) -> None:
    from transformers import AutoModelForCausalLM

    from llama_peft.training.tree_trainer import check

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
    losses = check(model, examples[:25], 1024)
    assert losses.tree_loss == pytest.approx(losses.plain_loss, abs=TOLERANCE)


def two_process_worker(folder: Path) -> None:
    """Run twice, as torchrun does: one row a process and step where one process accumulates two."""
    from llama_peft.training.tree_trainer import TreeTrainer

    trees, _ = steps_of_two_rows(2)
    arguments = trainer_arguments(folder, 1, ddp_backend="gloo")
    arguments.gradient_accumulation_steps = 1
    trainer = train(TreeTrainer, "llama-sdpa", trees, arguments, collate)
    if trainer.accelerator.is_main_process:
        torch.save({"weights": trained(trainer), "losses": losses(trainer)}, folder / "weights.pt")


if __name__ == "__main__":
    two_process_worker(Path(sys.argv[1]))
