"""The metrics as `evaluate.Metric` classes that need no network.

`evaluate.load(name)` fetches a script from the Hub, or runs one from the current directory if a
folder of that name is there. These classes do neither:

    from eval.metrics.drop_in import Rouge
    Rouge().compute(predictions=["a cat"], references=[["the cat", "a cat"]])

Names and arguments are those of the metrics on the Hub, as far as the library that computes a
number has them; any other argument is refused by name. Precision, recall and F1 pass
scikit-learn's arguments on; labels may be numbers or strings. A metric object is falsy while it
holds no examples, so `if metric` does not work.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import datasets
import evaluate
import numpy as np

from .columns import FloatArray
from .ids import check_unique
from .squad_v2 import squad_scores
from .words.overlap import ROUGE_TYPES, bleu_signature, corpus_bleu, meteor_name, meteor_score
from .words.wordnet import find_wordnet

Gold = str | Sequence[str]
"""One reference, or several."""
Label = str | int
_TEXT = datasets.Value("string")
_LABELS = [
    datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)})
    for kind in ("int64", "string")
]
_TEXTS = [
    datasets.Features({"predictions": _TEXT, "references": datasets.Sequence(_TEXT)}),
    datasets.Features({"predictions": _TEXT, "references": _TEXT}),
]
_ANSWERS = datasets.Sequence({"text": _TEXT, "answer_start": datasets.Value("int32")})
_REFERENCE = {"id": _TEXT, "answers": _ANSWERS}


class Answered(TypedDict):
    """A prediction of SQuAD; only version 2 has the probability."""

    id: str
    prediction_text: str
    no_answer_probability: float


class Answers(TypedDict):
    """The right answers to one question."""

    text: Sequence[str]


class Reference(TypedDict):
    """A reference of SQuAD."""

    id: str
    answers: Answers


class _OfflineMetric(evaluate.Metric):
    """A metric that is described by its class docstring and its `inputs`."""

    inputs: datasets.Features | list[datasets.Features]

    def _info(self) -> evaluate.MetricInfo:
        text = self.__doc__ or ""
        return evaluate.MetricInfo(
            description=text, citation="", inputs_description=text, features=self.inputs
        )


class Accuracy(_OfflineMetric):
    """The share of equal labels: {"accuracy"}; with `normalize=False` their number."""

    inputs = _LABELS

    def _compute(
        self,
        predictions: Sequence[Label],
        references: Sequence[Label],
        normalize: bool = True,
        sample_weight: Sequence[float] | None = None,
    ) -> dict[str, float]:
        from sklearn.metrics import accuracy_score

        score = accuracy_score(
            references, predictions, normalize=normalize, sample_weight=sample_weight
        )
        return {"accuracy": float(score)}


class _LabelScore(_OfflineMetric):
    inputs = _LABELS
    kind: str

    def _compute(
        self,
        predictions: Sequence[Label],
        references: Sequence[Label],
        labels: Sequence[Label] | None = None,
        pos_label: Label = 1,
        average: str | None = "binary",
        sample_weight: Sequence[float] | None = None,
        zero_division: float | str = 0,
    ) -> dict[str, float | FloatArray]:
        from sklearn.metrics import precision_recall_fscore_support

        scores = precision_recall_fscore_support(
            references,
            predictions,
            labels=labels,
            pos_label=pos_label,
            average=average,
            sample_weight=sample_weight,
            zero_division=zero_division,
        )
        score = scores[("precision", "recall", "f1").index(self.kind)]
        return {self.kind: score if average is None else float(score)}


class Precision(_LabelScore):
    """The share of right predictions among the predictions of a label: {"precision"}."""

    kind = "precision"


class Recall(_LabelScore):
    """The share of right predictions among the references of a label: {"recall"}."""

    kind = "recall"


class F1(_LabelScore):
    """The harmonic mean of precision and recall: {"f1"}."""

    kind = "f1"


class Squad(_OfflineMetric):
    """SQuAD 1.1's {"exact_match", "f1"} in percent.

    Predictions are {"id", "prediction_text"}, references {"id", "answers": {"text": [...]}}.
    """

    inputs = datasets.Features(
        {"predictions": {"id": _TEXT, "prediction_text": _TEXT}, "references": _REFERENCE}
    )

    def _compute(
        self, predictions: Sequence[Answered], references: Sequence[Reference]
    ) -> dict[str, float]:
        scores = squad_scores(_answers(predictions), _golds(references))
        return {"exact_match": scores["exact"], "f1": scores["f1"]}


class SquadV2(_OfflineMetric):
    """SQuAD 2.0's official scores, in percent.

    Predictions are {"id", "prediction_text", "no_answer_probability"}, references as in SQuAD 1.1.
    """

    inputs = datasets.Features(
        {
            "predictions": {
                "id": _TEXT,
                "prediction_text": _TEXT,
                "no_answer_probability": datasets.Value("float64"),
            },
            "references": _REFERENCE,
        }
    )

    def _compute(
        self,
        predictions: Sequence[Answered],
        references: Sequence[Reference],
        no_answer_threshold: float = 1.0,
    ) -> dict[str, float]:
        answers = _answers(predictions)
        probabilities = {p["id"]: p["no_answer_probability"] for p in predictions}
        golds = _golds(references)
        return squad_scores(answers, golds, probabilities, threshold=no_answer_threshold)


class _Overlap(_OfflineMetric):
    inputs = _TEXTS

    def _refuse(self, others: Mapping[str, object]) -> None:
        if others:
            raise ValueError(
                f"{type(self).__name__} does not take {', '.join(others)}: leave it out"
            )


class Bleu(_Overlap):
    """Corpus BLEU by sacrebleu as a fraction, and how it was computed: {"bleu", "signature"}.

    The Hub's max_order, smooth and tokenizer belong to another implementation and are refused.
    """

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Gold], **others: object
    ) -> dict[str, float | str]:
        self._refuse(others)
        bleu = corpus_bleu(predictions, [_listed(gold) for gold in references])
        return {"bleu": bleu, "signature": bleu_signature()}


class Rouge(_Overlap):
    """Mean ROUGE F-measures by rouge-score: {"rouge1", "rouge2", "rougeL", "rougeLsum"}.

    `rouge_types` are names of rouge-score; `use_aggregator=False` gives one value for each example.
    """

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Gold],
        rouge_types: Sequence[str] = ROUGE_TYPES,
        use_aggregator: bool = True,
        use_stemmer: bool = False,
        **others: object,
    ) -> dict[str, float | list[float]]:
        from rouge_score.rouge_scorer import RougeScorer

        self._refuse(others)
        scorer = RougeScorer(list(rouge_types), use_stemmer=use_stemmer)

        def scores(text: str, golds: Sequence[str]) -> list[float]:
            best = scorer.score_multi(golds, text)
            return [float(best[kind].fmeasure) for kind in rouge_types]

        rows = _best(predictions, references, scores, len(rouge_types))
        columns = rows.mean(axis=0) if use_aggregator else rows.T
        return dict(zip(rouge_types, columns.tolist(), strict=True))


class Meteor(_Overlap):
    """Mean METEOR by nltk: {"meteor"}, or {"meteor_no_wordnet"} if WordNet is not installed."""

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Gold],
        alpha: float = 0.9,
        beta: float = 3,
        gamma: float = 0.5,
        **others: object,
    ) -> dict[str, float]:
        self._refuse(others)
        wordnet = find_wordnet()

        def scores(text: str, golds: Sequence[str]) -> list[float]:
            return [meteor_score(text, golds, wordnet, alpha=alpha, beta=beta, gamma=gamma)]

        return {meteor_name(wordnet): float(_best(predictions, references, scores, 1).mean())}


def _listed(gold: Gold) -> list[str]:
    """The references of one example that are not empty."""
    return [text for text in ([gold] if isinstance(gold, str) else gold) if text]


def _best(
    predictions: Sequence[str],
    references: Sequence[Gold],
    scores: Callable[[str, Sequence[str]], list[float]],
    width: int,
) -> FloatArray:
    """(examples, width): the scores of each text.

    Without a reference, an empty text scores 1 and any other text 0.
    """
    return np.array(
        [
            scores(text, golds) if (golds := _listed(gold)) else [float(text == "")] * width
            for text, gold in zip(predictions, references, strict=True)
        ]
    )


def _answers(predictions: Sequence[Answered]) -> dict[str, str]:
    check_unique([p["id"] for p in predictions], "predictions")
    return {p["id"]: p["prediction_text"] for p in predictions}


def _golds(references: Sequence[Reference]) -> dict[str, list[str]]:
    check_unique([r["id"] for r in references], "references")
    return {r["id"]: list(r["answers"]["text"]) for r in references}
