"""`predict --data`: the rows of every file get the same predictions, in its order, and nothing is replaced."""

import functools
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.shop import KINDS, Done, Fault, Hook, Seen, Shop

from .case import QUESTIONS, TEXTS, Rows, as_csv, as_json, as_lines, says_so
from .labels import as_parquet

LORA, SPAN, WRITTEN = "classification + LoRA", "span + LoRA", "generative + LoRA"
ASKED: Rows = [{"id": f"row {n}", "text": row["text"]} for n, row in enumerate(TEXTS)]
QUERIES: Rows = [{key: row[key] for key in ("id", "question", "context")} for row in QUESTIONS]
PRECIOUS = "mine\n"


class Prediction(NamedTuple):
    """One prediction in a folder: its command, and what stood there before."""

    shop: Shop
    folder: Path
    kind: str = LORA

    def words(self, data: Path | str, *more: str) -> list[str]:
        return ["predict", str(self.shop.reference(self.kind)), "--data", str(data), *more]

    def write(self, name: str, raw: bytes) -> Path:
        (self.folder / name).write_bytes(raw)
        return self.folder / name

    def to(self, data: Path, output: Path, *more: str) -> list[str]:
        return self.words(data, "--output", str(output), *more)


def clean(shop: Shop, kind: str = LORA) -> list[dict[str, Any]]:
    """The predictions of the plain file, made once."""
    place = shop.root / f"clean {kind}.jsonl"
    if not place.exists():
        rows = ASKED if KINDS[kind][0] == "classification" else QUERIES
        one = Prediction(shop, shop.root, kind)
        done = shop.run(one.to(one.write(f"asked {kind}.json", as_json(rows)), place))
        assert done.code == 0, done.text
    return [json.loads(line) for line in place.open(encoding="utf-8")]


def _same(done: Done, found: list[Any], wanted: list[Any]) -> Seen:
    if done.code != 0:
        return Seen("traceback" if "Traceback" in done.text else "wrong", done.last_line)
    return Seen("right" if found == wanted else "wrong", "the same predictions")


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.open(encoding="utf-8")] if path.is_file() else []


FORMS: dict[str, tuple[str, str, Callable[[], bytes], list[str]]] = {
    "CSV": (LORA, "a.csv", lambda: as_csv(ASKED), []),
    "semicolons": (LORA, "a.csv", lambda: as_csv(ASKED, ";"), ["dataset.delimiter=;"]),
    "cp1252": (LORA, "a.csv", lambda: as_csv(ASKED, encoding="cp1252"), ["dataset.encoding=cp1252"]),
    "Parquet": (LORA, "a.parquet", lambda: as_parquet(ASKED), []),
    "JSON lines": (LORA, "a.json", lambda: as_lines(ASKED), []),
    "labels that are not read": (LORA, "a.csv", lambda: as_csv([{**r, "label": "?"} for r in ASKED]), []),
    "columns of other names": (
        LORA, "a.csv", lambda: as_csv([{"id": r["id"], "body": r["text"]} for r in ASKED]),
        ["dataset.columns.text=body"],
    ),
    "questions": (SPAN, "a.csv", lambda: as_csv(QUERIES), []),
    "questions with bad answers": (SPAN, "a.json", lambda: as_json([{**r, "answers": 7} for r in QUERIES]), []),
    "questions to write an answer to": (WRITTEN, "a.parquet", lambda: as_parquet(QUERIES), []),
}  # fmt: skip


def _form(name: str) -> Fault:
    kind, file, raw, overrides = FORMS[name]

    def inflict(shop: Shop, folder: Path) -> Seen:
        one, output = Prediction(shop, folder, kind), folder / "out.jsonl"
        wanted = clean(shop, kind)
        done = shop.run(one.to(one.write(file, raw()), output, *overrides))
        return _same(done, _lines(output), wanted)

    return Fault("data", f"predict: {file}: {name}", inflict, cheap=name == "CSV")


def _stdin(name: str, raw: Callable[[], bytes], right: bool) -> Fault:
    """The rows come through a pipe."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        one, wanted = Prediction(shop, folder), clean(shop)
        given, output = raw(), folder / "out.jsonl"

        def hook() -> None:
            sys.stdin = io.TextIOWrapper(io.BytesIO(given))

        done = shop.run(one.to(Path("-"), output), hook=hook)
        if not right:
            return _left(shop.refused(done), folder, "standard input", output)
        return _same(done, _lines(output), wanted)

    return Fault("data", f"predict: standard input: {name}", inflict)


def _left(seen: Seen, folder: Path, says: str, output: Path) -> Seen:
    """Wrong also if a refused command made its output."""
    if seen.verdict == "right" and output.exists():
        return Seen("wrong", "the output is there")
    return says_so(seen, says)


REFUSED: dict[str, tuple[str, str, Callable[[], bytes], list[str], str]] = {
    "an empty file": (LORA, "a.csv", lambda: b"", [], "the file is empty"),
    "a header alone": (LORA, "a.csv", lambda: b"id,text\n", [], "contains no rows"),
    "no column with texts": (LORA, "a.csv", lambda: b"id,words\n1,x\n", [], r"no column named text"),
    "some texts are empty": (LORA, "a.csv", lambda: b"id,text\n1,x\n2,\n", [], "1 row: empty text"),
    "an id twice": (LORA, "a.csv", lambda: b"id,text\n1,x\n1,y\n", [], r"columns\.id: null"),
    "no passage": (SPAN, "a.csv", lambda: b"question\nWho?\n", [], "no column named context"),
    "semicolons that no key names": (LORA, "a.csv", lambda: as_csv(ASKED, ";"), [], r'delimiter: ";"'),
    "gz cut off": (LORA, "a.csv.gz", lambda: b"\x1f\x8b\x08\x00", [], "cannot be unpacked"),
    "two columns for a run on one": (
        LORA, "a.csv", lambda: as_csv([{**row, "more": "x"} for row in ASKED]),
        ["dataset.columns.text=[text, more]"], "this run reads one text",
    ),
    "a key that the training fixed": (LORA, "a.csv", lambda: as_csv(ASKED), ["train.seed=3"], "fixed"),
}  # fmt: skip


def _refused(name: str) -> Fault:
    kind, file, raw, overrides, says = REFUSED[name]

    def inflict(shop: Shop, folder: Path) -> Seen:
        one, output = Prediction(shop, folder, kind), folder / "out.csv"
        done = shop.run(one.to(one.write(file, raw()), output, *overrides))
        return _left(shop.refused(done), folder, says, output)

    return Fault("data", f"predict: {file}: {name}", inflict)


def _foreign(one: Prediction, output: Path, outside: Path) -> None:
    output.write_text(PRECIOUS)


def _link(one: Prediction, output: Path, outside: Path) -> None:
    output.symlink_to(outside)


def _folder(one: Prediction, output: Path, outside: Path) -> None:
    output.mkdir()


def _edited(one: Prediction, output: Path, outside: Path) -> None:
    assert one.shop.run(one.to(one.folder / "a.csv", output)).code == 0
    output.write_text(output.read_text() + PRECIOUS)


def _changed(one: Prediction, output: Path, outside: Path) -> None:
    """The input changes after the prediction."""
    assert one.shop.run(one.to(one.folder / "a.csv", output)).code == 0
    one.write("a.csv", as_csv(ASKED[:5]))


OUTPUTS: dict[str, Callable[[Prediction, Path, Path], None]] = {
    "a file of the user": _foreign,
    "a link to a file of the user": _link,
    "a folder": _folder,
    "predictions that were edited": _edited,
    "predictions of other rows": _changed,
}


def _kept(name: str) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        one, output, outside = Prediction(shop, folder), folder / "out.csv", folder / "outside"
        outside.write_text(PRECIOUS)
        path = one.write("a.csv", as_csv(ASKED))
        OUTPUTS[name](one, output, outside)
        before = output.read_bytes() if output.is_file() else b""
        seen = says_so(shop.refused(shop.run(one.to(path, output))), "not replaced")
        after = output.read_bytes() if output.is_file() else b""
        if after != before or outside.read_text() != PRECIOUS:
            return Seen("lost", f"{name} was replaced")
        return seen

    return Fault(
        "data", f"predict: the output is {name}", inflict, cheap=name == "predictions of other rows"
    )


def _dies(after: int | None) -> Hook:
    """In a child: kill -9 after so many predictions, or right before the whole file gets its name."""
    from llama_peft.inference import batch, unfinished

    def hook() -> None:
        place: Any = batch.files if after is None else unfinished
        name = "publish" if after is None else "_stored"
        plain, done = getattr(place, name), count()

        def deadly(*of: Any) -> Any:
            if next(done) == (after or 0):
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*of)

        setattr(place, name, deadly)

    return hook


def _killed(name: str, hook: Callable[[], Hook], changed: bool = False) -> Fault:
    """changed: whether the input is another one when the same command is given again."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        one, output, wanted = Prediction(shop, folder), folder / "out.jsonl", clean(shop)
        asked = [dict(reversed(row.items())) for row in ASKED]
        first = asked if not changed else [{**row, "text": f"Not {row['text']}"} for row in asked]
        path = one.write("a.csv", as_csv(first))
        words = one.to(path, output, "train.per_device_eval_batch_size=2")
        done = shop.run(words, hook=hook())
        if done.code != -signal.SIGKILL or output.exists():
            return Seen("wrong", f"it was not killed, or wrote half a file: {done.last_line}")
        one.write("a.csv", as_csv(asked))
        done = shop.run(words)
        found = _lines(output)
        close = len(found) == len(wanted) and all(map(_close, found, wanted))
        return _same(done, [close], [True])

    return Fault("data", f"predict: killed {name}", inflict)


def _close(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows are equal, except for the order of additions in batches of other sizes."""
    chances = [row.get("probabilities", {}) for row in (one, other)]
    far = [abs(chances[0][name] - chances[1][name]) for name in chances[1]]
    return one["id"] == other["id"] and one["label"] == other["label"] and max(far) < 1e-5


def faults() -> Iterator[Fault]:
    yield from map(_form, FORMS)
    yield from map(_refused, REFUSED)
    yield from map(_kept, OUTPUTS)
    yield _stdin("CSV", lambda: as_csv(ASKED), right=True)
    yield _stdin("JSON", lambda: as_json(ASKED), right=True)
    yield _stdin("Parquet", lambda: as_parquet(ASKED), right=True)
    yield _stdin("nothing", lambda: b"", right=False)
    yield _stdin("binary", lambda: bytes(range(256)), right=False)
    yield _killed("before its first row", functools.partial(_dies, 0))
    yield _killed("after three rows", functools.partial(_dies, 3))
    yield _killed("before the file has its name", functools.partial(_dies, None))
    yield _killed("and the input changed", functools.partial(_dies, 3), changed=True)
