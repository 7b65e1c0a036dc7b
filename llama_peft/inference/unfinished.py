"""Predictions that reach a file as they are made, so that interrupted work resumes.

A file is resumed only if it has the same key: whoever names the key puts into it everything that the
predictions depend on. Examples are predicted in portions, so that the tokens of a large file are
never in memory at once. A portion is the same rows whether the work was interrupted or not, and so
are its batches: the results are the same, bit for bit.
"""

import json
import logging
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TextIO

from pydantic import TypeAdapter

from llama_peft.data import Example
from llama_peft.errors import UserError
from llama_peft.inference.predict import Prediction
from llama_peft.system.files import append, inside, open_regular, parse_json
from llama_peft.system.memory import free_memory, is_out_of_memory
from llama_peft.system.progress import Phase
from llama_peft.system.terminal import one_line

log = logging.getLogger(__name__)

PORTION = 2048
"""Examples whose tokens are in memory at once. The windows of one question take about 60 KB."""
_LONGEST = 1 << 24
"""Bytes of a line that are read at most."""
_PREDICTION = TypeAdapter(Prediction)
Predict = Callable[[Sequence[Example], int], Iterator[list[Prediction]]]
"""Yields predictions by batch. The number is the size of a batch."""


def predictions(
    predict: Predict,
    examples: Sequence[Example],
    place: Path,
    key: str,
    batch_size: int,
    name: str,
) -> Iterator[list[Prediction]]:
    """Yield the predictions of one portion after the other, in the order of the examples.

    Those in the file `place` are not computed again. name: what progress and messages call the work.
    If memory runs out, the batch is halved. Raises UserError if even one example does not fit, or
    if there is not exactly one prediction for each example.
    """
    kept, missing = _Kept(place, key), Missing(predict, batch_size)
    file: TextIO | None = None
    with ExitStack() as stack:
        phase = stack.enter_context(Phase(name, "example", len(examples)))
        for first in range(0, len(examples), PORTION):
            portion = examples[first : first + PORTION]
            found = kept.take(portion)
            phase.skip(len(found))
            if len(found) < len(portion) and file is None:
                file = stack.enter_context(kept.open())
            for batch in missing.of(portion, found):
                assert file is not None, "it is open if anything is missing"
                for number, prediction in enumerate(batch, start=1):
                    file.write(_signed(_stored(prediction, number < len(batch))))
                    file.flush()
                phase.advance(len(batch))
            check_ids([one.id for one in found], [example.id for example in portion], name)
            by_id = {one.id: one for one in found}
            yield [by_id[example.id] for example in portion]


class Missing:
    """Computes what is missing, with batches that fit into memory."""

    def __init__(self, predict: Predict, batch_size: int) -> None:
        self.predict, self.batch_size = predict, batch_size

    def of(self, portion: Sequence[Example], found: list[Prediction]) -> Iterator[list[Prediction]]:
        """Yield the batches of a portion that are not found yet, and add them to what is found."""
        while True:
            known = {prediction.id for prediction in found}
            waiting = [example for example in portion if example.id not in known]
            try:
                for batch in self.predict(waiting, self.batch_size) if waiting else ():
                    found += batch
                    yield batch
                return
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve()
            free_memory()

    def _halve(self) -> None:
        if self.batch_size == 1:
            raise UserError(
                "memory is too small for one example at a time: lower train.max_length or "
                "eval.max_new_tokens, load in 4-bit, or use a smaller base; finished predictions "
                "are kept"
            )
        self.batch_size //= 2
        log.warning("memory ran out; the work goes on with batches of %d", self.batch_size)


class _Batch(NamedTuple):
    """Predictions that were computed together, and where they end in the file, in bytes."""

    predictions: list[Prediction]
    end: int


class _Kept:
    """The file of unfinished predictions: read by batches, then written behind the last whole one.

    A file of another key, a damaged line and what follows it do not count. A batch that is not whole
    in the file is computed again as a whole.
    """

    def __init__(self, place: Path, key: str) -> None:
        self.place, self.beginning = place, _signed({"key": key})
        self.end = 0
        self.batches = self._read()

    def take(self, portion: Sequence[Example]) -> list[Prediction]:
        """Return the predictions of a portion that the file holds."""
        waiting, found = {example.id for example in portion}, list[Prediction]()
        while waiting and (batch := next(self.batches, None)):
            ids = {prediction.id for prediction in batch.predictions}
            if not ids <= waiting or len(ids) < len(batch.predictions):
                self.batches.close()
            else:
                waiting -= ids
                found += batch.predictions
                self.end = batch.end
        return found

    def open(self) -> TextIO:
        """Open the file to write behind what counts."""
        self.batches.close()
        file = append(self.place.parent, self.place.name)
        file.truncate(self.end)
        if not self.end:
            file.write(self.beginning)
        return file

    def _read(self) -> Generator[_Batch, None, None]:
        try:
            opened = open_regular(inside(self.place.parent, self.place.name))
        except FileNotFoundError:
            return
        with opened as file:
            if file.readline(_LONGEST) != self.beginning.encode():
                return
            held: list[Prediction] = []
            while line := _line(file.readline(_LONGEST)):
                held.append(line.prediction)
                if not line.more:
                    yield _Batch(held, file.tell())
                    held = []


class _Line(NamedTuple):
    """A line of an unfinished file."""

    prediction: Prediction
    more: bool
    """Whether other predictions of its batch follow."""


def _stored(prediction: Prediction, more: bool) -> dict[str, object]:
    """Return the line of an unfinished file for a prediction."""
    known = {key: value for key, value in asdict(prediction).items() if value is not None}
    return {**known, "more": more}


def _line(raw: bytes) -> _Line | None:
    """Return a line as a prediction; None if it was torn or changed."""
    text = raw.decode("utf-8", "replace")
    if not text.endswith("\n") or _checksum(text[9:-1]) != text[:8]:
        return None
    try:
        values = parse_json(text[9:])
        more = values.get("more", True) if isinstance(values, dict) else True
        return _Line(_PREDICTION.validate_python(values), more is not False)
    except ValueError:  # the sum has no key, so a stranger can write any line
        return None


def _signed(line: Mapping[str, object]) -> str:
    """Return a line of an unfinished file: its checksum, and the values as JSON."""
    text = json.dumps(line, ensure_ascii=False)
    return f"{_checksum(text)} {text}\n"


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'replace')):08x}"


def check_ids(predicted: Sequence[str], asked: Sequence[str], source: str) -> None:
    """Raise UserError unless there is exactly one prediction for each example (law 8)."""
    given = set(predicted)
    counts = {
        "given twice": repeated(predicted),
        "missing": [id_ for id_ in asked if id_ not in given],
        "for no example": sorted(given - set(asked)),
    }
    faults = [
        f"{len(ids)} {fault} (first: {one_line(ids[0])})" for fault, ids in counts.items() if ids
    ]
    if faults:
        raise UserError(
            f"{source}: {len(predicted)} predictions for {len(asked)} examples: {'; '.join(faults)}"
        )


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that have occurred before in the same sequence."""
    seen: set[str] = set()
    found = []
    for name in names:
        if name in seen:
            found.append(name)
        seen.add(name)
    return found
