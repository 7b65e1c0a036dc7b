"""What less mixed batches cost: validation loss of tree rows and of plain batches at equal examples seen.

A tree row holds all questions of a few paragraphs, a plain batch those of as many paragraphs as it
has examples. Gradients of one example are the same in both (law 4), so only the mixing can differ:
every layout here takes about `PER_STEP` examples an optimizer step, and sees the same examples in the
same number of epochs. Capping how many questions of a paragraph share a row mixes
better and costs tokens. The base is ../shared's trained one of 8M parameters; validation is on other
articles.
"""

import random
import statistics
import tempfile
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import datasets
from transformers import PrinterCallback, TrainerCallback

from llama_peft.data import QuestionExample
from llama_peft.prefix_tree import pack as prefix_tree
from llama_peft.prefix_tree.loss import mean_loss
from llama_peft.prefix_tree.pack import EncodedLike, TreeRow
from llama_peft.training.tree_trainer import TreeTrainer
from tests.support.tree_examples import plain_rows

from . import measure
from .material import SHARED, Base, encoded, squad
from .training import arguments

PER_STEP = 8
ROW_TOKENS = 640  # a row then holds about as many
LEARNING_RATE = 1e-3
VALIDATION = 200
POINTS = 5
LAYOUTS: dict[str, int | None] = {
    "plain": None,
    "tree": None,
    "tree, at most 8": 8,
    "tree, at most 4": 4,
}


class ValidationCurve(TrainerCallback):
    """Validation losses at `POINTS` even places of the run: {examples seen: loss}."""

    def __init__(self, rows: Sequence[TreeRow], examples: int) -> None:
        self.rows, self.examples = rows, examples
        self.losses: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        point, last = state.global_step * POINTS, state.max_steps
        if point // last > (point - POINTS) // last:
            model = kwargs["model"].eval()
            seen = round(state.global_step / last * self.examples)
            self.losses[seen] = mean_loss(model, self.rows)
            model.train()


def run(examples: int, seeds: int) -> dict[str, Any]:
    """Train every layout with every seed and return the result."""
    datasets.disable_progress_bars()
    base = Base(SHARED / "llama-mini")
    train, validation = _parts(examples)
    rows = _tree(base, validation, None)
    curves: dict[str, list[dict[int, float]]] = {name: [] for name in LAYOUTS}
    facts: dict[str, dict[str, Any]] = {}
    for seed in range(1, seeds + 1):
        for name in LAYOUTS:
            curve, facts[name] = _train(base, name, train, rows, seed)
            curves[name].append(curve.losses)
    start = mean_loss(base.load(), rows)
    found = _rows(curves, facts)
    return measure.result(
        "convergence",
        found,
        {},
        examples_seen=len(train),
        examples_per_step=PER_STEP,
        row_tokens=ROW_TOKENS,
        learning_rate=LEARNING_RATE,
        seeds=list(range(1, seeds + 1)),
        model="llama-mini, 8M parameters, trained, float32, LoRA r 16",
        data="SQuAD v2 dev; validation on articles that are not trained on",
        validation_questions=len(validation),
        loss_before=start,
        loss_is="mean cross-entropy of the answers' tokens on validation",
    )


def _parts(examples: int) -> tuple[list[QuestionExample], list[QuestionExample]]:
    """`examples` to train on and `VALIDATION` of the articles at the end, whole paragraphs each."""
    found = squad()
    titles = list(dict.fromkeys(example.title for example in found))
    held_out = set(titles[-2:])
    validation = [example for example in found if example.title in held_out][:VALIDATION]
    return [e for e in found if e.title not in held_out][:examples], validation


def _tree(base: Base, examples: Sequence[QuestionExample], cap: int | None) -> list[TreeRow]:
    all_encoded = list(encoded(base.encoder, examples))
    fitting = [e for e in all_encoded if len(e.prompt) + len(e.completion) <= ROW_TOKENS]
    groups = [fitting] if cap is None else spread(fitting, cap)
    return [row for group in groups for row in prefix_tree.pack(group, ROW_TOKENS)]


def spread(examples: Sequence[EncodedLike], cap: int) -> list[list[EncodedLike]]:
    """Groups to be packed apart, none with more than `cap` examples of one family.

    A family is examples that share more than half of their prompts: the questions of a paragraph.
    """
    families: list[list[EncodedLike]] = []
    for example in sorted(examples, key=lambda example: example.prompt[:-1]):
        last = families[-1][-1].prompt if families else ()
        pairs = zip(last, example.prompt, strict=False)
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        if 2 * shared > max(len(last), len(example.prompt)):
            families[-1].append(example)
        else:
            families.append([example])
    counts = [-(-len(family) // cap) for family in families]
    groups: list[list[EncodedLike]] = [[] for _ in range(max(counts, default=0))]
    for turn, (family, count) in enumerate(zip(families, counts, strict=True)):
        for part in range(count):  # `turn` spreads the families evenly over the groups
            groups[(turn + part) % len(groups)] += family[part::count]
    return groups


def _train(
    base: Base,
    name: str,
    train: Sequence[QuestionExample],
    validation: Sequence[TreeRow],
    seed: int,
) -> tuple[ValidationCurve, dict[str, Any]]:
    """One run; rows a step such that a step holds about `PER_STEP` examples."""
    rows = _tree(base, train, LAYOUTS[name])
    held = sum(len(row["ids"]) for row in rows)
    if name == "plain":
        kept = {id_ for row in rows for id_ in row["ids"]}
        rows = plain_rows(encoded(base.encoder, [e for e in train if e.id in kept]))
    random.Random(seed).shuffle(rows)
    batch_size = max(1, round(PER_STEP * len(rows) / held))
    curve = ValidationCurve(validation, held)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(base, rows, batch_size, curve, seed, Path(folder))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    packing = prefix_tree.packing(rows)
    return curve, {
        "examples": held,
        "tokens": packing.tokens,
        "times_fewer_tokens": packing.plain_tokens / packing.tokens,
        "rows_per_step": batch_size,
        "examples_per_step": held / trainer.state.global_step,
        "optimizer_steps": trainer.state.global_step,
    }


def _trainer(
    base: Base,
    rows: Sequence[TreeRow],
    batch_size: int,
    curve: ValidationCurve,
    seed: int,
    folder: Path,
) -> TreeTrainer:
    pad_id = base.encoder.tokenizer.pad_token_id
    return TreeTrainer(
        model=base.adapted(),
        args=arguments(
            folder,
            max_length=ROW_TOKENS,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            seed=seed,
            per_device_train_batch_size=batch_size,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        data_collator=lambda batch: prefix_tree.collate(batch, pad_id),
        train_dataset=datasets.Dataset.from_list([dict(row) for row in rows]),
        processing_class=base.encoder.tokenizer,
        callbacks=[curve],
    )


def _rows(
    curves: dict[str, list[dict[int, float]]], facts: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row a layout: its last losses over the seeds, and how far they are from plain batches'."""
    finals = {name: [list(losses.values())[-1] for losses in its] for name, its in curves.items()}
    plain = statistics.mean(finals["plain"])
    return [
        {
            "name": name,
            **facts[name],
            "final_loss": measure.spread(final) | {"mean": statistics.mean(final)},
            "loss_difference": statistics.mean(final) - plain,
            "curves": curves[name],
        }
        for name, final in finals.items()
    ]
