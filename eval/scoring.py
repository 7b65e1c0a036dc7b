"""From examples and predictions to scores, and the two files that hold them. No model, no torch.

predictions.jsonl has one line for each example, sorted by id; results.json has the scores. The
evaluation of a model and the scoring of a user's file both end here: if predictions and examples do
not match id for id, no score is computed.
"""

import hashlib
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llama_peft import __version__, data
from llama_peft.data import Example, TextExample
from llama_peft.inference.predict import Prediction, decided, honest, tempered, tempered_each
from llama_peft.recipe import GIVEN, Recipe
from llama_peft.run_folder.layout import PREDICTIONS
from llama_peft.run_folder.results import (
    Costs,
    ModelConfig,
    Results,
    SampleCount,
    Scores,
    TaskSettings,
    write_results,
)
from llama_peft.run_folder.threshold import Threshold
from llama_peft.system.files import sum_of, write_text
from llama_peft.system.sequences.views import Joined
from llama_peft.tasks import Side

from .job import Job
from .lines import Lines, PredictionLine, Told, before_threshold, spooled
from .metrics.catalogue import higher_is_better as is_higher_better
from .metrics.catalogue import is_score
from .metrics.columns import Column, held, texts
from .metrics.measure import (
    Said,
    answer_results,
    classification_results,
    label_set_results,
    number_results,
    texts_of,
)
from .metrics.words.overlap import bleu_signature
from .results import task_name

_PACKAGES = (
    "torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "sacrebleu", "rouge_score", "nltk",
    "scikit-learn", "scipy",
)  # fmt: skip

_SCORED = ("split", "prediction", "probabilities", "no_answer_probability")
"""What a score needs of a line."""
_ENDS = re.compile(r"^(?:\W|(?:the|an?)\b)+|\W+$", re.IGNORECASE)
"""Articles and punctuation around an answer."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """The data of an evaluation."""

    dataset: data.Dataset
    parts: dict[str, Sequence[Example]]
    """The examples to evaluate by part; with a limit, a seeded sample of each part."""

    @property
    def labels(self) -> tuple[str, ...]:
        return self.dataset.labels

    @property
    def examples(self) -> Sequence[Example]:
        return Joined([*self.parts.values()])

    @property
    def located(self) -> Iterator[tuple[str, Example]]:
        """Yield each example behind the part that it belongs to."""
        return ((part, example) for part, its in self.parts.items() for example in its)

    def at(self, place: int) -> tuple[str, Example]:
        """Return the example at a place of `located`."""
        for part, its in self.parts.items():
            if place < len(its):
                return part, its[place]
            place -= len(its)
        raise IndexError(place)


def material(job: Job) -> Material:
    """Return the data of the recipe, or the user's own file as the only part."""
    dataset = _dataset(job)
    names = list(job.recipe.eval.splits) if job.data_file is None else ["data"]
    seed, size = job.recipe.dataset.seed, job.sample_size
    parts = {part: sample(dataset.parts[part], part, seed, size) for part in names}
    return Material(dataset=dataset, parts=parts)


def recipe_parts(job: Job, found: Material) -> dict[str, Sequence[Example]]:
    """Return the parts of the recipe's own data, also if another file is evaluated."""
    return (found.dataset if job.data_file is None else data.load(job.recipe, job.given)).parts


def sample(
    examples: Sequence[Example], part: str, seed: int, size: int | None
) -> Sequence[Example]:
    """Return at most `size` examples: the same ones, whichever other parts are evaluated."""
    if size is None:
        return examples
    sampler = random.Random(f"{seed} {part}")
    return sampler.sample(examples, min(size, len(examples)))


def _dataset(job: Job) -> data.Dataset:
    if job.data_file is None:
        return data.load(job.recipe, job.given)
    return data.load_file(job.recipe, job.data_file, job.data_split, job.given)


def gold(example: Example, labels: Sequence[str]) -> Said:
    """Return the name of the right label, the names of all right ones, the right number, or the right
    answers: none if there is no answer.
    """
    if not isinstance(example, TextExample):
        return [answer.text for answer in example.answers]
    if isinstance(example.label, tuple):
        return [labels[number] for number in example.label]
    return example.label if isinstance(example.label, float) else labels[example.label]


def group_of(example: Example) -> str | None:
    """Return a short name for what an example was drawn with: its group if the data name one, or the
    passage of a question; None if it was drawn alone.
    """
    key = example.group
    if not isinstance(example, TextExample):
        key = key or example.context or example.question
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16] if key else None


def too_long(
    examples: Sequence[Example], length: Callable[[str], int], recipe: Recipe, spans: bool
) -> str:
    """Return in one line how many questions no answer of the allowed length can match; empty if none.

    length: returns the number of tokens of an answer. spans: whether answers are spans. Articles and
    punctuation at the ends of an answer do not count, because exact match does not need them.
    """
    key = "max_answer_length" if spans else "max_new_tokens"
    limit = getattr(recipe.eval, key)
    lost = total = 0
    for example in examples:
        if isinstance(example, TextExample):
            continue
        own = [_ENDS.sub("", text) for text in texts_of(gold(example, ()))]
        lost += bool(own) and all(length(text) > limit for text in own)
        total += 1
    if not lost:
        return ""
    highest = 100 * (1 - lost / total)
    return (
        f"{lost:,} of {total:,} questions have only right answers of more than {limit} tokens,"
        f" so exact match can hardly exceed {highest:.2f}; raise eval.{key}"
    )


class About(NamedTuple):
    """What a line of predictions.jsonl holds of its example, whatever is predicted."""

    gold: Said
    text: str
    passage: str
    gold_starts: list[int] | None
    group: str | None


def about(example: Example, labels: Sequence[str]) -> About:
    """Return what a line of predictions.jsonl holds of an example."""
    passage, starts = "", None
    if not isinstance(example, TextExample):
        passage, starts = example.context, [answer.start for answer in example.answers]
    return About(gold(example, labels), example.asked[0], passage, starts, group_of(example))


def lines_of(
    predictions: Iterable[Prediction],
    found: Material,
    threshold: Threshold | None = None,
    prompt: Callable[[Example], str] = lambda example: "",
) -> Iterator[PredictionLine]:
    """Yield the lines of predictions.jsonl for a model's predictions, which are in the order of the
    examples.

    threshold: decides on "no answer", or on each label of a text that can have several. prompt:
    returns what the model read of an example.
    """
    for one, (part, example) in zip(predictions, found.located, strict=True):
        assert one.id == example.id, "predictions are in the order of the examples"
        said, chances = decided(one, threshold, found.labels), honest(one, threshold)
        yield PredictionLine(
            id=one.id,
            prediction=list(said) if isinstance(said, tuple) else said,
            probabilities=None if chances is None else list(chances),
            no_answer_probability=one.no_answer_probability,
            raw=one.raw,
            prompt=prompt(example),
            start=one.start,
            **about(example, found.labels)._asdict(),
            split=part,
        )


def score(
    told: Told,
    lines: Sequence[PredictionLine],
    examples: Sequence[Example],
    labels: Sequence[str],
    side: Side,
    no_answer: str = "",
    temperature: float | None = None,
) -> Scores:
    """Return the scores of one part, each with its interval.

    told: what the lines say. side: what is predicted. no_answer: the phrase that a model writes for
    it. temperature: that of the lines' probabilities. Raises ValueError unless predictions match the
    examples id for id.
    """
    ids = texts(example.id for example in examples)
    ids = told.ids if np.array_equal(ids, told.ids) else ids
    said, right = told.predictions.held, held(gold(example, labels) for example in examples)
    groups = Column[str](ids, held(group_of(example) or "" for example in examples)).known("")
    confidence = told.probabilities if len(told.probabilities) == len(told.ids) else None
    before = None
    if confidence is not None and temperature is not None:
        warm = tempered if side == "labels" else tempered_each
        without = ([*warm(own, 1 / temperature)] for own in confidence.values())
        before = Column[list[float]](told.ids, held(without))
    if side == "labels":
        labelled = Column[str](told.ids, said), Column[str](ids, right)
        found = classification_results(*labelled, labels, confidence, before, groups=groups)
    elif side == "label_sets":
        sets = Column[list[str]](told.ids, said), Column[list[str]](ids, right)
        found = label_set_results(*sets, labels, confidence, before, groups=groups)
    elif side == "numbers":
        numbers = Column[float](told.ids, said), Column[float](ids, right)
        found = number_results(*numbers, groups=groups)
    else:
        answers = Column[str](told.ids, said), Column[list[str]](ids, right)
        # A server may have told them for a part of the answers only.
        chances = told.no_answer_probabilities
        is_told = len(chances) == len(told.ids) > 0
        first = held(before_threshold(line, no_answer) for line in lines)
        whole = Column[str](told.ids, first)
        found = answer_results(*answers, chances if is_told else None, before=whole, groups=groups)
    return {name: [*value] if isinstance(value, list) else value for name, value in found.items()}


def finish(
    job: Job,
    found: Material,
    lines: Iterable[PredictionLine],
    config: ModelConfig,
    *,
    started: float,
    threshold: Threshold | None = None,
    peak_memory_bytes: int | None = None,
    costs: Costs | None = None,
    dtype: str | None = None,
) -> Results:
    """Score predictions, write both files into the job's folder, and return the results.

    config: what is recorded about the model. dtype: what its weights that are not quantised computed
    in; None if that is not known. started: the value of `time.monotonic` at the start.
    threshold: the threshold that the lines were made with.
    """
    job.output.mkdir(parents=True, exist_ok=True)
    names = {part: task_name(job.recipe.name, part) for part in found.parts}
    with spooled(job.output, lines) as kept:
        told = Told.of(kept, _SCORED)
        scores = {
            name: _score_part(job, found, told.at(places), kept.at(places), part, threshold)
            for part, name in names.items()
            for places in [told.of_part(part)]
        }
        ordered = kept.at(np.argsort(told.ids, kind="stable"))
        write_text(job.output, PREDICTIONS, ordered.texts())
    samples = {
        names[part]: SampleCount(original=len(found.dataset.parts[part]), effective=len(its))
        for part, its in found.parts.items()
    }
    results = Results(
        results=scores,
        configs=dict.fromkeys(scores, _settings(job, found.labels, threshold, dtype)),
        config=config,
        versions={"llama_peft": __version__} | {name: version(name) for name in _PACKAGES},
        n_samples=samples,
        dropped=found.dataset.dropped,
        higher_is_better={
            task: {name: is_higher_better(name) for name in its if is_score(name)}
            for task, its in scores.items()
        },
        git_hash=_git_hash(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        adapter_sha256=config.adapter_sha256,
        base_revision=config.base_fingerprint,
        peak_memory_bytes=peak_memory_bytes,
        wall_seconds=round(time.monotonic() - started, 3),
        costs=costs or Costs(),
        predictions_sha256=sum_of(job.output, PREDICTIONS),
    )
    write_results(job.output, results)
    return results


def _score_part(
    job: Job,
    found: Material,
    told: Told,
    lines: Lines,
    part: str,
    threshold: Threshold | None,
) -> Scores:
    side, no_answer = job.recipe.kind.side, job.recipe.prompt.no_answer
    temperature = None if threshold is None else threshold.temperature
    return score(told, lines, found.parts[part], found.labels, side, no_answer, temperature)


def _settings(
    job: Job, labels: Sequence[str], threshold: Threshold | None, dtype: str | None
) -> TaskSettings:
    recipe, limits = job.recipe, threshold or Threshold()
    is_ours = job.engine is None or job.engine.name == "vllm"  # else the server has its own weights
    return TaskSettings(
        labels=list(labels),
        task=recipe.kind.name,
        dataset=recipe.dataset.model_dump(mode="json"),
        data_file=job.data_file if isinstance(job.data_file, str | None) else GIVEN,
        data_split=job.data_split,
        prompt=recipe.prompt.model_dump(),
        quantization=recipe.quantization.model_dump() if is_ours else None,
        dtype=dtype,
        max_length=recipe.train.max_length,
        doc_stride=recipe.train.doc_stride,
        eval=recipe.eval.model_dump() | {"limit": job.sample_size},
        no_answer_threshold=limits.no_answer_threshold,
        label_thresholds=limits.label_thresholds,
        temperature=limits.temperature,
        bleu_signature=bleu_signature() if recipe.kind.side == "answers" else None,
    )


def _git_hash() -> str | None:
    """Return the commit of the project; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None
