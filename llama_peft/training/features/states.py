"""Computes pooled states: the forward passes of the frozen base, one for each group of texts.

A group is a prefix-tree row, in which texts that begin alike share their beginning, or a batch of
texts of similar length. Both give the same states; the second way is simple, and tests compare the
first with it.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llama_peft.model import heads
from llama_peft.prefix_tree import pack as prefix_tree
from llama_peft.prefix_tree.batch import ROW_TOKENS
from llama_peft.prefix_tree.mask import attention_inputs
from llama_peft.prefix_tree.pack import TreeRow
from llama_peft.recipe import Recipe
from llama_peft.system.sequences.views import Mapped
from llama_peft.tokens.batches import pad
from llama_peft.tokens.prompts import Encoded
from llama_peft.training.rows import ClassificationRow as Row

BATCH_SIZE = 16

# Shapes: B rows, T tokens, N texts, D hidden size.


class Key(NamedTuple):
    """The layer that states come from (-1: the last), and how tokens are pooled."""

    layer: int
    pooling: Literal["last", "mean"]

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
    lengths = numpy.fromiter((len(row["input_ids"]) for row in rows), numpy.int64)
    if recipe.head.features == "length_sorted":
        order = numpy.argsort(-lengths, kind="stable")
        firsts = range(0, len(order), BATCH_SIZE)

        def batch(first: int) -> Group:
            members = order[first : first + BATCH_SIZE].tolist()
            return Group(members, [rows[member]["input_ids"] for member in members])

        return Mapped(batch, firsts)
    encoded = (Encoded(str(i), tuple(row["input_ids"])) for i, row in enumerate(rows))
    trees = prefix_tree.pack(encoded, max(ROW_TOKENS, int(lengths.max())))
    return Mapped(lambda tree: Group([int(name) for name in tree["ids"]], tree), trees)


@torch.inference_mode()
def pooled(model: PreTrainedModel, group: Group, keys: Sequence[Key]) -> list[Tensor]:
    """Return (N, D) in float32 for each key: the states of the texts of one group."""
    if isinstance(group.given, dict):
        return _of_tree(model, group.given, keys)
    return _of_texts(model, group.given, keys)


def _of_texts(
    model: PreTrainedModel, texts: Sequence[Sequence[int]], keys: Sequence[Key]
) -> list[Tensor]:
    input_ids, mask_BT = pad(texts, model.config.pad_token_id)
    mask_BT = mask_BT.to(model.device)
    inputs = {"input_ids": input_ids.to(model.device), "attention_mask": mask_BT}
    layers = layer_states(model, inputs, {key.layer for key in keys})
    return [heads.pool(layers[key.layer], mask_BT, key.pooling) for key in keys]


def _of_tree(model: PreTrainedModel, tree: TreeRow, keys: Sequence[Key]) -> list[Tensor]:
    batch = prefix_tree.collate([tree])
    subtree_end = batch["subtree_end"].to(model.device)
    position_ids = batch["position_ids"].to(model.device)
    config = model.config.get_text_config()
    inputs = {
        "input_ids": batch["input_ids"].to(model.device),
        "position_ids": position_ids,
        **attention_inputs(config, subtree_end, position_ids, model.dtype),
    }
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
