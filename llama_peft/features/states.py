"""Computes states: the forward passes of the frozen base, one for each group of texts.

A group is a prefix-tree row, in which texts that begin alike share their beginning, or a batch of
texts of similar length. Both give the same states; the second way is simple, and tests compare the
first with it.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, cast

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llama_peft.features.blocks import read_before
from llama_peft.model import heads
from llama_peft.prefix_tree import pack as prefix_tree
from llama_peft.prefix_tree import varlen
from llama_peft.prefix_tree.batch import ROW_TOKENS, paths
from llama_peft.prefix_tree.mask import attention_inputs
from llama_peft.prefix_tree.pack import TreeRow
from llama_peft.prefix_tree.segments import segments
from llama_peft.recipe import Recipe
from llama_peft.system.sequences.views import Mapped
from llama_peft.tokens.batches import pad
from llama_peft.tokens.prompts import Encoded

BATCH_SIZE = 16

# Shapes: B rows, T tokens, N texts, D hidden size.


Row: TypeAlias = Mapping[str, object]
"""A text with its `input_ids`, or a tree row of a training on prefix trees."""


def tokens_of(row: Row) -> Sequence[int]:
    """Return the token ids of a row."""
    return cast("Sequence[int]", row["input_ids"])


class Key(NamedTuple):
    """The layer that states come from (-1: the last), and how tokens are pooled.

    tokens: the state of each token as the block after the layer reads it, without the final norm.
    """

    layer: int
    pooling: Literal["last", "mean", "tokens"]

    @property
    def name(self) -> str:
        """What their tensors are called on disk."""
        return f"layer {self.layer}, {self.pooling}"


Input: TypeAlias = TreeRow | list[Sequence[int]]


class Group(NamedTuple):
    """The texts of one forward pass."""

    members: list[int]
    """The numbers of their rows."""
    given: Input
    """What the model reads: a tree row, or the token ids of each text."""


def grouped(recipe: Recipe, rows: Sequence[Row], model: PreTrainedModel) -> Sequence[Group]:
    """Return the rows in the order in which they are computed; a group is made when it is read."""
    if rows and "subtree_end" in rows[0]:
        return Mapped(
            lambda number: Group([number], cast("TreeRow", rows[number])), range(len(rows))
        )
    lengths = numpy.fromiter((len(tokens_of(row)) for row in rows), numpy.int64)
    if recipe.head.features == "length_sorted":
        order = numpy.argsort(-lengths, kind="stable")
        firsts = range(0, len(order), BATCH_SIZE)

        def batch(first: int) -> Group:
            members = order[first : first + BATCH_SIZE].tolist()
            return Group(members, [tokens_of(rows[member]) for member in members])

        return Mapped(batch, firsts)
    encoded = (Encoded(str(i), tuple(tokens_of(row))) for i, row in enumerate(rows))
    trees = prefix_tree.pack(encoded, max(ROW_TOKENS, int(lengths.max())))
    return Mapped(lambda tree: Group([int(name) for name in tree["ids"]], tree), trees)


@torch.inference_mode()
def pooled(model: PreTrainedModel, group: Group, keys: Sequence[Key]) -> list[Tensor]:
    """Return (N, D) in float32 for each key: the states of the texts of one group."""
    if isinstance(group.given, dict):
        return _of_tree(model, group.given, keys)
    return _of_texts(model, group.given, keys)


@torch.inference_mode()
def of_tokens(model: PreTrainedModel, group: Group, block: int) -> Tensor:
    """Return (T, D): what a block reads of every token of a group's texts, one after the other."""
    if not isinstance(group.given, dict):
        inputs, mask_BT = _padded(model, group.given)
        return read_before(model, inputs, block)[mask_BT.bool()]
    inputs, tree = _tree_inputs(model, group.given), group.given
    states_TD = read_before(model, inputs, block)[0]
    if len(group.members) < len(tree["starts"]):  # a row of a training: all of the tree is its
        return states_TD
    return states_TD[torch.tensor([k for path in paths(tree) for k in path], device=model.device)]


def _padded(
    model: PreTrainedModel, texts: Sequence[Sequence[int]]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return what the backbone reads of texts, and which tokens (B, T) are not padding."""
    input_ids, mask_BT = pad(texts, model.config.pad_token_id)
    mask_BT = mask_BT.to(model.device)
    return {"input_ids": input_ids.to(model.device), "attention_mask": mask_BT}, mask_BT


def _of_texts(
    model: PreTrainedModel, texts: Sequence[Sequence[int]], keys: Sequence[Key]
) -> list[Tensor]:
    inputs, mask_BT = _padded(model, texts)
    layers = layer_states(model, inputs, {key.layer for key in keys})
    return [heads.pool(layers[key.layer], mask_BT, key.pooling) for key in keys]


def _tree_inputs(model: PreTrainedModel, tree: TreeRow) -> dict[str, object]:
    """Return what the backbone reads of a tree row."""
    batch = prefix_tree.collate([tree])
    position_ids = batch["position_ids"].to(model.device)
    config, pieces = model.config.get_text_config(), None
    ends = batch["subtree_end"].to(model.device)
    if config._attn_implementation == varlen.NAME:
        pieces = segments(ends, batch["attention_mask"].to(model.device))
    masks = attention_inputs(config, ends, position_ids, model.dtype, pieces=pieces)
    return {
        "input_ids": batch["input_ids"].to(model.device),
        "position_ids": position_ids,
        **masks,
    }


def _of_tree(model: PreTrainedModel, tree: TreeRow, keys: Sequence[Key]) -> list[Tensor]:
    inputs = _tree_inputs(model, tree)
    subtree_end = torch.tensor(tree["subtree_end"], device=model.device)
    ends_N = torch.tensor(tree["starts"], device=model.device)
    index_T = torch.arange(len(tree["input_ids"]), device=model.device)
    path_NT = ((index_T <= ends_N[:, None]) & (ends_N[:, None] < subtree_end)).float()
    layers = layer_states(model, inputs, {key.layer for key in keys})
    found = []
    for key in keys:
        states_TD = layers[key.layer][0]
        if key.pooling == "last":
            found.append(states_TD[ends_N].float())
        else:
            found.append(path_NT @ states_TD.float() / path_NT.sum(1, keepdim=True))
    return found


def layer_states(
    model: PreTrainedModel, inputs: Mapping[str, object], wanted: set[int]
) -> dict[int, Tensor]:
    """Return (B, T, D) after each wanted layer, through the final norm; -1 is the last layer."""
    inner = wanted - {-1}
    output = model.model(**inputs, use_cache=False, output_hidden_states=bool(inner))
    depth = model.config.get_text_config().num_hidden_layers
    found = {-1: output.last_hidden_state, depth: output.last_hidden_state}
    for layer in inner - {depth}:
        found[layer] = model.model.norm(output.hidden_states[layer])
    return found
