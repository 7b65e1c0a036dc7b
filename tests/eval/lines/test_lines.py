"""Lines on disk score as lines in memory, and a row takes tens of bytes."""

import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eval import scoring
from eval.lines import PredictionLine, Told, before_threshold, read_lines, spooled
from eval.metrics import columns, confidence, measure
from eval.metrics.intervals import measured
from eval.metrics.measure import TaskResults, texts_of
from llama_peft.data import Answer, Example, QuestionExample, TextExample
from llama_peft.inference.predict import tempered, tempered_each
from llama_peft.system.sequences import arrays
from llama_peft.tasks import Side

LABELS = ("no", "maybe", "certainly yes")
WORDS = ["the", "red", "house", "of", "Paris", "in", "1990"]


def plain_score(
    lines: Sequence[PredictionLine],
    examples: Sequence[Example],
    side: Side,
    no_answer: str,
    temperature: float | None,
) -> TaskResults:
    """The plain twin: everything in dicts."""
    said = {line.id: line.prediction for line in lines}
    truth = {example.id: scoring.gold(example, LABELS) for example in examples}
    groups = {example.id: one for example in examples if (one := scoring.group_of(example))}
    known = {line.id: line.probabilities or [] for line in lines}
    golds = {id_: texts_of(one) for id_, one in truth.items()}
    warm = tempered if side == "labels" else tempered_each
    before = (
        {id_: warm(own, 1 / temperature) for id_, own in known.items()} if temperature else None
    )
    if side == "labels":
        names = [{id_: str(one) for id_, one in values.items()} for values in (said, truth)]
        return measure.classification_results(*names, LABELS, known, before, groups=groups)
    if side == "label_sets":
        sets = {id_: texts_of(one) for id_, one in said.items()}
        return measure.label_set_results(sets, golds, LABELS, known, before, groups=groups)
    if side == "numbers":
        numbers = [
            {id_: one for id_, one in values.items() if isinstance(one, float)}
            for values in (said, truth)
        ]
        return measure.number_results(*numbers, groups=groups)
    answers = {id_: str(one) for id_, one in said.items()}
    chances = {line.id: line.no_answer_probability or 0.0 for line in lines}
    first = {line.id: before_threshold(line, no_answer) for line in lines}
    return measure.answer_results(answers, golds, chances, before=first, groups=groups)


def material(side: Side, count: int) -> tuple[list[Example], list[PredictionLine]]:
    """Examples, and what a model said of them in another order."""
    drawn, examples = random.Random(2), list[Example]()
    for number in range(count):
        id_ = f"example {number * 37 % count:05}"
        if side == "answers":
            words = drawn.choices(WORDS, k=6)
            answers = (Answer(words[1], 0), Answer(" ".join(words[1:3]), 0))
            kept = answers[: drawn.randrange(3)]
            context = f"passage {number // 4}"
            examples.append(QuestionExample(id=id_, context=context, question="?", answers=kept))
        else:
            label = {
                "labels": drawn.randrange(3),
                "label_sets": tuple(sorted(drawn.sample(range(3), drawn.randrange(3)))),
            }.get(side, drawn.gauss(0, 1))
            group = drawn.choice(["", "a", "b"])
            examples.append(TextExample(id=id_, text="text " * 9, label=label, group=group))
    lines = [_line(drawn, side, example) for example in examples]
    return examples, drawn.sample(lines, count)


def _line(drawn: random.Random, side: Side, example: Example) -> PredictionLine:
    """A line that is right half of the time."""
    right = scoring.gold(example, LABELS)
    said = {
        "labels": drawn.choice(LABELS),
        "label_sets": drawn.sample(LABELS, drawn.randrange(3)),
        "numbers": drawn.gauss(0, 1),
    }.get(side, drawn.choice(WORDS))
    if drawn.random() < 0.5 and side != "answers":
        said = right
    silence = drawn.random() if side == "answers" else None
    shares = [drawn.random() for _ in LABELS]
    return PredictionLine(
        id=example.id,
        prediction="" if silence is not None and silence > 0.6 else said,
        raw=said if isinstance(said, str) else None,
        no_answer_probability=silence,
        probabilities=[one / sum(shares) for one in shares] if side.startswith("label") else None,
        gold=right,
        split="test",
    )


@pytest.mark.parametrize("side", ["labels", "label_sets", "numbers", "answers"])
def test_lines_on_disk_score_as_those_in_memory_to_the_last_bit(side: Side, tmp_path: Path) -> None:
    examples, lines = material(side, 60)
    temperature = 1.5 if side.startswith("label") else None
    expected = plain_score(lines, examples, side, "unanswerable", temperature)
    with spooled(tmp_path, iter(lines)) as kept:
        assert [*kept] == lines and kept[7] == lines[7]
        found = scoring.score(
            Told.of(kept), kept, examples, LABELS, side, "unanswerable", temperature
        )
    assert found == expected and len(found) > 5
    assert not [*tmp_path.iterdir()], "nothing is left behind"


def test_lines_of_a_file_without_an_end_are_all_read(tmp_path: Path) -> None:
    _, lines = material("labels", 9)
    texts = [line.model_dump_json(exclude_none=True) for line in lines]
    place = tmp_path / "predictions.jsonl"
    place.write_text("\n".join(["", *texts[:5], "", *texts[5:]]), "utf-8")
    assert [*read_lines(place)] == lines
    assert [*read_lines(place)[2:4]] == lines[2:4]


def test_what_lines_say_comes_in_the_order_that_is_asked_for() -> None:
    _, lines = material("labels", 9)
    told = Told.of(lines)
    for order in ([*range(9)], [*range(9)][::-1], [5, 2]):
        found = told.at(np.array(order, dtype=np.int64))
        assert found.ids.tolist() == [lines[place].id for place in order]
        assert [*found.predictions.values()] == [lines[place].prediction for place in order]


def test_a_row_takes_hundreds_of_bytes_at_the_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above what a few rows and resamples take, which is the same for any number of rows."""
    draws = measured._draws
    monkeypatch.setattr(measured, "_DRAWN", 1)
    monkeypatch.setattr(measured, "_draws", lambda rows, units, _: draws(rows, units, 2))
    for module in (arrays, columns):
        monkeypatch.setattr(module, "PIECE", 50)
    monkeypatch.setattr(arrays, "_IN_MEMORY", 1_000)
    monkeypatch.setattr(confidence, "_BLOCK", 50)
    peaks, sizes = [], (500, 2500)
    for size in sizes:
        examples, lines = material("labels", size)
        with spooled(tmp_path, iter(lines)) as kept:
            tracemalloc.start()
            scoring.score(Told.of(kept), kept, examples, LABELS, "labels")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / (sizes[1] - sizes[0]) < 400
