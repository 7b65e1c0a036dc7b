"""Law 4 in the real trainer: steps on tree rows equal the stock trainer's on plain rows."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from llama_peft.prefix_tree import block_attention
from llama_peft.prefix_tree.loss import answer_loss
from llama_peft.prefix_tree.pack import IGNORE_INDEX, TreeRow, collate, pack, packing
from llama_peft.training.setup import fast_optimizer
from llama_peft.training.tree_trainer import TreeTrainer, fused_answer_loss, has_plain_head
from tests.support.tree_examples import TOLERANCE, families, gradients, plain_rows, with_lora


@pytest.fixture(autouse=True)
def _rows_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small rows must not hide in one block of queries."""
    monkeypatch.setattr(block_attention, "QUERIES", 16)


def steps_of_two_rows(steps: int) -> tuple[list[TreeRow], list[TreeRow]]:
    """Return the same examples as tree rows (two per step) and as plain rows (twelve per step)."""
    trees: list[TreeRow] = []
    plain: list[TreeRow] = []
    for step in range(steps):
        pool = families(40, seed=step)
        halves = [[e for e in pool if e.id.startswith(f"{f}-")][:6] for f in range(40)]
        both = [half for half in halves if len(half) == 6][:2]
        trees += [row for half in both for row in pack(half, 200)]
        plain += plain_rows(e for half in both for e in half)
    assert len(trees) == 2 * steps and len(plain) == 12 * steps
    return trees, plain


def stock_collate(rows: Sequence[TreeRow]) -> dict[str, torch.Tensor]:
    batch = collate(rows)
    return {key: batch[key] for key in ("input_ids", "labels", "attention_mask")}


def trainer_arguments(folder: Path, batch_size: int, **more: object) -> SFTConfig:
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


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"<{n}>": n for n in range(8)}, unk_token="<0>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<1>", pad_token="<2>", unk_token="<0>"
    )


def train(
    trainer_class: type[SFTTrainer],
    kind: str,
    rows: Iterable[TreeRow],
    arguments: SFTConfig,
    collator: Callable[[Sequence[TreeRow]], object],
) -> SFTTrainer:
    trainer = trainer_class(
        model=with_lora(kind),
        args=arguments,
        train_dataset=Dataset.from_list(list(rows)),
        data_collator=collator,
        processing_class=tokenizer(),
    )
    trainer.train()
    return trainer


def losses(trainer: SFTTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def trained(trainer: SFTTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


@pytest.mark.parametrize(
    ("kind", "ours", "checkpointing"),
    [("llama-sdpa", True, True), ("gemma3-sdpa", True, False), ("gemma3-sdpa", False, False)],
    ids=["llama, checkpointing", "gemma3", "gemma3, trl's own loss as on CUDA"],
)
def test_eight_steps_of_the_real_trainer(
    kind: str, ours: bool, checkpointing: bool, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("kind", ["llama-sdpa", "gemma2-eager"])
def test_the_loss_that_trl_computes_on_cuda_is_ours(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head in tiles, on labelled positions only; tiles in torch stand for those in Triton."""
    monkeypatch.setattr("trl.trainer.utils._use_triton", lambda device: True)
    rows = pack(families(6), 100)
    trainer = TreeTrainer(
        model=with_lora(kind), args=trainer_arguments(tmp_path, 1), data_collator=collate,
        train_dataset=Dataset.from_list(list(rows)), processing_class=tokenizer(),
    )  # fmt: skip
    batch = {key: value for key, value in collate(rows[:3]).items() if key != "ids"}
    labelled = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()

    def computed(loss_of: Callable[..., torch.Tensor], items: torch.Tensor | None) -> torch.Tensor:
        """The loss, then all gradients."""
        trainer.model.zero_grad()
        loss = loss_of(trainer.model, dict(batch), False, items)
        loss.backward()
        gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        return torch.cat([loss.detach()[None], *gradients])

    trainer.model.train()
    for items in (None, 2 * labelled):  # a step of two such batches
        ours = computed(trainer.compute_loss, items)
        theirs = computed(super(TreeTrainer, trainer).compute_loss, items)
        assert torch.allclose(theirs[0], ours[0], rtol=1e-6)
        assert (theirs - ours)[1:].norm() < 1e-6 * ours[1:].norm() and ours[1:].norm() > 0


def pairwise(rows: list[TreeRow]) -> Iterable[tuple[TreeRow, TreeRow]]:
    return zip(rows[::2], rows[1::2], strict=True)


def test_the_loss_on_cuda_is_that_on_a_cpu() -> None:
    """The head that trl puts on a model also runs here; its loss looks at no number of the batch."""
    model = with_lora("llama-sdpa")
    batch = dict(collate(pack(families(4), 64)))
    expected = answer_loss(model, batch, 50)
    expected.backward()
    wanted = gradients(model)
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    loss = fused_answer_loss(model, batch, torch.tensor(50))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (gradients(model) - wanted).abs().max() < 1e-5
    assert fused_answer_loss(model, batch).item() == pytest.approx(answer_loss(model, batch).item())


def test_a_head_with_tokens_that_are_trained_beside_it_is_not_for_trl() -> None:
    """It would read only the weights, which lack the bias that it asks for and the trained tokens."""
    assert has_plain_head(with_lora("llama-sdpa"))
    config = LlamaConfig(
        **{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "tie_word_embeddings": True},
    )
    beside = LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3])
    assert not has_plain_head(get_peft_model(LlamaForCausalLM(config), beside))


def test_the_optimizer_is_one_kernel_on_a_gpu() -> None:
    assert fast_optimizer("adamw_torch", "cuda") == "adamw_torch_fused"
    assert fast_optimizer("adamw_torch", "cpu") == "adamw_torch"
    assert fast_optimizer("sgd", "cuda") == "sgd"
