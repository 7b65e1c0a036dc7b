"""The sample files of lm-evaluation-harness (`samples_TASK_DATE.jsonl`) as predictions.

A line holds a row of the task (`doc`), its number (`doc_id`), and what the model gave (`resps`, and
`filtered_resps` after the task's filter): a text, or a log-likelihood with a mark for each choice.
The harness writes its numbers as text.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from llama_peft.data import Example
from llama_peft.data.labels import label_key
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.system.files import JsonObject

from ..scoring import gold


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the samples are held against."""

    recipe: Recipe
    labels: Sequence[str]
    examples: Sequence[Example]


def is_sample(value: JsonValue) -> bool:
    """Whether a line of a file is a sample of lm-evaluation-harness."""
    return isinstance(value, dict) and "doc_id" in value and isinstance(value.get("doc"), dict)


def from_samples(values: Sequence[JsonValue], path: Path, asked: Asked) -> Iterator[JsonObject]:
    """Yield the id, the prediction and the scores of each sample.

    Raises UserError if a sample cannot be matched with an example, or cannot be read.
    """
    samples = [value for value in values if isinstance(value, dict) and is_sample(value)]
    if len(samples) < len(values):
        raise UserError(f"{path}: some lines are samples of lm-evaluation-harness and some are not")
    filters = sorted({str(sample.get("filter")) for sample in samples})
    if len(filters) > 1:
        raise UserError(
            f"{path}: holds the results of several filters ({', '.join(filters)}); keep the lines of one"
        )
    by_id = {example.id: example for example in asked.examples}
    numbered = _numbered(asked.examples)
    for number, sample in enumerate(samples, start=1):
        place = f"{path}: prediction {number}"
        example = by_id.get(found := _id(sample, place, asked, numbered))
        if example is not None:  # ids without an example are counted later
            _check_text(sample, place, asked, example)
        yield {"id": found, **_prediction(sample, place, asked, example)}


def _numbered(examples: Sequence[Example]) -> dict[int, str]:
    """Return the ids by row, from 1, if they were made from the numbers of the rows of one part."""
    parts = [example.id.rpartition("-") for example in examples]
    is_one = len({part for part, _, _ in parts}) == 1
    if not is_one or not all(number.isdecimal() for _, _, number in parts):
        return {}
    return {int(number): f"{part}-{number}" for part, _, number in parts}


def _id(sample: JsonObject, place: str, asked: Asked, numbered: Mapping[int, str]) -> str:
    """Return the id of a sample's example: that of its row, or the one made from the row's number."""
    names = asked.recipe.dataset.columns.names("id")
    own = _cell(sample, names)
    if own is not None:
        return str(own)
    row = sample["doc_id"]
    if isinstance(row, int) and row + 1 in numbered:
        return numbered[row + 1]
    raise UserError(
        f"{place} (doc_id {row}) cannot be matched: its doc has no {' or '.join(names) or 'id'}, and "
        "the examples are not numbered like its data; give the same data with --data, or set "
        "dataset.columns.id to the column that both have"
    )


def _check_text(sample: JsonObject, place: str, asked: Asked, example: Example) -> None:
    """Raise UserError unless the row of a sample asks what its example asks."""
    kind, columns = asked.recipe.kind, asked.recipe.dataset.columns
    text = _cell(sample, columns.names("text" if kind.has_labels else "question"))
    words = " ".join(str(text or "").split())
    if not words or words not in " ".join(example.asked[0].split()):
        raise UserError(
            f"{place} (doc_id {sample['doc_id']}) cannot be matched: its doc does not hold the text "
            f"of example {example.id}; give the same data with --data"
        )


def _cell(sample: JsonObject, names: Sequence[str]) -> JsonValue:
    doc = sample["doc"]
    return (
        next((doc[name] for name in names if name in doc), None) if isinstance(doc, dict) else None
    )


def _prediction(
    sample: JsonObject, place: str, asked: Asked, example: Example | None
) -> dict[str, JsonValue]:
    """Return what the model gave: the likeliest choice, or the text that it wrote."""
    given = sample.get("filtered_resps", sample.get("resps"))
    responses = given if isinstance(given, list) else [given]
    scores = [score for one in responses if (score := _score(one)) is not None]
    if asked.labels and responses and len(scores) == len(responses):
        return _choice(sample, scores, place, asked, example)
    texts = [text for one in responses if (text := _text(one)) is not None]
    if len(texts) != 1 or len(scores) > 1:
        raise UserError(
            f"{place} (doc_id {sample['doc_id']}): its responses are neither one text nor a "
            "log-likelihood for each choice"
        )
    # squadv2 also asks how likely the words are that mean "no answer".
    silence = {"no_answer_probability": min(1.0, math.exp(scores[0]))} if scores else {}
    return {"prediction": texts[0].strip(), "raw": texts[0], **silence}


def _score(response: JsonValue) -> float | None:
    """Return the log-likelihood of a response: a number, and whether greedy decoding gives it."""
    if isinstance(response, list) and len(response) == 1 and isinstance(response[0], list):
        return _score(response[0])  # not filtered
    if not isinstance(response, list) or len(response) != 2:
        return None
    number, greedy = response
    if str(greedy) not in ("True", "False") or not isinstance(number, str | int | float):
        return None
    try:
        return None if math.isnan(float(number)) else float(number)
    except ValueError:
        return None


def _text(response: JsonValue) -> str | None:
    if isinstance(response, list) and len(response) == 1:
        return _text(response[0])
    return response if isinstance(response, str) else None


def _choice(
    sample: JsonObject,
    scores: Sequence[float],
    place: str,
    asked: Asked,
    example: Example | None,
) -> dict[str, JsonValue]:
    """Return the label of the likeliest choice, and the share of each label, as `acc` counts."""
    labels = asked.labels
    written, best = _choices(sample), max(scores)
    order = _order(written, labels, asked.recipe.prompt.verbalizers or labels)
    if len(scores) != len(labels) or not math.isfinite(best):
        raise UserError(
            f"{place} (doc_id {sample['doc_id']}): it has {len(scores)} scores for "
            f"{len(labels)} labels, or none of them is a number"
        )
    if order is None:
        _check_target(sample, place, labels, example)
        order = list(range(len(labels)))
    shares = [math.exp(score - best) for score in scores]
    chances: list[JsonValue] = [shares[order.index(i)] / sum(shares) for i in range(len(labels))]
    chosen = scores.index(best)
    return {"prediction": labels[order[chosen]], "probabilities": chances}


def _choices(sample: JsonObject) -> list[str]:
    """Return the text of each choice: the second argument of each request."""
    given = sample.get("arguments")
    requests = list(given.values()) if isinstance(given, dict) else given
    found = []
    for request in requests if isinstance(requests, list) else ():
        words = list(request.values()) if isinstance(request, dict) else request
        found.append(str(words[1]) if isinstance(words, list) and len(words) > 1 else "")
    return found


def _order(written: Sequence[str], labels: Sequence[str], words: Sequence[str]) -> list[int] | None:
    """Return the number of the label that each choice means; None if the choices do not name labels."""
    for names in (labels, words):
        numbers = {label_key(name): number for number, name in enumerate(names)}
        found = [numbers.get(label_key(choice.strip()), -1) for choice in written]
        if sorted(found) == list(range(len(labels))):
            return found
    return None


def _check_target(
    sample: JsonObject, place: str, labels: Sequence[str], example: Example | None
) -> None:
    """Raise UserError unless the number of the right choice is that of the right label.

    Choices such as A and B do not name labels, so their order must be that of the labels.
    """
    target = str(sample.get("target"))
    right = labels[int(target)] if target.isdecimal() and int(target) < len(labels) else None
    if example is not None and right != gold(example, labels):
        raise UserError(
            f"{place} (doc_id {sample['doc_id']}): its choices do not name the labels "
            f"{', '.join(labels)}, and its target {target} is not the number of the right label; set "
            "dataset.labels in the order of the choices, or prompt.verbalizers to their words"
        )
