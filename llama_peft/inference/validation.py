"""How good a model is in the middle of its training, by what it predicts for the validation part.

The prediction is that of a finished run: answers are decoded, spans are searched. A no-answer
threshold is fitted on the same examples, as the evaluation of the run will do.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from llama_peft import scores
from llama_peft.data import Example, QuestionExample, TextExample
from llama_peft.inference.predict import Output, Prediction, of_logits, predict
from llama_peft.inference.unfinished import Missing
from llama_peft.run_folder.weights import TunedModel
from llama_peft.system.progress import Phase

if TYPE_CHECKING:
    from torch import Tensor


def validation_score(
    tuned: TunedModel, examples: Sequence[Example], states_ND: "Tensor | None"
) -> float:
    """Return the score that `train.metric_for_best_model` names.

    states_ND: what the head reads of each example; None unless it was computed before.
    """
    import torch

    found: list[Prediction] = []
    if states_ND is not None:
        with torch.inference_mode():
            logits = tuned.model.score(states_ND.to(tuned.model.device))
        ids = [example.id for example in examples]
        found = of_logits(ids, logits, tuned.labels, tuned.recipe.kind.side)
    else:
        size = tuned.recipe.train.per_device_eval_batch_size
        with Phase("validation", "example", len(examples)) as phase:
            for batch in Missing(partial(predict, tuned), size).of(examples, found):
                phase.advance(len(batch))
    by_id = {one.id: one for one in found}
    return score(tuned, examples, [by_id[example.id] for example in examples])


def score(tuned: TunedModel, examples: Sequence[Example], found: Sequence[Prediction]) -> float:
    """Return the score of one prediction for each example, in their order."""
    name, kind = tuned.recipe.train.metric_for_best_model, tuned.recipe.kind
    said = [one.prediction for one in found]
    if kind.side == "answers":
        return _answer_score(name, examples, found, tuned.recipe.fits_threshold)
    truth = [example.label for example in examples if isinstance(example, TextExample)]
    if kind.side == "numbers":
        return scores.number_score(name, _numbers(said), _numbers(truth))
    golds = [label if isinstance(label, tuple) else (int(label),) for label in truth]
    named = [tuple(tuned.labels[number] for number in numbers) for numbers in golds]
    return scores.label_score(name, [_labels(one) for one in said], named, tuned.labels)


def _answer_score(
    name: str, examples: Sequence[Example], found: Sequence[Prediction], fits: bool
) -> float:
    golds = {
        example.id: [answer.text for answer in example.answers]
        for example in examples
        if isinstance(example, QuestionExample)
    }
    answers = {one.id: str(one.prediction) for one in found}
    if fits:
        answers = {one.id: one.raw for one in found}
        chances = {one.id: one.no_answer_probability or 0.0 for one in found}
        limit = scores.fit_threshold(answers, golds, chances)
        answers = {id_: "" if chances[id_] > limit else text for id_, text in answers.items()}
    return scores.answer_score(name, answers, golds)


def _labels(said: Output) -> tuple[str, ...]:
    return said if isinstance(said, tuple) else (str(said),)


def _numbers(values: Iterable[object]) -> list[float]:
    return [float(value) for value in values if isinstance(value, int | float)]
