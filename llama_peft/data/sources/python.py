"""Reads rows that are given from Python: a list of dicts, a pandas DataFrame or a datasets.Dataset."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from llama_peft.data import formats
from llama_peft.data.formats import Table
from llama_peft.data.sources.hub import of_dataset
from llama_peft.errors import UserError
from llama_peft.recipe import Data

if TYPE_CHECKING:
    import datasets
    import pandas

Rows: TypeAlias = "Sequence[Mapping[str, object]] | pandas.DataFrame | datasets.Dataset"
"""Rows that are given from Python."""


def read_rows(rows: "Rows", data: Data, source: str = "rows") -> Table:
    """Return the rows of a list of dicts, a pandas DataFrame or a datasets.Dataset.

    Missing cells of pandas (NaN, NaT, NA) become empty cells. Numbers stay as they are.
    source: what messages call the rows.
    """
    # Who holds such an object has imported its library, so nothing heavy needs to be imported here.
    pandas, datasets = sys.modules.get("pandas"), sys.modules.get("datasets")
    if datasets is not None and isinstance(rows, datasets.Dataset):
        return of_dataset(source, rows)
    if pandas is not None and isinstance(rows, pandas.DataFrame):
        columns = [str(name) for name in rows.columns]
        formats.check_names(source, columns)
        cells = rows.itertuples(index=False, name=None)
        records = [dict(zip(columns, map(_cell, row), strict=True)) for row in cells]
        return formats.numbered(source, columns, records)
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        values = [_cell(row) for row in rows]
        return formats.of_list(source, values, data.format == "squad", data.on_bad_rows == "drop")
    expected = "a list of dicts, a pandas DataFrame or a datasets.Dataset"
    raise UserError(f"{source}: must be {expected}, not of type {type(rows).__name__}")


def _cell(value: object) -> object:
    """Return a value with Python's own types, as JSON would give it."""
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _cell(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_cell(inner) for inner in value]
    if isinstance(value, float) and value != value:
        return None
    if pandas is not None and (value is pandas.NA or value is pandas.NaT):
        return None
    return value
