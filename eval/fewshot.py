"""Worked examples: solved examples in the prompt of a model that is not fine-tuned."""

import random
from collections.abc import Sequence
from itertools import chain, islice, zip_longest

from llama_peft.data import Dataset, Example, QuestionExample, TextExample
from llama_peft.errors import UserError
from llama_peft.inference.predict import Shots

from .job import Job
from .scoring import Material, recipe_parts


def worked_examples(job: Job, found: Material) -> Shots | None:
    """Return the function that chooses the worked examples of an example; None if there are none."""
    wanted = job.recipe.eval.num_fewshot
    if not wanted:
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
