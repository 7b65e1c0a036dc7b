"""Worked examples: solved examples in the prompt of a model that is not fine-tuned.

`eval.num_fewshot: auto` tries a few numbers on a sample of validation, and takes the best one.
"""

import hashlib
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice, zip_longest

from llama_peft.data import Dataset, Example, QuestionExample, TextExample
from llama_peft.errors import UserError
from llama_peft.inference.predict import Prediction, Shots
from llama_peft.run_folder.layout import RESULTS, UNFINISHED_VALIDATION
from llama_peft.run_folder.results import FewShotChoice, read_results
from llama_peft.system.processes.job import shares_work
from llama_peft.system.progress import Phase
from llama_peft.tasks import MAIN

from .job import Job
from .metrics.evidence import scores_of
from .metrics.measure import Said, evidence_of
from .predictions import Evaluation, evaluation_key, predict
from .predictors.predictor import Predictor
from .scoring import Material, gold, recipe_parts, sample

log = logging.getLogger(__name__)

_SAMPLE = 200
"""Validation examples that a number is tried on, at most."""
_SECONDS = 600
"""No further number is tried if it would probably take longer than this altogether. Several processes
have several clocks and must try the same ones, so they try all.
"""
_ROUNDS = (1, 2, 4)
"""The numbers that are tried, as multiples of one example of each kind."""


def worked_examples(job: Job, found: Material) -> Shots | None:
    """Return the function that chooses the worked examples of an example; None if there are none."""
    wanted = job.recipe.eval.num_fewshot
    if not wanted or wanted == "auto":
        return None
    if job.recipe.eval.fewshot_from == "passage":
        earlier = earlier_questions(found.dataset, wanted)
        return lambda example: earlier[example.id]
    ordered = in_turns(recipe_parts(job, found)["train"], job.recipe.dataset.seed)

    def choose(example: Example) -> list[Example]:
        """Return the first ones without those that ask the same, because they hold the answer."""
        return list(islice((shot for shot in ordered if shot.asked != example.asked), wanted))

    return choose


def earlier_questions(dataset: Dataset, wanted: int) -> dict[str, list[Example]]:
    """Return by id the last questions before each question on its passage, in the data's order."""
    found: dict[str, list[Example]] = {}
    passages: dict[str, list[Example]] = {}
    for example in chain.from_iterable(dataset.parts.values()):
        if not isinstance(example, QuestionExample):
            raise UserError(
                "eval.fewshot_from: passage works only for questions on passages; set it to train"
            )
        before = passages.setdefault(example.context, [])
        found[example.id] = [shot for shot in before if shot.asked != example.asked][-wanted:]
        before.append(example)
    return found


def in_turns(train: Sequence[Example], seed: int) -> list[Example]:
    """Return examples in a seeded order that alternates between labels.

    Questions alternate between those with and those without an answer.
    """
    kinds: dict[object, list[Example]] = {}
    for example in random.Random(seed).sample(train, len(train)):
        kind = example.label if isinstance(example, TextExample) else bool(example.answers)
        kinds.setdefault(kind, []).append(example)
    turns = chain.from_iterable(zip_longest(*kinds.values()))
    return [example for example in turns if example is not None]


def with_best_number(evaluation: Evaluation, again: bool) -> Evaluation:
    """Return the evaluation with the number of worked examples that is best on validation, if it is
    auto.

    again: whether to choose even if the folder holds results of the same choice.
    """
    predictor = evaluation.predictor
    if evaluation.job.recipe.eval.num_fewshot != "auto" or predictor.with_shots is None:
        return evaluation
    trial = _Trial(evaluation)
    earlier = None if again else _earlier(evaluation.job, trial.key)
    choice = earlier or trial.choice()
    job = _with(evaluation.job, choice.chosen)
    chosen = predictor.with_shots(choice.chosen, worked_examples(job, evaluation.found))
    config = chosen.config.model_copy(update={"fewshot_choice": choice})
    return replace(evaluation, job=job, predictor=replace(chosen, config=config))


def _with(job: Job, wanted: int) -> Job:
    """Return the job with so many worked examples."""
    return replace(job, recipe=job.recipe.changed(eval={"num_fewshot": wanted}))


def _earlier(job: Job, key: str) -> FewShotChoice | None:
    """Return the choice that the results in the job's folder are made with, if it is the same one."""
    try:
        found = read_results(job.output / RESULTS).config.fewshot_choice
    except (OSError, ValueError, UserError):
        return None
    return found if found is not None and found.key == key else None


class _Trial:
    """Several numbers of worked examples on the same sample of the recipe's validation part."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        job, dataset = evaluation.job, evaluation.found.dataset
        parts = recipe_parts(job, evaluation.found)
        if not parts.get("validation"):
            raise UserError(
                "eval.num_fewshot: auto needs a validation part to choose on; set "
                "dataset.validation_size, or write a number"
            )
        self.examples = sample(parts["validation"], "validation", job.recipe.dataset.seed, _SAMPLE)
        self.job = replace(job, data_file=None)
        self.found = Material(
            dataset=replace(dataset, parts=parts), parts={"validation": self.examples}
        )
        self.left_out: dict[str, str] = {}
        self.predictors = dict(self._fitting())
        self.key = self._key()

    def _fitting(self) -> Iterator[tuple[int, Predictor]]:
        """Yield the numbers that leave room for as much of each example as no worked example does."""
        plain = self.evaluation.predictor
        kinds = {"answers": 2, "numbers": 4}.get(self.job.recipe.kind.side, len(plain.labels))
        cut = self._cut(plain)
        for wanted in (rounds * kinds for rounds in _ROUNDS):
            assert plain.with_shots is not None
            found = plain.with_shots(wanted, worked_examples(_with(self.job, wanted), self.found))
            if self._cut(found) > cut:
                self.left_out[str(wanted)] = "the prompts are too long for the model"
            else:
                yield wanted, found

    def _cut(self, predictor: Predictor) -> int:
        """Return how many prompts are cut; all of them if one has no room for its example at all."""
        assert predictor.reads_whole is not None
        try:
            return sum(not predictor.reads_whole(example) for example in self.examples)
        except UserError:
            return len(self.examples) + 1

    def _key(self) -> str:
        digest = hashlib.sha256(repr(sorted(self.left_out)).encode())
        for found in self.predictors.values():
            own = replace(self.evaluation, job=self.job, predictor=found)
            digest.update(evaluation_key(own, self.found.parts).encode())
        return digest.hexdigest()

    def choice(self) -> FewShotChoice:
        """Try the numbers in turn, and return the one with the best score; the lowest of equal ones."""
        started, tried = time.monotonic(), dict[int, float]()
        took = 0.0
        with Phase("choosing worked examples", "number", len(self.predictors)) as phase:
            for wanted in self.predictors:
                spent = time.monotonic() - started
                if tried and spent + 2 * took > _SECONDS and not shares_work():
                    self.left_out[str(wanted)] = f"it would take more than {_SECONDS // 60} minutes"
                    continue
                tried[wanted] = self._score(wanted)
                took = time.monotonic() - started - spent
                phase.advance()
        if not tried:
            raise UserError(
                "eval.num_fewshot: auto found no number of worked examples that the model has room "
                "for; set it to 0"
            )
        metric = MAIN[self.job.recipe.kind.side][0]
        chosen = max(tried, key=tried.__getitem__)
        for wanted, score in tried.items():
            log.info("%d worked examples: %s %.4g on validation", wanted, metric, score)
        return FewShotChoice(
            metric=metric,
            examples=len(self.examples),
            tried={str(wanted): score for wanted, score in tried.items()},
            left_out=self.left_out,
            chosen=chosen,
            seconds=round(time.monotonic() - started, 3),
            key=self.key,
        )

    def _score(self, wanted: int) -> float:
        """Return the main metric of a number. Its predictions stand behind those of smaller ones in
        one file, from which an interrupted choice goes on.
        """
        numbers = [number for number in self.predictors if number <= wanted]
        asked = [
            replace(example, id=f"{number} {example.id}")
            for number in numbers
            for example in self.examples
        ]
        together = replace(self.evaluation.predictor, predict=self._predict)
        size = self.job.recipe.train.per_device_eval_batch_size
        partial = self.job.output / UNFINISHED_VALIDATION
        found = [*predict(together, asked, partial, self.key, size)]
        said: dict[str, Said] = {
            one.id: list(one.prediction) if isinstance(one.prediction, tuple) else one.prediction
            for one in found[-len(self.examples) :]
        }
        labels, side = self.evaluation.predictor.labels, self.job.recipe.kind.side
        golds = {one.id: gold(one, labels) for one in asked[-len(self.examples) :]}
        scores = scores_of(evidence_of(side, said, golds, labels))
        return scores.get(MAIN[side][0], 0.0)

    def _predict(self, examples: Sequence[Example], size: int) -> Iterator[list[Prediction]]:
        """Yield the predictions of examples whose ids begin with a number of worked examples."""
        for number, predictor in self.predictors.items():
            own = {
                example.id.partition(" ")[2]: example
                for example in examples
                if example.id.startswith(f"{number} ")
            }
            if own:
                asked = [replace(example, id=id_) for id_, example in own.items()]
                for batch in predictor.predict(asked, size):
                    yield [replace(one, id=own[one.id].id) for one in batch]
