"""From examples to the rows that a Trainer is fed, and from rows to batches: one encoder a task.

A row is a mapping of token ids and labels; `ids` names the examples that it holds, so that none is dropped without a word.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llama_peft.data import QuestionExample, TextExample
from llama_peft.errors import UserError
from llama_peft.prefix_tree import pack as prefix_tree
from llama_peft.recipe import Recipe
from llama_peft.tokens import spans
from llama_peft.tokens.batches import pad
from llama_peft.tokens.prompts import PromptEncoder

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

Row = dict[str, Any]


def encode_part(
    recipe: Recipe, encoder: PromptEncoder, part: str, examples: Sequence[Any]
) -> list[Row]:
    """Rows of one part. Says how many texts were cut, how many examples no row can hold, and what the rows hold."""
    if not examples:
        return []
    encoders: dict[str, Callable[..., list[Row]]] = {
        "classification": classification_rows,
        "extractive_qa": span_rows,
        "generative_qa": answer_rows,
    }
    rows = encoders[recipe.task](recipe, encoder, examples)
    held = {id_ for row in rows for id_ in row["ids"]}
    left_out = [example.id for example in examples if example.id not in held]
    if len(left_out) == len(examples):
        raise UserError(f"{part}: no example fits train.max_length {recipe.train.max_length}")
    if left_out:
        log.warning(
            "%s: %d of %d examples are longer than train.max_length %d and left out, first %s",
            part, len(left_out), len(examples), recipe.train.max_length, left_out[0],
        )  # fmt: skip
    cut = sum(row.pop("cut", False) for row in rows)
    if cut:
        log.warning("%s: %d of %d texts are cut to train.max_length", part, cut, len(rows))
    tokens = sum(len(row["input_ids"]) for row in rows)
    log.info("%s: %d examples in %d rows, %d tokens", part, len(held), len(rows), tokens)
    return rows


def classification_rows(
    recipe: Recipe, encoder: PromptEncoder, examples: Sequence[TextExample]
) -> list[Row]:
    limit = recipe.train.max_length
    rows = []
    for example in examples:
        ids = encoder.head_input(example.text, limit + 1)
        row = {"ids": [example.id], "input_ids": ids[:limit], "labels": example.label}
        rows.append({**row, "cut": len(ids) > limit})
    return rows


def span_rows(
    recipe: Recipe, encoder: PromptEncoder, examples: Sequence[QuestionExample]
) -> list[Row]:
    """One row a window; windows without the whole answer learn "no answer"."""
    train = recipe.train
    rows = []
    for example in examples:
        answer = example.answers[0] if example.answers else None
        for window in spans.windows(encoder, example, train.max_length, train.doc_stride):
            start, end = spans.label(window, answer)
            rows.append(
                {
                    "ids": [example.id],
                    "input_ids": window.input_ids,
                    "span_mask": window.span_mask(),
                    "start_positions": start,
                    "end_positions": end,
                }
            )
    return rows


def answer_rows(
    recipe: Recipe, encoder: PromptEncoder, examples: Sequence[QuestionExample]
) -> list[Row]:
    """Prompts and answers, as tree rows or one a row; the loss is on answers and their end. Too long examples are in no row."""
    limit = recipe.train.max_length
    encoded = [encoder.encode(example, training=True) for example in examples]
    fitting = [one for one in encoded if len(one.prompt) + len(one.completion) <= limit]
    if recipe.train.packing == "prefix_tree":
        rows = prefix_tree.pack(fitting, limit)
        log.info("prefix trees: %s", prefix_tree.packing(rows))
        return [dict(row) for row in rows]
    return [
        {
            "ids": [one.id],
            "input_ids": one.prompt + one.completion,
            "labels": (-100,) * len(one.prompt) + one.completion,
        }
        for one in fitting
    ]


def collate(rows: Sequence[Row], pad_token_id: int) -> "dict[str, Tensor]":
    """Rows to a batch, padded on the right: sequences to the longest, numbers as they are."""
    import torch

    if "subtree_end" in rows[0]:
        return prefix_tree.collate(rows, pad_token_id)
    input_ids, mask = pad([row["input_ids"] for row in rows], pad_token_id)
    batch = {"input_ids": input_ids, "attention_mask": mask}
    fill = {"labels": -100, "span_mask": 0}
    for key in rows[0].keys() - {"ids", "input_ids"}:
        values = [row[key] for row in rows]
        batch[key] = (
            torch.tensor(values) if isinstance(values[0], int) else pad(values, fill[key])[0]
        )
    return batch
