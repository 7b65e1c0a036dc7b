"""Labels in every writing: the same number or name is the same class, or the row is refused."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.faults.shop import Fault

from .case import TEXTS, Given, Rows, as_csv, as_json, as_lines, reads, refuses


def relabelled(names: Sequence[object]) -> Rows:
    """The rows with other words for their labels, which take turns within a class."""
    own = [names[n % len(names)] for n in range(2 * len(TEXTS))]
    return [{**row, "label": own[n]} for n, row in enumerate(TEXTS)]


def _file(name: str, rows: Rows) -> tuple[str, bytes]:
    write: dict[str, Callable[[Rows], bytes]] = {
        "csv": as_csv, "json": as_json, "jsonl": as_lines, "parquet": as_parquet,
    }  # fmt: skip
    return name, write[name.rpartition(".")[2]](rows)


def as_parquet(rows: Rows, names: Sequence[str] = ()) -> bytes:
    """As the datasets library writes it: with the names of the classes, if there are any."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([dict(row) for row in rows])
    if names:
        label = {"names": [*names], "_type": "ClassLabel"}
        features = {"text": {"dtype": "string", "_type": "Value"}, "label": label}
        about = {"info": {"features": features}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, buffer)
    return bytes(buffer.getvalue().to_pybytes())


SAME: dict[str, tuple[str, list[Any], str, list[Any], dict[str, Any]]] = {
    "1.0 and 2.0, tested on 1 and 2": ("a.csv", ["1.0", "2.0"], "b.csv", [1, 2], {}),
    "1 and 2, tested on 1.0 and 2.0": ("a.csv", [1, 2], "b.jsonl", [1.0, 2.0], {}),
    "1 beside 1.0": ("a.csv", ["1", "2", "1.0", "2.00"], "b.csv", ["1", "2"], {}),
    "numbers beside their texts": ("a.json", [1, 2, "1", "2", 1.0, "2.0"], "b.json", [1, 2], {}),
    "TRUE beside true and True": (
        "a.csv", ["FALSE", "TRUE", "false", "true"], "b.json", [False, True], {},
    ),
    "spaces around": ("a.csv", [" bad", "good "], "b.csv", ["bad", "good"], {}),
    "0 and 4": ("a.csv", [0, 4], "b.csv", ["0.0", "4.0"], {}),
    "-1 and 1": ("a.csv", [-1, 1], "b.json", [-1, 1], {}),
    "2 and 10, in the order of numbers": ("a.csv", [2, 10], "b.json", [2, 10], {}),
    "places of the recipe's names": (
        "a.csv", [0, 1], "b.csv", ["bad", "good"], {"labels": ["bad", "good"]},
    ),
    "places written as 0.0 and 1.0": (
        "a.csv", ["0.0", "1.0"], "b.csv", ["bad", "good"], {"labels": ["bad", "good"]},
    ),
    "names beside places": (
        "a.csv", ["bad", "good", 0, 1], "b.csv", ["0", "1"], {"labels": ["bad", "good"]},
    ),
    "numbers that the recipe names": ("a.csv", [1, 5], "b.csv", ["1.0", "5"], {"labels": ["1", "5"]}),
    "Parquet, tested on CSV": ("a.parquet", [0, 1], "b.csv", [0, 1], {}),
    "Parquet with fractions": ("a.parquet", [0.0, 1.0], "b.parquet", [0, 1], {}),
}  # fmt: skip
WRONG: dict[str, tuple[str, list[Any], str]] = {
    "fractions": ("a.csv", [0.25, 0.75, 1], "number and not a class"),
    "fractions in JSON": ("a.json", [0.25, 0.75], "number and not a class"),
    "lists": ("a.json", [["rude"], ["rude", "toxic"]], "several values"),
    "lists in the words of Python": ("a.csv", ["['rude']", "['rude', 'toxic']"], "several values"),
    "objects": ("a.json", [{"x": 1}, {"x": 2}], "several values"),
    "NaN": ("a.json", [float("nan"), 1], "empty label"),
    "an infinity": ("a.json", [float("inf"), 1], "neither a word nor a number"),
    "null": ("a.json", [None, 1], "empty label"),
    "half a Unicode letter": ("a.json", ["\ud800", "x"], "surrogate"),
}
NAMES = ("bad", "good")


def _between() -> Iterator[Fault]:
    """Labels that train and test do not share."""
    cases: dict[str, tuple[list[Any], list[Any], dict[str, Any], str]] = {
        "a class only in test": ([0, 1], [0, 1, 2], {}, "label is not one of 0, 1"),
        "names against places": (["bad", "good"], [0, 1], {}, "not one of bad, good"),
        "a code that begins with 0": (["01", "02"], [1, 2], {}, "not one of 01, 02"),
        "a place beyond the names": (
            [0, 1, 2],
            [0, 1],
            {"labels": [*NAMES]},
            "out of range 0 to 1",
        ),
        "-1 beside places": ([0, 1, 0, -1], [0, 1], {"labels": [*NAMES]}, "-1 is not a class here"),
        "another name": (["bad", "fine"], ["bad", "good"], {"labels": [*NAMES]}, "not one of bad"),
        "another case": (["bad", "good"], ["Bad", "Good"], {}, "not one of bad, good"),
        "names that are one number": ([1, 2], [1, 2], {"labels": ["1", "1.0"]}, "same label"),
    }
    for name, (own, other, keys, says) in cases.items():
        test = _file("b.json", relabelled(other))
        file, raw = _file("a.csv", relabelled(own))
        yield refuses(f"labels: {name}", Given("texts", file, raw, test, keys), says)


def _class_labels() -> Iterator[Fault]:
    """Parquet with the names of its classes."""
    raw = as_parquet(TEXTS, NAMES)
    for other in (["bad", "good"], [0, 1]):
        named = other[0] == "bad"
        test = _file("b.csv", relabelled(other)) if named else ("b.parquet", raw)
        tested = "names in CSV" if named else "Parquet"
        yield reads(
            f"labels: ClassLabel, tested on {tested}", Given("texts", "a.parquet", raw, test)
        )
    keys = {"labels": ["awful", "great"]}
    test = _file("b.csv", relabelled(keys["labels"]))
    yield reads("labels: ClassLabel with other names", Given("texts", "a.parquet", raw, test, keys))
    hidden = ("b.parquet", as_parquet(relabelled([-1]), NAMES))
    yield refuses(
        "labels: ClassLabel, hidden in test", Given("texts", "a.parquet", raw, hidden), "-1"
    )


def faults() -> Iterator[Fault]:
    for name, (file, own, test, other, keys) in SAME.items():
        given = Given("texts", *_file(file, relabelled(own)), _file(test, relabelled(other)), keys)
        yield reads(f"labels: {name}", given, cheap=name.startswith("1.0 and"))
    for name, (file, own, says) in WRONG.items():
        given = Given("texts", *_file(file, relabelled(own)))
        yield refuses(f"labels: {name}", given, says)
    yield from _between()
    yield from _class_labels()
