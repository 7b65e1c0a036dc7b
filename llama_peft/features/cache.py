"""The states of every text on disk, computed in one pass.

The published baseline ran the frozen backbone again in every epoch. States are written to sealed
shards beside the runs, in a folder named after a digest of all that they depend on, and are
memory-mapped. A pass that was killed continues after its last shard. States are found by the token
ids of their text, so a pass over fewer texts, or at one of several layers, needs no pass of its own.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import cast

import numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from llama_peft.errors import UserError
from llama_peft.features import shards
from llama_peft.features.shards import LENGTHS, WORD, Sums
from llama_peft.features.states import Group, Key, Row, grouped, pooled, tokens_of
from llama_peft.features.states import of_tokens as states_of_tokens
from llama_peft.model.fingerprint import base_fingerprint
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import LADDER
from llama_peft.system.disk import free_disk
from llama_peft.system.files import inside, make_folder, sha256_of, sweep
from llama_peft.system.formatting import disk_space
from llama_peft.system.lock import file_lock
from llama_peft.system.progress import Phase
from llama_peft.system.seal import SEAL, is_sealed

log = logging.getLogger(__name__)

SHARD = 4096
"""Texts in a shard: a kill costs no more than these."""


def cache_folder(run: Path) -> Path:
    """Return the folder of all states: beside the runs, so that other runs can use it."""
    runs = run.parent if run.parent.name != LADDER else run.parent.parent.parent
    return runs / "features"


def compute(
    recipe: Recipe,
    model: PreTrainedModel,
    part: str,
    rows: Sequence[Row],
    cache: Path,
    keys: tuple[Key, ...],
) -> Path:
    """Return the folder of the sealed shards with the rows' states; missing states are computed."""
    texts, settings = sums_of(rows), _settings(recipe, str(model.dtype))
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
        lengths = numpy.fromiter((len(tokens_of(row)) for row in rows), numpy.int64)
        _check_disk(folder, _left(groups, done, keys, lengths), model, recipe)
        _fill(model, groups, folder, keys, done, lengths)
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
        "format": 3,
    }
    return sha256_of(json.dumps(settings, sort_keys=True))[:WORD]


def sums_of(rows: Sequence[Row]) -> Sums:
    """Return by what states are found: the tokens of a text, and of a tree row also its branches."""
    return shards.sums_of(
        (*tokens_of(row), *cast("Sequence[int]", row.get("subtree_end", ()))) for row in rows
    )


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


def _left(
    groups: Sequence[Group], done: int, keys: tuple[Key, ...], lengths: "NDArray[numpy.int64]"
) -> int:
    """Return how many states are not computed yet, after the first `done` texts."""
    if keys[0].pooling != "tokens":
        return (len(lengths) - done) * len(keys)
    members = (member for group in groups for member in group.members)
    return int(lengths[[*islice(members, done, None)]].sum())


def _check_disk(folder: Path, states: int, model: PreTrainedModel, recipe: Recipe) -> None:
    plain = "train.reuse_frozen_blocks: false, which computes these blocks in every epoch"
    if recipe.on_states:
        plain = "head.features: none, which runs the backbone in every epoch"
    hidden = model.config.get_text_config().hidden_size
    size = states * hidden * torch.finfo(model.dtype).bits // 8
    free = free_disk(folder)
    if size > 0.95 * free:
        raise UserError(
            f"{folder}: features take {disk_space(size)}, but {disk_space(free)} are free: make "
            f"room, or set {plain}"
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
    lengths: "NDArray[numpy.int64]",
) -> None:
    """Compute the groups after the first `done` texts, and write their shards."""
    limits = set(_limits(groups))
    number = sum(limit <= done for limit in limits)
    seen = 0
    held: list[list[Tensor]] = []
    of_tokens = keys[0].pooling == "tokens"
    names = [*(key.name for key in keys), *([LENGTHS] if of_tokens else [])]
    was_training, started = model.training, time.perf_counter()
    model.eval()
    with Phase("features", "text", sum(len(group.members) for group in groups)) as phase:
        phase.skip(done)
        for group in groups:
            seen += len(group.members)
            if seen <= done:
                continue
            if of_tokens:
                states = states_of_tokens(model, group, keys[0].layer)
                held.append([states, torch.from_numpy(lengths[group.members])])
            else:
                held.append([its.to(model.dtype) for its in pooled(model, group, keys)])
            if seen in limits:
                parts = map(torch.cat, zip(*held, strict=True))
                seconds = time.perf_counter() - started
                shards.write(folder, number, dict(zip(names, parts, strict=True)), seconds)
                held, number, started = [], number + 1, time.perf_counter()
            phase.reach(seen)
    model.train(was_training)
