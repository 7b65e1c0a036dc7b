"""Examples become the rows that a Trainer is fed, and rows become batches.

Each kind of training has a type of row and a type of batch. `ids` names the examples that a row
holds, so that no example is left out without a message.
"""

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, NotRequired, TypedDict, cast

import numpy
import numpy.typing
import torch
from torch import Tensor

from llama_peft.data import Example, Label, QuestionExample, TextExample
from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.model.estimate import Batch as Width
from llama_peft.model.estimate import Batches, states_batch
from llama_peft.model.estimate.batch import masked_width, uses_varlen
from llama_peft.prefix_tree import pack as prefix_tree
from llama_peft.prefix_tree.batch import Packed, packed
from llama_peft.prefix_tree.pack import IGNORE_INDEX, TreeBatch, TreeRow
from llama_peft.prefix_tree.segments import Segments, segments
from llama_peft.recipe import Recipe
from llama_peft.system.memory import gpu_has_flash, tree_kernel
from llama_peft.system.sequences.spool import Spool
from llama_peft.tasks import Task
from llama_peft.tokens import spans
from llama_peft.tokens.batches import pad
from llama_peft.tokens.prompts import Encoded, PromptEncoder

log = logging.getLogger(__name__)


Target = int | float | list[float]
"""The number of a label, a number to learn, or 0.0 or 1.0 for each label."""


class ClassificationRow(TypedDict):
    """A text and what is learned of it."""

    ids: list[str]
    input_ids: tuple[int, ...]
    labels: Target


class SpanRow(TypedDict):
    """One window of a question's context, and the positions of the answer in it."""

    ids: list[str]
    input_ids: tuple[int, ...]
    span_mask: list[int]
    """1 where an answer may start or end."""
    start_positions: int
    end_positions: int


class AnswerRow(TypedDict):
    """A prompt and its answer; only the answer and its end are labels."""

    ids: list[str]
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


class TokenBatch(TypedDict):
    """Rows as tensors by the names of the model's arguments, and the example ids of each row."""

    input_ids: Tensor
    attention_mask: Tensor
    ids: list[list[str]]
    packed: NotRequired[Packed]
    """The same tokens as tree rows."""


class ClassificationBatch(TokenBatch):
    """`labels` has the target of each row."""

    labels: Tensor


class SpanBatch(TokenBatch):
    """The fields of SpanRow."""

    span_mask: Tensor
    start_positions: Tensor
    end_positions: Tensor


class AnswerBatch(TokenBatch):
    """`labels` has one number for each token."""

    labels: Tensor


class AnswerTreeBatch(TreeBatch):
    """Tree rows with the example ids of each row."""

    ids: list[list[str]]
    segments: NotRequired[Segments]


Row = ClassificationRow | SpanRow | AnswerRow | TreeRow
Batch = ClassificationBatch | SpanBatch | AnswerBatch | AnswerTreeBatch
Collate = Callable[[Sequence[Row]], Batch]


def encode_part(
    recipe: Recipe, encoder: PromptEncoder, part: str, examples: Sequence[Example]
) -> Sequence[Row]:
    """Return the rows of one part of the data.

    Logs how many texts are cut, how many examples fit no row, and what the rows hold. Raises
    UserError if no example fits.
    """
    if not examples:
        return []
    limit = recipe.train.max_length
    rows = _kind(recipe).encode(recipe, encoder, part, examples)
    held = numpy.unique(_hashes(id_ for row in rows for id_ in row["ids"]))
    absent = ~numpy.isin(_hashes(example.id for example in examples), held)
    num_out = int(absent.sum())
    if num_out == len(examples):
        raise UserError(
            f"{part}: no example fits train.max_length {limit}; raise it or shorten the examples"
        )
    if num_out:
        first = examples[int(absent.argmax())].id
        log.warning(
            "%s: %d of %d examples are longer than train.max_length %d and left out; the first: %s",
            part, num_out, len(examples), limit, first,
        )  # fmt: skip
    tokens = sum(len(row["input_ids"]) for row in rows)
    log.info("%s: %d examples in %d rows, %d tokens", part, len(held), len(rows), tokens)
    return rows


def _hashes(ids: Iterable[str]) -> "numpy.typing.NDArray[numpy.int64]":
    """Return 8 bytes for each id, where a set of the ids would take a hundred."""
    return numpy.fromiter(map(hash, ids), numpy.int64)


def collator(recipe: Recipe, pad_token_id: int) -> Collate:
    """Return the function that makes batches of the rows that `encode_part` returns.

    Varlen attention gets its sequences here: on a GPU it would wait for it to find them.
    """
    multiple = width_multiple(recipe)
    on_gpu = backbone.place_of(recipe).type == "cuda"
    cut = on_gpu and uses_varlen(recipe, tree_kernel())
    if recipe.packs_rows:
        return partial(tree_batch, pad_token_id=pad_token_id, multiple=multiple, cut=cut)
    collate = partial(_kind(recipe).collate, pad_token_id=pad_token_id)
    if recipe.packs_batches:
        return partial(_with_trees, collate, pad_token_id, multiple, cut)
    return collate


def width_multiple(recipe: Recipe) -> int:
    """Return of what the width of tree rows is a multiple on this machine.

    On a GPU sdpa would pad the mask of any other width in every layer, and kernels, which are
    chosen or compiled for a shape, see few shapes. FlexAttention works in blocks of 128.
    """
    if backbone.place_of(recipe).type != "cuda":
        return 1
    return 128 if recipe.model.attn_implementation == "flex_attention" else 16


def _with_trees(
    collate: Collate, pad_token_id: int, multiple: int, cut: bool, rows: Sequence[Row]
) -> Batch:
    """Return a batch for a head, with its tokens as tree rows if these are fewer."""
    batch = collate(rows)
    trees = packed([row["input_ids"] for row in rows], pad_token_id, multiple)
    if trees is not None and cut:
        trees["segments"] = segments(trees["subtree_end"], trees["attention_mask"])
    if trees is not None:
        cast("TokenBatch", batch)["packed"] = trees
    return batch


def widest(recipe: Recipe, rows: Mapping[str, Sequence[Row]], pad_token_id: int) -> Batches:
    """Return the batches of the longest rows, which take the most memory."""
    lengths = {
        part: array("q", (len(row["input_ids"]) for row in its)) for part, its in rows.items()
    }
    count = sum(map(len, rows.values()))
    source = f"the longest of {count:,} encoded rows"
    if recipe.on_states:
        length = max(max(its) for its in lengths.values() if its)
        tokens = max(map(sum, lengths.values()))
        one = states_batch(recipe, length, tokens)
        return Batches(train=one, validation=one, smallest=one, source=source)
    collate = collator(recipe, pad_token_id)

    def of(part: str, size: int) -> Width:
        order = numpy.argsort(lengths[part], kind="stable")
        return _width(recipe, collate([rows[part][int(row)] for row in order[-size:]]))

    return Batches(
        train=of("train", recipe.train_batch_size),
        validation=of(
            "validation" if rows.get("validation") else "train", recipe.validation_batch_size
        ),
        smallest=of("train", 1),
        source=source,
    )


def _width(recipe: Recipe, batch: Batch) -> Width:
    """Return what the backbone reads of a batch."""
    tensors = cast("Mapping[str, Tensor]", batch)
    given = cast("Mapping[str, Tensor]", batch.get("packed", batch))
    rows, width = given["input_ids"].shape
    labels = 0
    if recipe.kind.head is None:
        labels = int((tensors["labels"][:, 1:] != IGNORE_INDEX).sum())
    if "subtree_end" in given:
        found = Width(rows, width, labels, "tree")
        pieces = cast("Mapping[str, Segments]", given).get("segments")
        if pieces is None:
            return found
        return found._replace(keys=len(pieces["keys"]), sequences=len(pieces["key_starts"]) - 1)
    if recipe.kind.head is not None and backbone.place_of(recipe).type == "cuda":
        if gpu_has_flash():
            return Width(rows, width)
        return Width(rows, masked_width(width), mask="padding")
    padded = bool((given["attention_mask"] == 0).any())
    return Width(rows, width, labels, "padding" if padded else "none")


def classification_rows(
    recipe: Recipe, encoder: PromptEncoder, part: str, examples: Sequence[TextExample]
) -> Sequence[ClassificationRow]:
    """Return one row for each text; a text that is too long loses its end."""
    limit = recipe.train.max_length
    count = len(recipe.dataset.labels or ())
    rows, num_cut = Spool[ClassificationRow](), 0
    for example in examples:
        ids = encoder.head_input(example.values)
        if len(ids) > limit:
            ids, num_cut = encoder.head_input(example.values, limit), num_cut + 1
        target = _target(example.label, count)
        rows.append(ClassificationRow(ids=[example.id], input_ids=ids, labels=target))
    if num_cut:
        log.warning(
            "%s: %d of %d texts are cut to train.max_length %d", part, num_cut, len(rows), limit
        )
    return rows


def _target(label: Label, num_labels: int) -> Target:
    if isinstance(label, tuple):
        return [float(number in label) for number in range(num_labels)]
    return label


def span_rows(
    recipe: Recipe, encoder: PromptEncoder, part: str, examples: Sequence[QuestionExample]
) -> Sequence[SpanRow]:
    """Return one row for each window; a window without the whole answer is labelled "no answer"."""
    train = recipe.train
    rows = Spool[SpanRow]()
    for example in examples:
        answer = example.answers[0] if example.answers else None
        for window in spans.windows(encoder, example, train.max_length, train.doc_stride):
            start, end = spans.label(window, answer)
            row = SpanRow(
                ids=[example.id],
                input_ids=window.input_ids,
                span_mask=window.span_mask(),
                start_positions=start,
                end_positions=end,
            )
            rows.append(row)
    return rows


def answer_rows(
    recipe: Recipe, encoder: PromptEncoder, part: str, examples: Sequence[QuestionExample]
) -> Sequence[AnswerRow]:
    """Return one row for each example that fits."""
    return Spool(
        AnswerRow(
            ids=[one.id],
            input_ids=one.prompt + one.completion,
            labels=(IGNORE_INDEX,) * len(one.prompt) + one.completion,
        )
        for one in _fitting(recipe, encoder, examples)
    )


def tree_rows(
    recipe: Recipe, encoder: PromptEncoder, part: str, examples: Sequence[QuestionExample]
) -> Sequence[TreeRow]:
    """Return the examples that fit, packed as prefix trees."""
    rows = prefix_tree.pack(_fitting(recipe, encoder, examples), recipe.train.max_length)
    if rows:
        log.info("%s: prefix trees: %s", part, prefix_tree.packing(rows))
    return rows


def _fitting(
    recipe: Recipe, encoder: PromptEncoder, examples: Sequence[QuestionExample]
) -> Iterator[Encoded]:
    encoded = encoder.encode(examples)
    limit = recipe.train.max_length
    return (one for one in encoded if len(one.prompt) + len(one.completion) <= limit)


def classification_batch(
    rows: Sequence[ClassificationRow], pad_token_id: int
) -> ClassificationBatch:
    """Return texts and their labels as a batch."""
    labels = torch.tensor([row["labels"] for row in rows])
    return ClassificationBatch(**_tokens(rows, pad_token_id), labels=labels)


def span_batch(rows: Sequence[SpanRow], pad_token_id: int) -> SpanBatch:
    """Return windows and the positions of their answers as a batch."""
    return SpanBatch(
        **_tokens(rows, pad_token_id),
        span_mask=pad([row["span_mask"] for row in rows], 0)[0],
        start_positions=torch.tensor([row["start_positions"] for row in rows]),
        end_positions=torch.tensor([row["end_positions"] for row in rows]),
    )


def answer_batch(rows: Sequence[AnswerRow], pad_token_id: int) -> AnswerBatch:
    """Return prompts with their answers as a batch."""
    labels = pad([row["labels"] for row in rows], IGNORE_INDEX)[0]
    return AnswerBatch(**_tokens(rows, pad_token_id), labels=labels)


def tree_batch(
    rows: Sequence[TreeRow], pad_token_id: int, multiple: int = 1, cut: bool = False
) -> AnswerTreeBatch:
    """Return tree rows as a batch. cut: whether it also holds them as sequences."""
    batch = prefix_tree.collate(rows, pad_token_id, multiple)
    found = AnswerTreeBatch(**batch, ids=[row["ids"] for row in rows])
    if cut:
        found["segments"] = segments(batch["subtree_end"], batch["attention_mask"])
    return found


def _tokens(
    rows: Sequence[ClassificationRow] | Sequence[SpanRow] | Sequence[AnswerRow], pad_token_id: int
) -> TokenBatch:
    """Return what all batches of plain rows hold, padded on the right."""
    input_ids, mask = pad([row["input_ids"] for row in rows], pad_token_id)
    ids = [row["ids"] for row in rows]
    return TokenBatch(input_ids=input_ids, attention_mask=mask, ids=ids)


class _Kind(NamedTuple):
    """The two functions of a kind of training."""

    encode: Callable[..., Sequence[Row]]
    collate: Callable[..., Batch]


_KINDS: Mapping[Task, _Kind] = {
    "classification": _Kind(classification_rows, classification_batch),
    "multi_label_classification": _Kind(classification_rows, classification_batch),
    "regression": _Kind(classification_rows, classification_batch),
    "extractive_qa": _Kind(span_rows, span_batch),
    "generative_qa": _Kind(answer_rows, answer_batch),
}


def _kind(recipe: Recipe) -> _Kind:
    if recipe.packs_rows:
        return _Kind(tree_rows, tree_batch)
    return _KINDS[recipe.kind.name]
