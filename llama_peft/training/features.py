"""Frozen features: the pooled states of every text, computed once, on which the head alone then trains.

The published baseline ran the frozen backbone again in every epoch. One pass suffices: in prefix-tree rows (texts that begin
alike share their beginning) or, as the plain twin, one text a row in batches of like length. States go to sealed shards beside
the runs, under a key of all that they depend on, and are memory-mapped; a pass that was killed goes on behind its last shard.

A head may read an inner layer: the states after block k, through the model's final norm. That is the model with
`num_hidden_layers: k`, which is how it is loaded again, here and in plain transformers; the blocks above are never run.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypedDict

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from llama_peft.errors import UserError
from llama_peft.model import heads
from llama_peft.model.fingerprint import base_fingerprint
from llama_peft.prefix_tree import pack as prefix_tree
from llama_peft.prefix_tree.mask import attention_inputs
from llama_peft.prefix_tree.pack import TreeRow
from llama_peft.recipe import Recipe
from llama_peft.system.disk import free_disk
from llama_peft.system.files import fsync, sha256, write_durably
from llama_peft.system.formatting import disk_space
from llama_peft.system.seal import SEAL, is_sealed, seal
from llama_peft.tokens.batches import batches, pad
from llama_peft.tokens.prompts import Encoded
from llama_peft.training.rows import ClassificationRow as Row

log = logging.getLogger(__name__)

SHARD = 4096
"""Texts a shard: what a kill can cost."""
ROW_TOKENS = 1024
BATCH_SIZE = 16
SUMS = "sums.json"
"""The sums of the shards of a pass that is not finished yet."""
ORDER = "order.json"
"""The numbers of the rows, in the order of the shards."""

# Shapes: B rows, T tokens, N texts, D hidden size, P poolings.


class Key(NamedTuple):
    """What states are of: a layer (-1: the last), and how tokens are pooled."""

    layer: int
    pooling: Literal["last", "mean"]


class FeatureRow(TypedDict):
    """The pooled state (D,) of a text, and the number of its label."""

    ids: list[str]
    features: Tensor
    labels: int


class FeatureBatch(TypedDict):
    """Feature rows as tensors, and the example ids of each row."""

    features: Tensor
    labels: Tensor
    ids: list[list[str]]


class States(Dataset[FeatureRow]):
    """The states of one part's rows, in their order."""

    def __init__(self, rows: Sequence[Row], folder: Path, key: Key) -> None:
        self._rows = rows
        self._shards = [_mapped(path)[_name(key)] for path in _shards(folder)]
        order = json.loads((folder / ORDER).read_text("utf-8"))
        places = [(s, i) for s, shard in enumerate(self._shards) for i in range(len(shard))]
        self._place = dict(zip(order, places, strict=True))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> FeatureRow:
        row = self._rows[index]
        shard, place = self._place[index]
        return FeatureRow(ids=row["ids"], features=self._shards[shard][place], labels=row["labels"])


class FeatureHead(nn.Module):
    """The head alone, on states that are computed already."""

    accepts_loss_kwargs = False

    def __init__(self, score: nn.Module) -> None:
        super().__init__()
        self.score = score.requires_grad_(True)

    def forward(self, features: Tensor, labels: Tensor) -> SequenceClassifierOutput:
        logits = self.score(features)
        return SequenceClassifierOutput(loss=heads.class_loss(logits, labels), logits=logits)


def collate(rows: Sequence[FeatureRow]) -> FeatureBatch:
    """Return states and labels as a batch."""
    return FeatureBatch(
        features=torch.stack([row["features"] for row in rows]),
        labels=torch.tensor([row["labels"] for row in rows]),
        ids=[row["ids"] for row in rows],
    )


def states(
    recipe: Recipe, model: PreTrainedModel, part: str, rows: Sequence[Row], folder: Path
) -> States:
    """The states of a part's rows: from the cache in `folder`, or computed and put there. Raises UserError where the disk
    is too small.
    """
    key = Key(-1, recipe.head.pooling)  # a model that ends at the chosen layer is loaded already
    return States(rows, compute(recipe, model, part, rows, folder, (key,)), key)


def cache_folder(run: Path) -> Path:
    """Beside the runs, so that another run on the same base and data finds it."""
    return run.parent / "features"


def compute(
    recipe: Recipe,
    model: PreTrainedModel,
    part: str,
    rows: Sequence[Row],
    cache: Path,
    keys: tuple[Key, ...],
) -> Path:
    """The folder of the sealed shards that hold the rows' states; what is missing is computed."""
    folder = cache / _digest(recipe, rows, keys, str(model.dtype))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(
        folder.with_suffix(".lock")
    ):  # another run on the same texts waits, and finds them
        return _computed(recipe, model, part, rows, folder, keys)


def _computed(
    recipe: Recipe,
    model: PreTrainedModel,
    part: str,
    rows: Sequence[Row],
    folder: Path,
    keys: tuple[Key, ...],
) -> Path:
    if is_sealed(folder):
        log.info("%s: features of %d texts are there already (%s)", part, len(rows), folder)
        return folder
    if (folder / SEAL).is_file():
        log.warning("%s is damaged; computing it again", folder)
        for path in (*_shards(folder), folder / SEAL):
            path.unlink()
    groups = _grouped(recipe, rows, model)
    done = _finished(folder, groups)
    todo = len(rows) - done
    _check_disk(folder, todo * len(keys) * model.config.get_text_config().hidden_size, model)
    log.info("%s: features of %d texts, %d of them done (%s)", part, len(rows), done, folder)
    _fill(model, rows, groups, folder, keys, done)
    order = [index for group in groups for index in group[0]]
    write_durably(folder / ORDER, json.dumps(order))
    seal(folder)
    return folder


def _digest(recipe: Recipe, rows: Sequence[Row], keys: tuple[Key, ...], dtype: str) -> str:
    settings = {
        "base": base_fingerprint(recipe),
        "layer": recipe.head.layer,
        "quantization": recipe.quantization.model_dump(),
        "dtype": dtype,
        "attention": recipe.model.attn_implementation,
        "rows": recipe.head.features,
        "keys": keys,
        "format": 1,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for row in rows:  # the ids hold prompt, tokenizer and cut
        digest.update(json.dumps([row["ids"], row["input_ids"]]).encode())
    return digest.hexdigest()[:24]


def _check_disk(folder: Path, numbers: int, model: PreTrainedModel) -> None:
    size = numbers * torch.finfo(model.dtype).bits // 8
    free = free_disk(folder)
    log.info("features take %.1f MB of disk", size / 1e6)
    if size > 0.95 * free:
        raise UserError(
            f"{folder}: features take {disk_space(size)} and {disk_space(free)} are free: make room, "
            "or set head.features: none, which runs the backbone in every epoch"
        )


Fed: TypeAlias = TreeRow | list[Sequence[int]]
Group = tuple[list[int], Fed]
"""Numbers of the rows, and what is fed to the model: a tree row, or their ids."""


def _grouped(recipe: Recipe, rows: Sequence[Row], model: PreTrainedModel) -> list[Group]:
    """The rows in the order in which they are computed; a group is one forward pass."""
    if recipe.head.features == "length_sorted":
        named = [(str(i), row["input_ids"]) for i, row in enumerate(rows)]
        return [
            ([int(name) for name, _ in batch], [ids for _, ids in batch])
            for batch in batches(named, BATCH_SIZE)
        ]
    encoded = [Encoded(str(i), tuple(row["input_ids"])) for i, row in enumerate(rows)]
    longest = max(len(row["input_ids"]) for row in rows)
    trees = prefix_tree.pack(encoded, max(ROW_TOKENS, longest))
    log.info("prefix trees: %s", prefix_tree.packing(trees))
    return [([int(name) for name in tree["ids"]], tree) for tree in trees]


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("states-*.safetensors"))


def _mapped(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, memory-mapped."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _name(key: Key) -> str:
    return f"layer {key.layer}, {key.pooling}"


def _finished(folder: Path, groups: Sequence[Group]) -> int:
    """How many texts whole shards hold already; anything behind the first gap is removed."""
    limits = {0, *_limits(groups)}
    sums = _sums(folder)
    done = 0
    for number, path in enumerate(_shards(folder)):
        size = 0
        if path.name == _shard_name(number) and sums.get(path.name) == sha256(path):
            size = len(next(iter(_mapped(path).values())))
        if size and done + size in limits:
            done += size
        else:
            path.unlink()
            limits = set()
    return done


def _sums(folder: Path) -> dict[str, str]:
    """Of the shards that a pass has finished; a shard without one is computed again."""
    try:
        return dict(json.loads((folder / SUMS).read_text("utf-8")))
    except (OSError, ValueError):
        return {}


def _limits(groups: Sequence[Group]) -> Iterator[int]:
    """After how many texts each shard ends: after the group that fills it."""
    held = total = 0
    for members, _ in groups:
        held, total = held + len(members), total + len(members)
        if held >= SHARD:
            yield total
            held = 0
    if held:
        yield total


def _shard_name(number: int) -> str:
    return f"states-{number:05d}.safetensors"


def _fill(
    model: PreTrainedModel,
    rows: Sequence[Row],
    groups: Sequence[Group],
    folder: Path,
    keys: tuple[Key, ...],
    done: int,
) -> None:
    """Compute the groups behind the first `done` texts and write their shards."""
    from tqdm import tqdm

    limits = set(_limits(groups))
    number = sum(limit <= done for limit in limits)
    seen = 0
    held: list[list[Tensor]] = []
    was_training = model.training
    model.eval()
    for members, fed in tqdm(groups, desc="features", unit="row", disable=None):
        seen += len(members)
        if seen <= done:
            continue
        held.append(_pooled(model, fed, keys))
        if seen in limits:
            named = {
                _name(key): torch.cat([each[i] for each in held]).to(model.dtype).cpu().contiguous()
                for i, key in enumerate(keys)
            }
            partial = folder / ".partial"
            save_file(named, partial)
            fsync(partial)
            sums = _sums(folder) | {_shard_name(number): sha256(partial)}
            os.replace(partial, folder / _shard_name(number))
            write_durably(folder / SUMS, json.dumps(sums))
            held, number = [], number + 1
    model.train(was_training)


@torch.inference_mode()
def _pooled(model: PreTrainedModel, fed: Fed, keys: tuple[Key, ...]) -> list[Tensor]:
    """(N, D) of each key, in float32, for the texts of one group."""
    if isinstance(fed, dict):
        batch = prefix_tree.collate([fed])
        subtree_end = batch["subtree_end"].to(model.device)
        position_ids = batch["position_ids"].to(model.device)
        ends = torch.tensor(fed["starts"], device=model.device)
        index = torch.arange(len(fed["input_ids"]), device=model.device)
        path_NT = (index <= ends[:, None]) & (ends[:, None] < subtree_end)
        inputs = {
            "input_ids": batch["input_ids"].to(model.device),
            "position_ids": position_ids,
            **attention_inputs(
                model.config.get_text_config(), subtree_end, position_ids, model.dtype
            ),
        }
    else:
        input_ids, mask_BT = pad(fed, model.config.pad_token_id)
        inputs = {
            "input_ids": input_ids.to(model.device),
            "attention_mask": mask_BT.to(model.device),
        }
    layers = _layer_states(model, inputs, {key.layer for key in keys})
    found = []
    for key in keys:
        states_BTD = layers[key.layer]
        if not isinstance(fed, dict):
            found.append(heads.pool(states_BTD, inputs["attention_mask"], key.pooling))
        elif key.pooling == "last":
            found.append(states_BTD[0, ends].float())
        else:
            weights_NT = path_NT.float()
            found.append(weights_NT @ states_BTD[0].float() / weights_NT.sum(1, keepdim=True))
    return found


def _layer_states(
    model: PreTrainedModel, inputs: dict[str, object], wanted: set[int]
) -> dict[int, Tensor]:
    """(B, T, D) after each wanted layer, through the final norm; -1 is the last."""
    inner = wanted - {-1}
    output = model.model(**inputs, use_cache=False, output_hidden_states=bool(inner))
    depth = model.config.get_text_config().num_hidden_layers
    found = {-1: output.last_hidden_state, depth: output.last_hidden_state}
    for layer in inner - {depth}:
        found[layer] = model.model.norm(output.hidden_states[layer])
    return found
