"""The states of every text on disk, computed in one pass, and the head that trains on them.

The published baseline ran the frozen backbone again in every epoch. States are written to sealed
shards beside the runs, in a folder named after a digest of all that they depend on, and are
memory-mapped. A pass that was killed continues after its last shard. States are found by the token
ids of their text, so a pass over fewer texts, or at one of several layers, needs no pass of its own.
"""

import json
import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TypedDict

import numpy
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from llama_peft.errors import UserError
from llama_peft.model import heads
from llama_peft.model.fingerprint import base_fingerprint
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import LADDER
from llama_peft.system.disk import free_disk
from llama_peft.system.files import inside, make_folder, sha256_of, sweep
from llama_peft.system.formatting import disk_space
from llama_peft.system.lock import file_lock
from llama_peft.system.progress import Phase
from llama_peft.system.seal import SEAL, is_sealed
from llama_peft.training.features import shards
from llama_peft.training.features.shards import WORD, Sums
from llama_peft.training.features.states import Group, Key, grouped, pooled
from llama_peft.training.rows import ClassificationRow as Row
from llama_peft.training.rows import Target

log = logging.getLogger(__name__)

SHARD = 4096
"""Texts in a shard: a kill costs no more than these."""


class FeatureRow(TypedDict):
    """The pooled state (D,) of a text, and what is learned of it."""

    ids: list[str]
    features: Tensor
    labels: Target


class FeatureBatch(TypedDict):
    """Feature rows as tensors, and the example ids of each row."""

    features: Tensor
    labels: Tensor
    ids: list[list[str]]


class States(Dataset[FeatureRow]):
    """The states of one part's rows, in the order of the rows."""

    def __init__(self, rows: Sequence[Row], folder: Path, key: Key) -> None:
        self._rows = rows
        self._shards = shards.states(folder, key.name)
        self._starts = [0, *accumulate(map(len, self._shards))]
        self._place = shards.places(folder, _texts(rows))
        """The number of each row's state among those of all shards."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> FeatureRow:
        row = self._rows[index]
        place = int(self._place[index])
        shard = bisect_right(self._starts, place) - 1
        features = self._shards[shard][place - self._starts[shard]]
        return FeatureRow(ids=row["ids"], features=features, labels=row["labels"])


class FeatureHead(nn.Module):
    """The head alone, on states that are computed already."""

    accepts_loss_kwargs = False

    def __init__(self, score: nn.Module, problem_type: str | None = None) -> None:
        super().__init__()
        self.score = score.requires_grad_(True)
        self.problem_type = problem_type

    def forward(self, features: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.score(features)
        loss = None if labels is None else heads.class_loss(logits, labels, self.problem_type)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def collate(rows: Sequence[FeatureRow]) -> FeatureBatch:
    """Return states and labels as a batch."""
    return FeatureBatch(
        features=torch.stack([row["features"] for row in rows]),
        labels=torch.tensor([row["labels"] for row in rows]),
        ids=[row["ids"] for row in rows],
    )


def cache_folder(run: Path) -> Path:
    """Return the folder of all states: beside the runs, so that other runs can use it."""
    runs = run.parent if run.parent.name != LADDER else run.parent.parent.parent
    return runs / "features"


def states_of(
    recipe: Recipe, model: PreTrainedModel, part: str, rows: Sequence[Row], cache: Path
) -> States:
    """Return the states of a part's rows, from the cache or computed and added to it.

    Raises UserError if the disk is too small.
    """
    # The loaded model ends at the chosen layer, which is named as in the states of all layers.
    key = Key(model.config.get_text_config().num_hidden_layers, recipe.head.pooling)
    return States(rows, compute(recipe, model, part, rows, cache, (key,)), key)


def compute(
    recipe: Recipe,
    model: PreTrainedModel,
    part: str,
    rows: Sequence[Row],
    cache: Path,
    keys: tuple[Key, ...],
) -> Path:
    """Return the folder of the sealed shards with the rows' states; missing states are computed."""
    texts, settings = _texts(rows), _settings(recipe, str(model.dtype))
    known = _covering(cache, settings, texts, keys)
    if known is not None:
        log.info("%s: features of %d texts are there already (%s)", part, len(rows), known)
        return known
    own = sha256_of(json.dumps([keys, shards.words(texts)]))[:WORD]
    folder = make_folder(cache.parent, f"{cache.name}/{settings}-{own}")
    # Another run on the same texts waits, and then finds the states.
    with file_lock(folder.with_suffix(".lock")):
        sweep(folder)
        if is_sealed(folder):
            log.info("%s: features of %d texts are there already (%s)", part, len(rows), folder)
            return folder
        if (folder / SEAL).is_file():
            log.warning("%s is damaged; its features are computed again", folder)
            shards.clear(folder)
        groups = grouped(recipe, rows, model)
        done = shards.finished(folder, _limits(groups))
        _check_disk(folder, (len(rows) - done) * len(keys), model)
        _fill(model, groups, folder, keys, done)
        members = (index for group in groups for index in group.members)
        shards.finish(folder, texts[numpy.fromiter(members, numpy.int64)])
    return folder


def _settings(recipe: Recipe, dtype: str) -> str:
    """Return a digest of all that the states of a text depend on, except for its token ids."""
    settings = {
        "base": base_fingerprint(recipe),
        "quantization": recipe.quantization.model_dump(),
        "dtype": dtype,
        "attention": recipe.model.attn_implementation,
        "rows": recipe.head.features,
        "format": 2,
    }
    return sha256_of(json.dumps(settings, sort_keys=True))[:WORD]


def _texts(rows: Sequence[Row]) -> Sums:
    return shards.sums_of(row["input_ids"] for row in rows)


def _covering(cache: Path, settings: str, texts: Sums, keys: tuple[Key, ...]) -> Path | None:
    """Return a sealed folder that holds the states of all texts at all keys, if there is one."""
    inside(cache.parent, cache.name)
    for folder in sorted(cache.glob(f"{settings}-*/")):
        try:
            inside(cache, folder.name)
            if shards.holds(folder, texts, {key.name for key in keys}):
                return folder
        except (OSError, ValueError, TypeError, UserError, SafetensorError):
            continue
    return None


def _check_disk(folder: Path, states: int, model: PreTrainedModel) -> None:
    hidden = model.config.get_text_config().hidden_size
    size = states * hidden * torch.finfo(model.dtype).bits // 8
    free = free_disk(folder)
    if size > 0.95 * free:
        raise UserError(
            f"{folder}: features take {disk_space(size)}, but {disk_space(free)} are free: make "
            "room, or set head.features: none, which runs the backbone in every epoch"
        )


def _limits(groups: Sequence[Group]) -> Iterator[int]:
    """Yield after how many texts each shard ends: after the group that fills it."""
    held = total = 0
    for group in groups:
        held, total = held + len(group.members), total + len(group.members)
        if held >= SHARD:
            yield total
            held = 0
    if held:
        yield total


def _fill(
    model: PreTrainedModel,
    groups: Sequence[Group],
    folder: Path,
    keys: tuple[Key, ...],
    done: int,
) -> None:
    """Compute the groups after the first `done` texts, and write their shards."""
    limits = set(_limits(groups))
    number = sum(limit <= done for limit in limits)
    seen = 0
    held: list[list[Tensor]] = []
    was_training = model.training
    model.eval()
    with Phase("features", "text", sum(len(group.members) for group in groups)) as phase:
        phase.skip(done)
        for group in groups:
            seen += len(group.members)
            if seen <= done:
                continue
            held.append(pooled(model, group, keys))
            if seen in limits:
                parts = map(torch.cat, zip(*held, strict=True))
                states = {
                    key.name: its.to(model.dtype) for key, its in zip(keys, parts, strict=True)
                }
                shards.write(folder, number, states)
                held, number = [], number + 1
            phase.reach(seen)
    model.train(was_training)
