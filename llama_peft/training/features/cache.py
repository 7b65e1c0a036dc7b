"""The states of every text on disk, computed in one pass, and the head that trains on them.

The published baseline ran the frozen backbone again in every epoch. States are written to sealed
shards beside the runs, in a folder named after a digest of all that they depend on, and are
memory-mapped. A pass that was killed continues after its last shard. States are found by the token
ids of their text, so a pass over fewer texts, or at one of several layers, needs no pass of its own.
"""

import json
import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias, TypedDict

import numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
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
from llama_peft.system.files import (
    JsonObject,
    inside,
    make_folder,
    new_file,
    read_json,
    read_text,
    remove_file,
    sha256,
    sha256_of,
    sum_of,
    sweep,
    write_text,
)
from llama_peft.system.formatting import disk_space
from llama_peft.system.lock import file_lock
from llama_peft.system.progress import Phase
from llama_peft.system.seal import SEAL, is_sealed, seal
from llama_peft.training.features.states import Group, Key, grouped, pooled
from llama_peft.training.rows import ClassificationRow as Row
from llama_peft.training.rows import Target

log = logging.getLogger(__name__)

SHARD = 4096
"""Texts in a shard: a kill costs no more than these."""
SUMS = "sums.json"
"""The sums of the shards of a pass that is not finished yet."""
_WORD = 16
"""Characters of a sum in a name, and of a text's."""
ORDER = "order.json"
"""The sums of the texts' token ids, in the order of the shards."""


Sums: TypeAlias = NDArray[numpy.bytes_]
"""The sum of a text's token ids, 16 bytes each."""


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
        self._shards = [_mapped(path)[_name(key)] for path in _shards(folder)]
        self._starts = [0, *accumulate(map(len, self._shards))]
        self._place = _places(_order(folder), _texts(rows))
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
    own = sha256_of(json.dumps([keys, _words(texts)]))[:_WORD]
    folder = make_folder(cache.parent, f"{cache.name}/{settings}-{own}")
    # Another run on the same texts waits, and then finds the states.
    with file_lock(folder.with_suffix(".lock")):
        sweep(folder)
        if is_sealed(folder):
            log.info("%s: features of %d texts are there already (%s)", part, len(rows), folder)
            return folder
        if (folder / SEAL).is_file():
            log.warning("%s is damaged; its features are computed again", folder)
            for path in (*_shards(folder), folder / SEAL):
                remove_file(folder, path.name)
        groups = grouped(recipe, rows, model)
        done = _finished(folder, groups)
        _check_disk(folder, (len(rows) - done) * len(keys), model)
        _fill(model, groups, folder, keys, done)
        members = (index for group in groups for index in group.members)
        order = texts[numpy.fromiter(members, numpy.int64)]
        write_text(folder, ORDER, json.dumps(_words(order)))
        seal(folder, [ORDER, SUMS, *(path.name for path in _shards(folder))])
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
    return sha256_of(json.dumps(settings, sort_keys=True))[:_WORD]


def _texts(rows: Iterable[Row]) -> Sums:
    """Return the sum of each text's token ids: these depend on the prompt and on max_length."""
    sums = (sha256_of(json.dumps(row["input_ids"]))[:_WORD].encode() for row in rows)
    return numpy.fromiter(sums, f"S{_WORD}")


def _words(sums: Sums) -> list[str]:
    return [one.decode() for one in sums.tolist()]


def _order(folder: Path) -> Sums:
    """Return the sums of the texts whose states a folder holds, in their order."""
    return numpy.array(json.loads(read_text(folder, ORDER)), f"S{_WORD}")


def _places(order: Sums, texts: Sums) -> "NDArray[numpy.int64]":
    """Return where each text stands in an order that has all of them; of equal ones the last."""
    ranks = numpy.argsort(order, kind="stable")
    return ranks[numpy.searchsorted(order, texts, "right", sorter=ranks) - 1]


def _covering(cache: Path, settings: str, texts: Sums, keys: tuple[Key, ...]) -> Path | None:
    """Return a sealed folder that holds the states of all texts at all keys, if there is one."""
    inside(cache.parent, cache.name)
    names = {_name(key) for key in keys}
    for folder in sorted(cache.glob(f"{settings}-*/")):
        try:
            inside(cache, folder.name)
            whole = bool(numpy.isin(texts, _order(folder)).all()) and is_sealed(folder)
            if whole and names <= _mapped(inside(folder, _shard_name(0))).keys():
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


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("states-*.safetensors"))


def _shard_name(number: int) -> str:
    return f"states-{number:05d}.safetensors"


def _mapped(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, memory-mapped."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _name(key: Key) -> str:
    return f"layer {key.layer}, {key.pooling}"


def _finished(folder: Path, groups: Sequence[Group]) -> int:
    """Return how many texts the whole shards hold; shards after the first gap are removed."""
    limits = {0, *_limits(groups)}
    sums = _sums(folder)
    done = 0
    for number, path in enumerate(_shards(folder)):
        size = 0
        known = path.name == _shard_name(number) and path.name in sums
        if known and sums[path.name] == sum_of(folder, path.name):
            size = len(next(iter(_mapped(path).values())))
        if size and done + size in limits:
            done += size
        else:
            remove_file(folder, path.name)
            limits = set()
    return done


def _sums(folder: Path) -> JsonObject:
    """Return the sums of the finished shards; a shard without a sum is computed again."""
    try:
        sums = read_json(folder, SUMS)
    except (OSError, ValueError):
        return {}
    return sums if isinstance(sums, dict) else {}


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
                _write_shard(folder, _shard_name(number), _tensors(held, keys, model.dtype))
                held, number = [], number + 1
            phase.reach(seen)
    model.train(was_training)


def _tensors(
    held: Sequence[Sequence[Tensor]], keys: Sequence[Key], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the states of some groups as the tensors of a shard."""
    return {
        _name(key): torch.cat([each[i] for each in held]).to(dtype).cpu().contiguous()
        for i, key in enumerate(keys)
    }


def _write_shard(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    with new_file(folder, name) as partial:
        save_file(tensors, partial)
        sums = _sums(folder) | {name: sha256(partial)}
    write_text(folder, SUMS, json.dumps(sums))
