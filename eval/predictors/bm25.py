"""A few words of the passage as the answer: a cheap baseline for questions, which learns nothing.

1. The sentence of the passage with the highest BM25 for the question (Robertson and Zaragoza 2009,
   "The Probabilistic Relevance Framework", equation 3.15), counted over the sentences of the passage.
2. In it, the run of words that the question does not hold and that begins nearest to the last word
   that it holds: of words with digits if the question asks how many; of those or capitalised words
   if it asks when; of capitalised words if it asks who or where. If there are none of these, of any
   words. At most 6 words are taken.
3. A sentence of usual length that holds each word of the question once has a score. The less of it
   is reached, the likelier is "no answer"; the threshold is fitted on validation, as for a span
   head.

The words that it knows are English. In other languages rule 2 falls back to any words.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from llama_peft.data import Example, QuestionExample
from llama_peft.inference.predict import Prediction, questions

_SATURATION, _LENGTH = 1.2, 0.75
"""BM25's k1 and b."""
_LONGEST = 6
_SENTENCE = re.compile(r"(?:[^.!?。！？\n]|[.!?](?!\s|$))+[.!?。！？]*")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\d[\d.,]*\d|[^\W_]+(?:['’-][^\W_]+)*")
"""A number, a word, or one character of a script without spaces."""
_FUNCTION_WORDS = (
    "a an the of in on at to for by with from as and or but if is are was were be been being do does did has have "
    "had can could will would may might that this these those it its he his she her they their them there "
    "who whom whose what which when where why how many much name one"
)
_COMMON = frozenset(_FUNCTION_WORDS.split())
_MANY = re.compile(r"\bhow (many|much|old|long|far|tall|large|big|high)\b|\b(percentage|number)\b")
_WHEN = re.compile(r"\bwhen\b|\b(what|which) (year|date|day|month|century|decade)\b")
_WHO = re.compile(r"\b(who|whom|whose|where)\b|\b(what|which) (city|country|state|person|name)\b")


class Word(NamedTuple):
    """A word of a passage, and where it stands."""

    text: str
    start: int
    end: int

    @property
    def stem(self) -> str:
        return stem(self.text)

    @property
    def is_common(self) -> bool:
        return self.text.casefold() in _COMMON

    @property
    def has_digit(self) -> bool:
        return any(map(str.isdecimal, self.text))

    @property
    def is_capitalised(self) -> bool:
        return self.text[0].isupper()


def stem(word: str) -> str:
    """Return what equal words of different endings share: the first five letters."""
    return word.casefold()[:5]


def words_of(text: str, start: int = 0, end: int | None = None) -> list[Word]:
    """Return the words of a piece of a text."""
    found = _WORD.finditer(text, start, len(text) if end is None else end)
    return [Word(one[0], one.start(), one.end()) for one in found]


def predict(examples: Sequence[Example], batch_size: int) -> Iterator[list[Prediction]]:
    """Yield all answers at once."""
    yield [answer(example) for example in questions(examples)]


def prompt(example: Example) -> str:
    """Return what is read of an example."""
    (one,) = questions([example])
    return f"{one.context}\n{one.question}"


def answer(example: QuestionExample) -> Prediction:
    """Return the span of the passage that answers a question, and how likely there is none."""
    sentences = [
        words_of(example.context, *one.span()) for one in _SENTENCE.finditer(example.context)
    ]
    asked = {word.stem for word in words_of(example.question) if not word.is_common}
    scores = bm25(asked, [[word.stem for word in words] for words in sentences])
    best = max(range(len(scores)), key=scores.__getitem__, default=None)
    run = [] if best is None else short_run(sentences[best], asked, example.question)
    said = example.context[run[0].start : run[-1].end] if run else ""
    silence = 1 - scores[best] if run and best is not None else 1.0
    return Prediction(
        id=example.id,
        prediction=said if silence <= 0.5 else "",
        no_answer_probability=silence,
        raw=said,
        start=run[0].start if run else None,
    )


def bm25(asked: set[str], sentences: Sequence[Sequence[str]]) -> list[float]:
    """Return the score of each sentence as a share of that of a sentence of mean length which holds
    each word of the question once; at most 1.
    """
    held = [Counter(stems) for stems in sentences]
    among = Counter(stem for own in held for stem in own)
    weights = {
        one: math.log(1 + (len(held) - among[one] + 0.5) / (among[one] + 0.5))
        for one in sorted(asked)
    }
    mean = sum(map(len, sentences)) / max(1, len(sentences)) or 1.0
    usual = sum(weights.values())
    found = []
    for own, stems in zip(held, sentences, strict=True):
        room = _SATURATION * (1 - _LENGTH + _LENGTH * len(stems) / mean)
        score = sum(
            weight * own[one] * (_SATURATION + 1) / (own[one] + room)
            for one, weight in weights.items()
        )
        found.append(min(1.0, score / usual) if usual else 0.0)
    return found


def short_run(sentence: Sequence[Word], asked: set[str], question: str) -> list[Word]:
    """Return the run of new words of the kind that the question asks for, nearest to its last word."""
    last = max((word.start for word in sentence if word.stem in asked), default=0)
    new = [word for word in sentence if word.stem not in asked]
    kind = _wanted(question.casefold())
    runs = _runs(sentence, {*filter(kind, new)}) or _runs(sentence, {*new})
    nearest = min(runs, key=lambda run: abs(run[0].start - last), default=[])
    return nearest[:_LONGEST]


def _wanted(question: str) -> Callable[[Word], bool]:
    """Return whether a word can be part of what a question asks for."""
    if _MANY.search(question):
        return lambda word: word.has_digit
    if _WHEN.search(question):
        return lambda word: word.has_digit or word.is_capitalised
    if _WHO.search(question):
        return lambda word: word.is_capitalised
    return lambda word: True


def _runs(sentence: Sequence[Word], fitting: set[Word]) -> list[list[Word]]:
    """Return the runs of words that fit, without common words at their ends."""
    runs: list[list[Word]] = [[]]
    for word in sentence:
        follows = bool(runs[-1]) and word.start - runs[-1][-1].end <= 1
        if not follows:
            runs.append([])
        if word in fitting or (follows and word.is_common):
            runs[-1].append(word)
        else:
            runs.append([])
    return [trimmed for run in runs if (trimmed := _trimmed(run))]


def _trimmed(run: list[Word]) -> list[Word]:
    while run and run[0].is_common:
        run = run[1:]
    while run and run[-1].is_common:
        run = run[:-1]
    return run
