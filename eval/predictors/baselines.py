"""Baselines: what a model must beat before it is worth its cost. They need no base and no torch.

`majority` and `no-answer` are floors: they read nothing. `tf-idf` and `bm25` read the text and take
seconds.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from llama_peft import data
from llama_peft.data import Example, Label
from llama_peft.errors import UserError
from llama_peft.inference.predict import Output, Prediction, questions, texts
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import Baseline
from llama_peft.run_folder.results import ModelConfig
from llama_peft.tasks import Side

from . import bm25
from .predictor import Predictor

Parts = Mapping[str, Sequence[Example]]


def open_baseline(
    baseline: Baseline, recipe: Recipe, labels: tuple[str, ...], parts: Parts
) -> Predictor:
    """Return the predictor of a baseline. Raises UserError if it means nothing on these data.

    parts: the parts of the recipe's data.
    """
    opened: Mapping[Baseline, Callable[[], Predictor]] = {
        "majority": partial(_majority, recipe, labels, parts),
        "no-answer": partial(_no_answer, recipe, parts),
        "bm25": partial(_bm25, recipe, parts),
        "tf-idf": partial(_tf_idf, recipe, labels, parts),
    }
    return opened[baseline]()


def config_of(baseline: Baseline, recipe: Recipe) -> ModelConfig:
    """Return what results.json records about a baseline."""
    return ModelConfig(model_kind=baseline, recipe=recipe.name, model=baseline)


def train_sum(train: Sequence[Example], labels: tuple[str, ...]) -> str:
    """Return a sum of the examples that a baseline is fitted on."""
    return data.content_sum(data.Dataset(labels=labels, parts={"train": [*train]}))


def _majority(recipe: Recipe, labels: tuple[str, ...], parts: Parts) -> Predictor:
    """Return the floor that knows how often each label occurs in the train part, and nothing else."""
    train = parts["train"]
    said, shares = most_frequent(
        [example.label for example in texts(train)], labels, recipe.kind.side
    )
    return Predictor(
        config=config_of("majority", recipe),
        labels=labels,
        predict=partial(_always, said, shares),
        prompt=_nothing,
        fitted_on=train_sum(train, labels),
    )


def most_frequent(
    truths: Sequence[Label], labels: Sequence[str], side: Side
) -> tuple[Output, tuple[float, ...] | None]:
    """Return what is right most often, and the share of the texts that have each label.

    One label: the most frequent one, and the first of equally frequent ones. Several labels: those
    that give the best micro F1 if every text gets them. A number: the mean, which has no shares.
    """
    if side == "numbers":
        numbers = [truth for truth in truths if isinstance(truth, float)]
        return sum(numbers) / len(numbers), None
    sets = [truth if isinstance(truth, tuple) else (truth,) for truth in truths]
    counts = Counter(label for own in sets for label in own)
    shares = tuple(counts[number] / len(truths) for number in range(len(labels)))
    ordered = sorted(range(len(labels)), key=lambda number: -shares[number])
    if side == "labels":
        return labels[ordered[0]], shares

    def micro_f1(size: int) -> float:
        hits = sum(shares[number] for number in ordered[:size])
        return 2 * hits / (size + sum(shares)) if size else 0.0

    best = max(range(len(labels) + 1), key=micro_f1)
    return tuple(labels[number] for number in sorted(ordered[:best])), shares


def _tf_idf(recipe: Recipe, labels: tuple[str, ...], parts: Parts) -> Predictor:
    """Return the linear model on words. scikit-learn takes seconds to import, so only here."""
    from .tf_idf import TfIdf

    train = texts(parts["train"])
    opened = TfIdf(recipe=recipe, labels=labels, train=train)
    return Predictor(
        config=config_of("tf-idf", recipe),
        labels=labels,
        predict=opened.predict,
        prompt=opened.text,
        fits_threshold=recipe.kind.fits_threshold,
        fits_temperature=recipe.kind.fits_temperature,
        fit=opened.fit,
        fitted_on=train_sum(train, labels),
    )


def _no_answer(recipe: Recipe, parts: Parts) -> Predictor:
    """Return the floor that never answers. Raises UserError if every question has an answer."""
    if all(example.answers for its in parts.values() for example in questions(its)):
        raise UserError(
            "no-answer: every question of these data has an answer, so this baseline is never right"
        )
    return Predictor(
        config=config_of("no-answer", recipe),
        labels=(),
        predict=partial(_always, "", None),
        prompt=_nothing,
    )


def _bm25(recipe: Recipe, parts: Parts) -> Predictor:
    """Return the search for words of the question. Raises UserError if there are no passages."""
    if not any(example.context for its in parts.values() for example in questions(its)):
        raise UserError(
            "bm25: these questions have no passages, and this baseline searches in them"
        )
    return Predictor(
        config=config_of("bm25", recipe),
        labels=(),
        predict=bm25.predict,
        prompt=bm25.prompt,
        fits_threshold=True,
    )


def _always(
    said: Output, shares: tuple[float, ...] | None, examples: Sequence[Example], batch_size: int
) -> Iterator[list[Prediction]]:
    """Yield the same prediction for every example."""
    yield [Prediction(id=one.id, prediction=said, probabilities=shares) for one in examples]


def _nothing(example: Example) -> str:
    """Return what a floor reads of an example."""
    return ""
