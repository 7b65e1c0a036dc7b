"""One epoch of LoRA training: the stock SFTTrainer as users have it, and prefix-tree rows.

Same model, same examples, same optimizer; batches differ, and so does the number of optimizer
steps: 8 examples a step in the stock trainer, in ours as many as a row holds (the results say). All
run without activation checkpointing, which SFTConfig has on by default and which would slow each by
the same factor. Preparing data (tokenizing there, packing here) and building the trainer are off the
clock.

Before anything is timed, every contestant's own batches and loss function give the summed loss of the
same few examples and its LoRA gradients; they must agree with one example a row through the bare
model. A contestant of the stock trainer that fails is listed as wrong and not timed.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from torch import Tensor
from transformers import PrinterCallback
from transformers.utils import is_flash_attn_2_available
from trl import SFTConfig, SFTTrainer

from llama_peft.data import QuestionExample
from llama_peft.prefix_tree import pack as prefix_tree
from llama_peft.prefix_tree import varlen
from llama_peft.prefix_tree.loss import answer_loss
from llama_peft.system.memory import tree_kernel
from llama_peft.tokens.prompts import Encoded, answer_text
from llama_peft.training.rows import tree_batch, width_multiple
from llama_peft.training.tree_trainer import TreeTrainer

from . import measure
from .material import Base, Questions, by_paragraph, encoded, precision
from .measure import Contestant, Prepared

# Longer rows repeat less of what is shared; beyond these they gained nothing more.
ROW_TOKENS = {"cpu": 1024, "cuda": 2048}
STOCK_BATCH = 8
"""The default of the stock trainer."""
RIVALS = {
    "train_vs_stock_default": "stock_default",
    "train_vs_length_grouped": "stock_length_grouped",
    "train_vs_stock_packed": "stock_packed",
    "train_vs_packed_flash": "stock_packed_flash",
    "train_vs_padding_free_flash": "stock_padding_free_flash",
}
STOCK: dict[str, dict[str, Any]] = {
    "stock_default": {},
    "stock_length_grouped": {"train_sampling_strategy": "group_by_length"},
    # Its collator makes one row of a batch, so that attention is quadratic in the batch: 1 is best.
    "stock_packed": {"packing": True, "per_device_train_batch_size": 1},
}
FLASH: dict[str, dict[str, Any]] = {
    "stock_packed_flash": {"packing": True},
    "stock_padding_free_flash": {"padding_free": True},
}
"""What FlashAttention adds to a GPU: a batch as one row, where no example sees another one."""


class Total(NamedTuple):
    """Summed loss of the labels, how many, and the gradients of all LoRA weights in one vector."""

    loss: float
    labels: int
    gradient: Tensor


def run(base: Base, questions: Questions, repeats: int, row_tokens: int | None) -> dict[str, Any]:
    """Check, measure, and return the result."""
    *_, found = turns(base, questions, repeats, row_tokens)
    return found


def turns(
    base: Base, questions: Questions, repeats: int, row_tokens: int | None
) -> Iterator[dict[str, Any]]:
    """Check, and yield the result so far after each sample."""
    datasets.disable_progress_bars()
    examples = questions.examples
    lengths = [len(e.prompt) + len(e.completion) for e in encoded(base.encoder, examples)]
    row_tokens = max(
        row_tokens or ROW_TOKENS["cuda" if torch.cuda.is_available() else "cpu"], *lengths
    )
    makers = trainers(base, max(1024, *lengths), row_tokens)
    checks = compare(base, makers, few(examples))
    contestants = [
        Contestant(name=name, prepare=preparation(make, examples), once=name == "stock_packed")
        for name, make in makers.items()
        if checks[name]["right"]
    ]
    facts = {
        **questions.facts(),
        **base.facts(),
        "stock_batch_size": STOCK_BATCH,
        "row_tokens": row_tokens,
        "rows_hold": str(prefix_tree.packing(_tree_rows(base, examples, row_tokens))),
        "activation_checkpointing": False,
        "checks": checks,
    }
    for measured in measure.turns(contestants, repeats):
        trees = [name for name in measured if name.startswith("tree") and measured[name].samples]
        ours = min(trees, key=lambda name: measured[name].median, default=None)
        ratios = measure.ratios(measured, ours, RIVALS) if ours else {}
        rows = measure.rows(measured, len(examples), lambda state: int(state.global_step))
        yield measure.result("training", rows, ratios, ours=ours, **facts)


def few(examples: Sequence[QuestionExample]) -> list[QuestionExample]:
    """Two questions of each of two paragraphs: a tree with branches at two depths."""
    return [e for paragraph in by_paragraph(examples)[:2] for e in paragraph[:2]]


Maker = Callable[[Sequence[QuestionExample], Path], SFTTrainer]


def trainers(base: Base, max_length: int, row_tokens: int) -> dict[str, Maker]:
    """Every contestant's name and how its trainer is built."""

    def stock(changes: dict[str, Any], attention: str | None = None) -> Maker:
        def make(examples: Sequence[QuestionExample], folder: Path) -> SFTTrainer:
            model = perturbed(base.adapted())
            if attention is not None:
                model.get_base_model().set_attn_implementation(attention)
            given = arguments(folder, max_length=max_length, **changes)
            return SFTTrainer(
                model=model,
                args=given,
                train_dataset=as_text(base, examples),
                processing_class=base.encoder.tokenizer,
            )

        return make

    def tree(attention: str | None) -> Maker:
        def make(examples: Sequence[QuestionExample], folder: Path) -> SFTTrainer:
            return _ours(base, examples, row_tokens, attention, folder)

        return make

    makers = {name: stock(changes) for name, changes in STOCK.items()} | {"tree": tree(None)}
    if torch.cuda.is_available():
        makers["tree_flex"] = tree("flex_attention")
        if tree_kernel() is not None:
            makers["tree_varlen"] = tree(varlen.NAME)
        if is_flash_attn_2_available():
            flash = "flash_attention_2"
            makers |= {name: stock(changes, flash) for name, changes in FLASH.items()}
    return makers


def as_text(base: Base, examples: Sequence[QuestionExample]) -> datasets.Dataset:
    """Prompts and completions as text: the stock trainer encodes, batches and masks them itself."""
    texts = base.encoder.prompt
    return datasets.Dataset.from_list(
        [
            {
                "prompt": texts.instruction
                + texts.context.format(context=example.context)
                + texts.question.format(question=example.question),
                "completion": " " + answer_text(example, texts.no_answer),
            }
            for example in examples
        ]
    )


def _ours(
    base: Base,
    examples: Sequence[QuestionExample],
    row_tokens: int,
    attention: str | None,
    folder: Path,
) -> TreeTrainer:
    pad_id = base.encoder.tokenizer.pad_token_id
    multiple = width_multiple(base.recipe(attention))
    rows = _tree_rows(base, examples, row_tokens)
    trainer = TreeTrainer(
        model=perturbed(base.adapted(attention)),
        args=arguments(
            folder,
            max_length=row_tokens,
            per_device_train_batch_size=1,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        data_collator=partial(
            tree_batch, pad_token_id=pad_id, multiple=multiple, cut=attention == varlen.NAME
        ),
        train_dataset=datasets.Dataset.from_list([dict(row) for row in rows]),
        processing_class=base.encoder.tokenizer,
    )
    for parameter in trainer.model.parameters():
        # SFTTrainer has just cast the adapter of a 4-bit base to bfloat16; ours trains in float32.
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _tree_rows(
    base: Base, examples: Sequence[QuestionExample], row_tokens: int
) -> list[prefix_tree.TreeRow]:
    return prefix_tree.pack(encoded(base.encoder, examples), row_tokens)


def arguments(folder: Path, **changes: Any) -> SFTConfig:
    """The library's defaults, but for what would write, print, or compute the forward pass twice."""
    cuda = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        use_cpu=not cuda,
        bf16=cuda and precision() == "bfloat16",
        fp16=cuda and precision() == "float16",
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **changes,
    )


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """LoRA's second matrix starts at zero, which would hide every gradient of the first."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(parameter.shape, generator=generator) * 0.01
            parameter.data = noise.to(parameter.device, parameter.dtype)
    return model


def preparation(make: Maker, examples: Sequence[QuestionExample]) -> Callable[[], Prepared]:
    """What builds a trainer of these examples outside the clock."""

    def prepare() -> Prepared:
        folder = tempfile.TemporaryDirectory()
        trainer = make(examples, Path(folder.name))
        trainer.remove_callback(PrinterCallback)

        def train() -> Any:
            with folder:
                trainer.train()
            return trainer.state

        return Prepared(trainer.model, train)

    return prepare


def compare(
    base: Base, makers: dict[str, Maker], examples: Sequence[QuestionExample]
) -> dict[str, dict[str, Any]]:
    """Mean loss and gradient error of every contestant on the same examples, and whether they are right."""
    # The stock trainer casts the adapter of a 4-bit base to bfloat16.
    tolerance = 0.1 if base.packed or torch.cuda.is_available() else 1e-4
    reference = one_by_one(base, examples)
    found = {}
    for name, make in makers.items():
        try:
            with tempfile.TemporaryDirectory() as folder:
                total = _epoch_gradient(make(examples, Path(folder)))
        except Exception as error:
            found[name] = {"right": False, "failure": measure.failure(error)}
            continue
        loss = total.loss / max(1, total.labels)
        expected = reference.loss / reference.labels
        distance = (total.gradient - reference.gradient).norm() / reference.gradient.norm()
        right = (
            total.labels == reference.labels
            and abs(loss - expected) <= tolerance * expected
            and bool(distance <= tolerance)
        )
        found[name] = {
            "examples": len(examples),
            "loss": loss,
            "loss_one_by_one": expected,
            "gradient_error": distance.item(),
            "right": right,
        }
        if name.startswith("tree") and not right:
            raise AssertionError(f"prefix-tree rows are wrong: {found[name]}")
    return found


def one_by_one(base: Base, examples: Sequence[QuestionExample]) -> Total:
    """The reference: the bare model on one unpadded example at a time, without masks of ours."""
    model = perturbed(base.adapted()).train()
    loss, labels = 0.0, 0
    for example in encoded(base.encoder, examples):
        each = answer_loss(model, _alone(example, next(model.parameters()).device), 1)
        each.backward()
        loss += each.item()
        labels += len(example.completion)
    return Total(loss, labels, gradient_of(model))


def _alone(example: Encoded, device: torch.device) -> dict[str, Tensor]:
    labels = (prefix_tree.IGNORE_INDEX,) * len(example.prompt) + example.completion
    return {
        "input_ids": torch.tensor([example.prompt + example.completion], device=device),
        "labels": torch.tensor([labels], device=device),
    }


def _epoch_gradient(trainer: SFTTrainer) -> Total:
    """One pass over the trainer's own batches with its own loss, summed, no optimizer step."""
    trainer.model.train()
    loss, labels = 0.0, 0
    for batch in trainer.get_train_dataloader():
        batch.pop("ids", None)
        batch = trainer._prepare_inputs(batch)
        labels += int((batch["labels"] != prefix_tree.IGNORE_INDEX).sum())
        with trainer.compute_loss_context_manager():
            each = trainer.compute_loss(trainer.model, batch, num_items_in_batch=1)
        each.backward()
        loss += each.item()
    return Total(loss, labels, gradient_of(trainer.model))


def gradient_of(model: torch.nn.Module) -> Tensor:
    """The gradients of all trained weights, in the order of their names."""
    named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return torch.cat([named[name].float().flatten().cpu() for name in sorted(named)])
