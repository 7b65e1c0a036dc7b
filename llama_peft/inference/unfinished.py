"""Predictions that reach a file as they are made, so that interrupted work resumes.

A file is resumed only if it has the same key: whoever names the key puts into it everything that the
predictions depend on. Examples are predicted in portions, so that the tokens of a large file are
never in memory at once, and a portion in pieces, which several processes can share out. Portions and
pieces are the same whether the work was interrupted or not and whoever does it, and so are their
batches: the results are the same, bit for bit.
"""

import json
import logging
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TextIO

from pydantic import TypeAdapter

from llama_peft.data import Example, TextExample
from llama_peft.errors import UserError
from llama_peft.inference.predict import Prediction
from llama_peft.system.files import append, inside, open_regular, parse_json
from llama_peft.system.memory import free_memory, is_out_of_memory
from llama_peft.system.processes.job import numbered, numbered_files
from llama_peft.system.progress import Phase
from llama_peft.system.terminal import one_line
from llama_peft.tokens.batches import grouped

log = logging.getLogger(__name__)

PORTION = 2048
"""Examples whose tokens are in memory at once. The windows of one question take about 60 KB."""
_PIECE = 4
"""Batches of a piece. Prompts of so many are also what a causal model gets at once."""
_LOOK = 0.05
"""Seconds between two looks at what other processes have predicted."""
_LONGEST = 1 << 24
"""Bytes of a line that are read at most."""
_PREDICTION = TypeAdapter(Prediction)
_WRITTEN: dict[Path, str] = {}
"""The first line of each file that this process has written as one of several. Another one may still
wait for the end of that work, and would wait for ever if the file began with another key."""
Predict = Callable[[Sequence[Example], int], Iterator[list[Prediction]]]
"""Yields predictions by batch. The number is the size of a batch."""


class Share(NamedTuple):
    """Which process this one is of those that do the same work, from 0, and how many they are."""

    rank: int
    of: int


ALONE = Share(0, 1)


def predictions(
    predict: Predict,
    examples: Sequence[Example],
    place: Path,
    key: str,
    batch_size: int,
    name: str,
    share: Share = ALONE,
) -> Iterator[list[Prediction]]:
    """Yield the predictions of one portion after the other, in the order of the examples.

    Those in the file `place`, and in those of other processes beside it, are not computed again.
    name: what progress and messages call the work. share: of several processes, each computes its
    pieces of a portion and waits for those of the others.
    If memory runs out, the batch is halved. Raises UserError if even one example does not fit, or
    if there is not exactly one prediction for each example.
    """
    kept, missing = _Kept(place, key, share), Missing(predict, batch_size)
    with ExitStack() as stack:
        phase = stack.enter_context(Phase(name, "example", len(examples)))
        stack.callback(kept.close)
        for first in range(0, len(examples), PORTION):
            portion = examples[first : first + PORTION]
            found = kept.take(portion)
            phase.skip(len(found))
            own = pieces(portion, _PIECE * batch_size)[share.rank :: share.of]
            for piece in own:
                for batch in missing.of(piece, found):
                    kept.write(batch)
                    phase.advance(len(batch))
            for others in _awaited(kept, portion, own, found):
                found += others
                phase.advance(len(others))
            check_ids([one.id for one in found], [example.id for example in portion], name)
            by_id = {one.id: one for one in found}
            yield [by_id[example.id] for example in portion]


def _awaited(
    kept: "_Kept",
    portion: Sequence[Example],
    own: Sequence[Sequence[Example]],
    found: Sequence[Prediction],
) -> Iterator[list[Prediction]]:
    """Yield what other processes predict of a portion, as it comes, until nothing is missing.

    own: the pieces of this process.
    """
    here = {example.id for piece in own for example in piece} | {one.id for one in found}
    missing = {example.id for example in portion} - here
    while missing:
        time.sleep(_LOOK)
        new = [one for one in kept.take(portion) if one.id in missing]
        missing -= {one.id for one in new}
        yield new


def pieces(portion: Sequence[Example], size: int) -> list[list[Example]]:
    """Cut a portion into pieces of at most `size` examples, long ones first.

    The questions on one passage stay together, also if they are more.
    """
    families: dict[str, list[Example]] = {}
    for example in portion:
        families.setdefault(_family(example), []).append(example)
    ordered = sorted(families.items(), key=lambda row: -len(row[0]))
    return [[example for _, its in group for example in its] for group in grouped(ordered, size)]


def _family(example: Example) -> str:
    """Return the text that an example may share with others: a question's passage."""
    if isinstance(example, TextExample):
        return example.text
    return example.context or example.question


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
    """The files of unfinished predictions, one of each process: this one writes its own.

    All are read, because another number of processes may have begun the work.
    """

    def __init__(self, place: Path, key: str, share: Share) -> None:
        self.beginning = _signed({"key": key})
        self.own = _File(numbered(place, share.rank), self.beginning)
        names = {numbered(place, rank) for rank in range(share.of)} | {*numbered_files(place)}
        others = (_File(one, self.beginning) for one in sorted(names - {self.own.place}))
        self.files, self.is_shared = [self.own, *others], share.of > 1
        self.file: TextIO | None = None

    def take(self, portion: Sequence[Example]) -> list[Prediction]:
        """Return the predictions of a portion that have come into the files since the last time."""
        ids = {example.id for example in portion}
        found = {one.id: one for file in self.files for one in file.take(ids)}
        return list(found.values())

    def write(self, batch: Sequence[Prediction]) -> None:
        """Write predictions that were computed together behind what counts."""
        if self.file is None:
            if self.is_shared:
                known = _WRITTEN.setdefault(self.own.place, self.beginning)
                assert known == self.beginning, f"{self.own.place} serves one key"
            self.file = append(self.own.place.parent, self.own.place.name)
            self.file.truncate(self.own.end)
            if not self.own.end:
                self.file.write(self.beginning)
        for number, prediction in enumerate(batch, start=1):
            self.file.write(_signed(_stored(prediction, number < len(batch))))
            self.file.flush()

    def close(self) -> None:
        """Close the file that is written."""
        if self.file is not None:
            self.file.close()


class _File:
    """A file of unfinished predictions, read by batches up to the last whole one.

    A file of another key, a damaged line and what follows it do not count. A batch that is not whole
    in the file is computed again as a whole.
    """

    def __init__(self, place: Path, beginning: str) -> None:
        self.place, self.beginning = place, beginning.encode()
        self.end = 0
        """Where the last batch ends that was taken, in bytes."""

    def take(self, ids: Set[str]) -> list[Prediction]:
        """Return the predictions of the next batches, as long as all are for these examples."""
        found: list[Prediction] = []
        with closing(self._read()) as batches:
            for batch in batches:
                own = {prediction.id for prediction in batch.predictions}
                if not own <= ids or len(own) < len(batch.predictions):
                    break
                found += batch.predictions
                self.end = batch.end
        return found

    def _read(self) -> Generator[_Batch, None, None]:
        """Yield the batches that have not been taken: another process may have added some."""
        try:
            opened = open_regular(inside(self.place.parent, self.place.name))
        except FileNotFoundError:
            return
        with opened as file:
            if not self.end and file.readline(_LONGEST) != self.beginning:
                return
            file.seek(max(self.end, file.tell()))
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
