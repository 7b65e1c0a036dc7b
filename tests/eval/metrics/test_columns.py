"""Columns are dicts in arrays: they hold the same, and every score of them is the same to the last bit."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from eval.metrics import columns, measure, squad_v2
from eval.metrics.columns import Coded, Column, held, texts
from eval.metrics.ids import check_match, check_unique, matched
from eval.metrics.intervals import measured, paired
from eval.metrics.measure import TaskResults
from llama_peft.system.sequences import arrays

LABELS = ["no", "maybe", "certainly yes"]
WORDS = ["the", "red", "house", "of", "Paris", "in", "1990", "日本"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (arrays, columns):
        monkeypatch.setattr(module, "PIECE", 7)
    monkeypatch.setattr(arrays, "_IN_MEMORY", 100)


def as_column(values: Mapping[str, Any]) -> Column[Any]:
    return Column(texts(values), held(values.values()))


@pytest.mark.parametrize(
    "make",
    [
        lambda drawn: (
            "" if drawn.random() < 0.2 else WORDS[drawn.randrange(8)] * drawn.randrange(5)
        ),
        lambda drawn: drawn.gauss(0, 1),
        lambda drawn: [drawn.choice(WORDS) for _ in range(drawn.randrange(4))],
        lambda drawn: [drawn.random() for _ in range(drawn.randrange(3))],
    ],
)
@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_a_column_holds_what_a_dict_holds(make: Callable[[Any], Any], count: int) -> None:
    drawn = random.Random(count)
    plain = {f"id {drawn.random()}": make(drawn) for _ in range(count)}
    column = as_column(plain)
    assert [*column] == [*plain] and [*column.values()] == [*plain.values()]
    assert dict(column.items()) == plain and all(column[key] == plain[key] for key in plain)
    order = np.array(drawn.sample(range(count), count // 2), dtype=np.int64)
    keys = [[*plain][place] for place in order]
    assert dict(column.at(order).items()) == {key: plain[key] for key in keys}
    assert [*column.each("x").values()] == ["x"] * count


def test_texts_that_are_few_are_held_as_numbers_of_them() -> None:
    names = [f"a passage of more than fifteen letters, {n}" for n in range(20)]
    for values, is_coded in (
        (names[:12] * 20, True),
        (names * 2, False),
        ([*map(str, range(999))], False),
    ):
        column = as_column({str(n): v for n, v in enumerate(values)})
        assert isinstance(column.held, Coded) is is_coded and [*column.values()] == values
        assert column.of(values[3]).tolist() == [n for n, v in enumerate(values) if v == values[3]]
        assert not len(column.of("unknown")) and column.known("unknown") is column
        rest = column.known(values[0])
        assert [*rest.values()] == [v for v in values if v != values[0]]
    with pytest.raises(ValueError, match="surrogates not allowed"):
        held(["\ud800"] * 9)


def test_values_of_several_types_are_refused() -> None:
    for values in (["a", 1.0], ["a", ["b"]], [["a"], [1.0]], [[["a"]]], ["a"] * 8 + [1.0]):
        with pytest.raises(ValueError, match="several types"):
            held(values)


def test_ids_that_do_not_match_are_named_as_those_of_dicts() -> None:
    golds = {str(n): "a" for n in range(20)}
    for given in ({**golds, "x": "b"}, dict(list(golds.items())[3:]), {}):
        said = []
        for one, other in ((given, golds), (as_column(given), as_column(golds))):
            with pytest.raises(ValueError, match="differ") as error:
                check_match(one, other)
            said.append(str(error.value))
        assert said[0] == said[1]
    twice = ["b", "a", "c", "a", "b"]
    with pytest.raises(ValueError, match=r"2 id\(s\) occur more than once: 'a', 'b'"):
        check_unique(texts(twice), "these")
    shuffled = as_column(dict(random.Random(0).sample([*golds.items()], 20)))
    assert [*matched(shuffled, as_column(golds))] == [("a", "a")] * 20


def results(side: str, wrap: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> TaskResults:
    """Every score of a side, of predictions in another order than the references."""
    drawn, ids = random.Random(3), [f"id {n * 37 % 61}" for n in range(61)]
    order = drawn.sample(ids, len(ids))

    def some(make: Callable[[], Any], keys: Sequence[str] = order) -> Mapping[str, Any]:
        return wrap({key: make() for key in keys})

    groups = some(lambda: f"g{drawn.randrange(9)}", ids[:50])
    chances = some(lambda: [round(drawn.random(), 1) for _ in LABELS])
    if side == "labels":
        labels = some(lambda: drawn.choice(LABELS), ids), some(lambda: drawn.choice(LABELS))
        return measure.classification_results(
            *labels[::-1], LABELS, chances, chances, groups=groups
        )
    if side == "label_sets":
        sets = [
            some(lambda: drawn.sample(LABELS, drawn.randrange(3)), keys) for keys in (order, ids)
        ]
        return measure.label_set_results(*sets, LABELS, chances, chances, groups=groups)
    if side == "numbers":
        numbers = [some(lambda: float(drawn.randrange(9)), keys) for keys in (order, ids)]
        return measure.number_results(*numbers, groups=groups)
    phrase = lambda: " ".join(drawn.choices(WORDS, k=drawn.randrange(4)))  # noqa: E731
    golds = some(lambda: [text for text in (phrase(), phrase()) if text], ids)
    silence = some(lambda: round(drawn.random(), 1))
    said, before = some(phrase), some(phrase)
    found = measure.answer_results(said, golds, silence, before=before, groups=groups)
    limits, scores = squad_v2.threshold_curve(before, golds, silence)
    return found | {"limits": limits.tolist(), "curve": scores.tolist()}


@pytest.mark.parametrize("side", ["labels", "label_sets", "numbers", "answers"])
def test_scores_of_columns_are_those_of_dicts_to_the_last_bit(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No id is looked up alone: that is a pass over all rows, and the scores of many would never end."""
    expected = results(side, dict)
    monkeypatch.delattr(Column, "__getitem__")
    monkeypatch.setattr(Column, "__abstractmethods__", frozenset())
    assert results(side, as_column) == expected and len(expected) > 5


def test_a_few_resamples_at_a_time_are_the_same_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    def compared() -> Mapping[str, object]:
        labels = results("labels", dict), results("numbers", dict)
        drawn = random.Random(5)
        golds, one, other = ({str(n): drawn.choice(LABELS) for n in range(40)} for _ in range(3))
        evidences = (measure.evidence_of("labels", said, golds, LABELS) for said in (one, other))
        return {"results": labels, "paired": paired(*evidences)}

    expected = compared()
    monkeypatch.setattr(measured, "_DRAWN", 9 * 61)
    assert compared() == expected
