"""Reads data sets of the Hub, and folders in the Hub's layout."""

import re
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, Field, ValidationError

from llama_peft.data import formats
from llama_peft.data.formats import Table
from llama_peft.errors import UserError
from llama_peft.recipe import Data
from llama_peft.system.files import inside, is_file, read_text
from llama_peft.system.numbers import first_fault
from llama_peft.system.sequences.spool import Spool

if TYPE_CHECKING:
    import datasets

_SPLITS, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_Model = TypeVar("_Model", bound=BaseModel)
_TOGETHER = 1000
"""Rows that are read at once."""


def read_hub(
    path: str,
    split: str,
    data: Data,
    name: str | None,
    advice: str = "set dataset.parts",
    limit: int | None = None,
) -> Table:
    """Return one split of a data set on the Hub, or of a folder in the Hub's layout.

    advice: what to do if there is no such split. limit: only so many rows are fetched, the first
    ones; None fetches all.
    """
    import datasets

    _check_meaning(path)
    arguments = {"split": split, "revision": data.revision}
    try:
        if (saved := _saved(Path(path), split)) is not None:
            first = saved if limit is None else saved.select(range(min(limit, len(saved))))
            return of_dataset(f"{path} ({split})", first)
        if limit is not None:
            stream = datasets.load_dataset(path, name, streaming=True, **arguments)
            return _of_stream(f"{path} ({split})", stream, limit)
        rows = datasets.load_dataset(path, name, **arguments)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{path}: {_hub_advice(path, error, advice)}") from None
    return of_dataset(f"{path} ({split})", rows)


class _Splits(BaseModel):
    """What `DatasetDict.save_to_disk` writes beside its splits."""

    splits: list[str]


class _File(BaseModel):
    filename: str


class _State(BaseModel):
    """What `Dataset.save_to_disk` writes beside its files."""

    files: list[_File] = Field(alias="_data_files")


def _saved(folder: Path, split: str) -> "datasets.Dataset | None":
    """Return a split of what `save_to_disk` wrote; None if the folder holds something else.

    split: also a slice or a sum, as the library writes them: train[:100], train+test. Raises
    ValueError if there is no such split, or UserError as `_loaded`.
    """
    import datasets

    splits = {"train": "."}
    if (folder / _SPLITS).is_file():
        splits = {name: name for name in _read(_Splits, folder, _SPLITS).splits}
    elif not (folder / _STATE).is_file():
        return None
    if split in splits:
        return _loaded(inside(folder, splits[split]))
    if not re.search(r"[\[+(]", split):
        raise ValueError(f'Unknown split "{split}". Should be one of {[*splits]}')
    every = {name: _loaded(inside(folder, place)) for name, place in splits.items()}
    lengths = {name: len(rows) for name, rows in every.items()}
    pieces = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    return datasets.concatenate_datasets(
        [every[one.splitname].select(range(one.from_, one.to) or range(0)) for one in pieces]
    )


def _loaded(folder: Path) -> "datasets.Dataset":
    """Return the rows of a folder of `Dataset.save_to_disk`.

    Only the files that it names are read: `map` leaves others there. Raises UserError if one is not a
    regular file below the folder, or if what `save_to_disk` wrote was changed.
    """
    import datasets

    _check_regular(folder, _STATE)
    state = _read(_State, folder, _STATE)
    for name in (_INFO, *(file.filename for file in state.files)):
        _check_regular(folder, name)
    try:
        return datasets.Dataset.load_from_disk(str(folder))
    except (LookupError, AttributeError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
    raise UserError(f"{folder}: {_STATE} or {_INFO} is not what save_to_disk writes ({why})")


def _check_regular(folder: Path, name: str) -> None:
    if not is_file(folder, name):
        raise UserError(f"{folder / name}: there is no regular file of this name")


def _read(model: type[_Model], folder: Path, name: str) -> _Model:
    """Return what a JSON file holds. Raises UserError with its first fault."""
    try:
        return model.model_validate_json(read_text(folder, name))
    except ValidationError as error:
        fault = first_fault(error, "the file")
    raise UserError(f"{folder / name}: this is not what save_to_disk writes: {fault}")


def split_names(path: str) -> list[str]:
    """Return the names of the splits of a data set on the Hub, or of a folder; [] if nothing says them."""
    import datasets

    try:
        if (Path(path) / _SPLITS).is_file():
            return _read(_Splits, Path(path), _SPLITS).splits
        return [*datasets.get_dataset_split_names(path)]
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError):
        return []


def _check_meaning(path: str) -> None:
    """Raise UserError for a name that the library takes for something else than the user may mean."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if path in _PACKAGED_DATASETS_MODULES:
        raise UserError(
            f"{path}: this is a file format of the datasets library, which would read the working "
            f"directory; write ./{path} for a folder, or owner/name for a data set on the Hub"
        )
    with suppress(HFValidationError):  # what cannot be a name on the Hub is a folder
        validate_repo_id(path)
        if Path(path).is_dir():
            raise UserError(
                f"{path}: this can be a folder here or a data set on the Hub; write ./{path} for "
                "the folder, or work in another directory for the data set"
            )


def of_dataset(source: str, rows: "datasets.Dataset") -> Table:
    """Return the rows of a data set."""
    blocks = (range(first, len(rows))[:_TOGETHER] for first in range(0, len(rows), _TOGETHER))
    records = Spool(chain.from_iterable(rows.select(block).to_list() for block in blocks))
    return formats.numbered(source, rows.column_names, records, _class_names(rows.features))


def _of_stream(source: str, stream: "datasets.IterableDataset", limit: int) -> Table:
    records = Spool(islice(stream, limit))  # `take` would open the next file, too
    columns = list(dict.fromkeys(name for record in records for name in record))
    return formats.numbered(source, columns, records, _class_names(stream.features or {}))


def _class_names(features: "Mapping[str, object]") -> dict[str, list[str]]:
    """Return the names of classes by column."""
    import datasets

    # In a column of lists, the feature of the list's items has the names.
    items = {name: getattr(each, "feature", each) for name, each in features.items()}
    return {
        name: each.names for name, each in items.items() if isinstance(each, datasets.ClassLabel)
    }


def _hub_advice(path: str, error: Exception, split_advice: str) -> str:
    """Return what happened, in one line, and what to do about it."""
    reason = " ".join(str(error).split()).rstrip(".")
    if "gated" in reason:
        page = f"https://huggingface.co/datasets/{path}"
        return f"{reason}: accept its terms at {page}, then run `hf auth login`"
    if "OfflineModeIsEnabled" in reason:
        return f"{reason}: unset HF_HUB_OFFLINE, or name local files under dataset.parts"
    if isinstance(error, ConnectionError):
        return f"{reason}: check the network, or name local files under dataset.parts"
    if "split" in reason:
        return f"{reason}: {split_advice}"
    if "config" in reason.lower():
        return f"{reason}: set dataset.name"
    if "doesn't exist" in reason:
        return (
            f"{reason}: check the name (there is no such file either); "
            "a private data set needs `hf auth login`"
        )
    return reason
