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
from llama_peft.features.shards import LENGTHS, WORD, Spent, Sums
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

SHARD, SHARD_BYTES = 4096, 1 << 28
"""Texts in a shard, or bytes of states of tokens: a kill costs no more than these, and they wait in
memory.
"""


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
    texts, settings = sums_of(rows), _settings(recipe, model)
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
        lengths = numpy.fromiter((len(tokens_of(row)) for row in rows), numpy.int64)
        limits = [*_limits(groups, lengths, keys, model)]
        done = shards.finished(folder, limits)
        members = numpy.fromiter((one for group in groups for one in group.members), numpy.int64)
        left = lengths[members[done:]]
        states = int(left.sum()) if _of_tokens(keys) else len(left) * len(keys)
        _check_disk(folder, states, model, recipe)
        _fill(model, groups, folder, keys, done, limits, lengths)
        shards.finish(folder, texts[members])
    return folder


def _of_tokens(keys: tuple[Key, ...]) -> bool:
    return keys[0].pooling == "tokens"


def _settings(recipe: Recipe, model: PreTrainedModel) -> str:
    """Return a digest of all that the states of a text depend on, except for its token ids."""
    settings = {
        "base": base_fingerprint(recipe),
        "quantization": recipe.quantization.model_dump(),
        "dtype": str(model.dtype),
        "device": model.device.type,
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


def _check_disk(folder: Path, states: int, model: PreTrainedModel, recipe: Recipe) -> None:
    plain = "train.reuse_frozen_blocks: false, which computes these blocks in every epoch"
    if recipe.on_states:
        plain = "head.features: none, which runs the backbone in every epoch"
    size = states * _bytes(model)
    free = free_disk(folder)
    if size > 0.95 * free:
        raise UserError(
            f"{folder}: features take {disk_space(size)}, but {disk_space(free)} are free: make "
            f"room, or set {plain}"
        )


def _bytes(model: PreTrainedModel) -> int:
    """Return the bytes of a state."""
    return int(model.config.get_text_config().hidden_size * torch.finfo(model.dtype).bits // 8)


def _limits(
    groups: Sequence[Group],
    lengths: NDArray[numpy.int64],
    keys: tuple[Key, ...],
    model: PreTrainedModel,
) -> Iterator[int]:
    """Yield after how many texts each shard ends: after the group that fills it."""
    most = max(1, SHARD_BYTES // _bytes(model)) if _of_tokens(keys) else SHARD
    held = total = 0
    for group in groups:
        total += len(group.members)
        held += int(lengths[group.members].sum()) if _of_tokens(keys) else len(group.members)
        if held >= most:
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
    limits: Sequence[int],
    lengths: NDArray[numpy.int64],
) -> None:
    """Compute the groups after the first `done` texts, and write their shards."""
    number = sum(limit <= done for limit in limits)
    seen = tokens = 0
    held: list[list[Tensor]] = []
    names = [*(key.name for key in keys), *([LENGTHS] if _of_tokens(keys) else [])]
    was_training, started = model.training, time.perf_counter()
    model.eval()
    with Phase("features", "text", len(lengths)) as phase:
        phase.skip(done)
        for group in groups:
            seen += len(group.members)
            if seen <= done:
                continue
            own = lengths[group.members]
            tokens += int(own.sum())
            if _of_tokens(keys):
                states = states_of_tokens(model, group, keys[0].layer)
                held.append([states.to("cpu", model.dtype), torch.from_numpy(own)])
            else:
                held.append([its.to("cpu", model.dtype) for its in pooled(model, group, keys)])
            if seen == limits[number]:
                parts = map(torch.cat, zip(*held, strict=True))
                spent = Spent(time.perf_counter() - started, tokens)
                shards.write(folder, number, dict(zip(names, parts, strict=True)), spent)
                held, number, tokens, started = [], number + 1, 0, time.perf_counter()
            phase.reach(seen)
    model.train(was_training)
