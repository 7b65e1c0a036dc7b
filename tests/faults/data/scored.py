"""`llama-eval score`: predictions in every form score as the run's own, or do not match and are refused."""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.shop import Fault, Seen, Shop

from .case import as_csv, as_json, as_lines, says_so

LORA, SPAN = "classification + LoRA", "span + LoRA"
Lines = list[dict[str, Any]]


class Made(NamedTuple):
    """The predictions of a run's own evaluation, and the names of its labels."""

    lines: Lines
    labels: list[str]


def made(shop: Shop, kind: str) -> Made:
    lines = [json.loads(line) for line in (shop.tuned(kind) / "predictions.jsonl").open()]
    labels = sorted({line["gold"] for line in lines}) if kind == LORA else []
    return Made(lines, labels)


def _flat(its: Made) -> Lines:
    """As `predict` writes a CSV file."""
    return [
        {"id": line["id"], "label": line["prediction"]}
        | {f"probabilities.{k}": v for k, v in zip(its.labels, line["probabilities"], strict=True)}
        for line in its.lines
    ]


def _bare(its: Made) -> Lines:
    keys = ("id", "prediction", "probabilities", "no_answer_probability")
    return [{key: line[key] for key in keys if line.get(key) is not None} for line in its.lines]


def samples(its: Made) -> Lines:
    """As lm-evaluation-harness writes what it measured: log-likelihoods of the choices, as text."""
    found = []
    for number, line in enumerate(its.lines):
        scores = [[str(math.log(p)), "False"] for p in line["probabilities"]]
        doc = {"id": line["id"], "text": line["text"], "label": its.labels.index(line["gold"])}
        choices = {
            f"gen_args_{n}": {"arg_0": "", "arg_1": f" {w}"} for n, w in enumerate(its.labels)
        }
        found.append(
            {
                "doc_id": number, "doc": doc, "target": str(doc["label"]), "arguments": choices,
                "resps": [[score] for score in scores], "filtered_resps": scores, "filter": "none",
            }
        )  # fmt: skip
    return found


SAME: dict[str, tuple[str, str, Callable[[Made], bytes]]] = {
    "our lines in another order": (LORA, "a.jsonl", lambda its: as_lines(_bare(its)[::-1])),
    "lines in .json": (LORA, "a.json", lambda its: as_lines(_bare(its))),
    "a list": (LORA, "a.json", lambda its: as_json(_bare(its))),
    "CSV": (LORA, "a.csv", lambda its: as_csv(_bare(its))),
    "CSV as predict writes it": (LORA, "a.csv", lambda its: as_csv(_flat(its))),
    "TSV": (LORA, "a.tsv", lambda its: as_csv(_flat(its), "\t")),
    "CSV with a mark and Windows' lines": (
        LORA, "a.csv", lambda its: b"\xef\xbb\xbf" + as_csv(_flat(its), end="\r\n"),
    ),
    "samples of lm-eval": (LORA, "samples_x.jsonl", lambda its: as_lines(samples(its))),
    "samples of lm-eval in another order": (
        LORA, "samples_x.jsonl", lambda its: as_lines(samples(its)[::-1]),
    ),
    "answers": (SPAN, "a.jsonl", lambda its: as_lines(_bare(its))),
    "answers in CSV": (SPAN, "a.csv", lambda its: as_csv(_bare(its))),
}  # fmt: skip


def _change(row: int, **cells: Any) -> Callable[[Lines], Lines]:
    return lambda lines: [{**line, **cells} if n == row else line for n, line in enumerate(lines)]


def _doc(line: dict[str, Any], **cells: Any) -> dict[str, Any]:
    doc = {key: value for key, value in {**line["doc"], **cells}.items() if value is not None}
    return {**line, "doc": doc}


SAMPLES: dict[str, tuple[Callable[[Lines], Lines], str]] = {
    "one is missing": (lambda lines: lines[1:], "1 missing"),
    "one is given twice": (lambda lines: [*lines, lines[0]], "1 given twice"),
    "one of another data set": (lambda lines: [_doc(lines[0], id="x"), *lines[1:]], "no example"),
    "another text": (lambda lines: [_doc(lines[0], text="Another film."), *lines[1:]], "hold the text"),
    "texts of the next row": (
        lambda lines: [_doc(a, text=b["doc"]["text"]) for a, b in zip(lines, [*lines[1:], lines[0]], strict=True)],
        "does not hold the text",
    ),
    "no ids, and other numbers": (
        lambda lines: [_doc({**line, "doc_id": 99 + line["doc_id"]}, id=None) for line in lines],
        "cannot be matched",
    ),
    "two filters": (_change(0, filter="strict"), "several filters"),
    "nothing was given": (_change(0, filtered_resps=[]), "neither one text nor"),
    "a score is missing": (lambda lines: _change(0, filtered_resps=lines[0]["filtered_resps"][:1])(lines), "1 scores for 2"),
    "NaN": (_change(0, filtered_resps=[["nan", "False"]] * 2), "neither one text nor"),
    "other lines between": (lambda lines: [*lines, {"id": "1", "prediction": "x"}], "some lines are samples"),
    "choices in the wrong order": (
        lambda lines: [
            {**line, "target": str(1 - int(line["target"])), "arguments": {"a": {"x": "", "y": "A"}, "b": {"x": "", "y": "B"}}}
            for line in lines
        ],
        "not the number of the right label",
    ),
}  # fmt: skip
TABLES: dict[str, tuple[str, Callable[[Lines], bytes], str]] = {
    "a row is missing": ("a.csv", lambda lines: as_csv(lines[1:]), "1 missing"),
    "a row twice": ("a.csv", lambda lines: as_csv([*lines, lines[0]]), "1 given twice"),
    "another id": ("a.csv", lambda lines: as_csv(_change(0, id="x")(lines)), "1 for no example"),
    "no column id": ("a.csv", lambda lines: as_csv([{"film": r["id"], "label": r["label"]} for r in lines]), "no column id"),
    "no prediction": ("a.csv", lambda lines: as_csv([{"id": r["id"]} for r in lines]), "one of the labels"),
    "a probability above 1": ("a.csv", lambda lines: as_csv(_change(0, **{list(lines[0])[2]: 7})(lines)), "2 numbers from 0 to 1"),
    "a probability that is a word": ("a.csv", lambda lines: as_csv(_change(0, **{list(lines[0])[2]: "high"})(lines)), "probabilities"),
    "probabilities of one label": ("a.csv", lambda lines: as_csv([dict(list(r.items())[:3]) for r in lines]), "2 numbers from 0 to 1"),
    "semicolons": ("a.csv", lambda lines: as_csv(lines, ";"), "one column here|no column id|delimiter"),
    "empty": ("a.csv", lambda lines: b"", "empty"),
    "ragged": ("a.csv", lambda lines: b"id,label\n1\n", "not 2 cells like the header"),
    "JSON cut off": ("a.jsonl", lambda lines: as_lines(lines)[:-9], "cannot be read"),
    "an id twice in one object": ("a.json", lambda lines: b'{"a": "x", "a": "y"}', "occurs twice"),
    "binary": ("a.jsonl", lambda lines: bytes(range(256)), "cannot be read"),
}  # fmt: skip


def _words(shop: Shop, kind: str, path: Path, out: Path) -> list[str]:
    recipe = shop.tuned(kind).parent / "recipe.yaml"
    return ["score", "--task", str(recipe), "--predictions", str(path), "--output", str(out)]


def _numbers(folder: Path) -> dict[str, float]:
    (its,) = json.loads((folder / "results.json").read_text())["results"].values()
    return {key: value for key, value in its.items() if isinstance(value, float | int)}


def _same(name: str) -> Fault:
    kind, file, write = SAME[name]

    def inflict(shop: Shop, folder: Path) -> Seen:
        path, out = folder / file, folder / "out"
        path.write_bytes(write(made(shop, kind)))
        done = shop.run(_words(shop, kind, path, out), "eval")
        if done.code != 0:
            return Seen("traceback" if "Traceback" in done.text else "wrong", done.last_line)
        found, wanted = _numbers(out), _numbers(shop.tuned(kind))
        if kind == SPAN:  # those of selective prediction ask for answers that a threshold removed
            wanted = {k: v for k, v in wanted.items() if not re.search("aurc|_at_coverage", k)}
        far = [key for key in wanted if abs(found.get(key, math.inf) - wanted[key]) > 1e-6]
        return Seen("wrong" if far else "right", ", ".join(far) or "the same scores")

    return Fault(
        "data", f"score: {file}: {name}", inflict, cheap=name in ("CSV", "samples of lm-eval")
    )


def _refused(name: str, file: str, write: Callable[[Made], bytes], says: str) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        path, out = folder / file, folder / "out"
        path.write_bytes(write(made(shop, LORA)))
        seen = shop.refused(shop.run(_words(shop, LORA, path, out), "eval"))
        if (out / "results.json").exists():
            return Seen("wrong", "there are results")
        return says_so(seen, says)

    return Fault("data", f"score: {file}: {name}", inflict)


def _unknown(shop: Shop, folder: Path) -> Seen:
    """A text that is not a label, as models write it, is wrong, and the table shows how many are."""
    its = made(shop, LORA)
    path = folder / "a.csv"
    path.write_bytes(as_csv(_change(0, prediction="perhaps")(_bare(its))))
    done = shop.run(_words(shop, LORA, path, folder / "out"), "eval")
    right = done.code == 0 and _numbers(folder / "out")["unparsable"] == 1 / len(its.lines)
    told = "unparsable" in done.text
    return Seen("right" if right and told else "wrong", done.last_line)


def faults() -> Iterator[Fault]:
    yield from map(_same, SAME)
    yield Fault("data", "score: a.csv: an unknown label", _unknown)
    for name, (change, says) in SAMPLES.items():
        yield _refused(
            name, "samples_x.jsonl", lambda its, c=change: as_lines(c(samples(its))), says
        )
    for name, (file, write, says) in TABLES.items():
        yield _refused(name, file, lambda its, w=write: w(_flat(its)), says)
