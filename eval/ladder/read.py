"""Reads what a ladder measured: each rung with its results, one for each seed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, RungName, load_recipe
from llama_peft.run_folder.ladder.finished import Finished, is_whole, read_finished, record_of
from llama_peft.run_folder.ladder.rungs import TRAINED, Measurement, measurements
from llama_peft.run_folder.ladder.whole import WholeRecord
from llama_peft.run_folder.layout import LADDER, LADDER_RECIPE
from llama_peft.run_folder.record import TrainingRecord
from llama_peft.system.files import read_text

from ..metrics.intervals import Measured, measured_metrics
from ..results import SystemResults, read_systems


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A rung with one seed, measured."""

    measurement: Measurement
    system: SystemResults
    record: TrainingRecord | WholeRecord | None
    """Of a rung that is trained."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A rung on one number of training examples, with all seeds that were measured."""

    name: RungName
    title: str
    """What people call it: LoRA + classification head."""
    size: int | None
    """None: all training examples."""
    repeats: tuple[Repeat, ...]

    @property
    def systems(self) -> list[SystemResults]:
        return [one.system for one in self.repeats]

    @property
    def first(self) -> SystemResults:
        return self.repeats[0].system

    @property
    def is_trained(self) -> bool:
        return self.name in TRAINED

    @cached_property
    def measured(self) -> Mapping[str, Measured]:
        """Each metric over all seeds. What is not trained has no seed."""
        evidences = [system.evidence for system in self.systems]
        return measured_metrics(evidences, self.first.groups, is_deterministic=not self.is_trained)


@dataclass(frozen=True, kw_only=True)
class Climbed:
    """Everything that a ladder measured on one part of the data."""

    run: Path
    recipe: Recipe
    part: str
    examples: int
    """Those of the whole training part."""
    rungs: tuple[Rung, ...]
    """On all training examples, the cheapest first."""
    smaller: tuple[Rung, ...]
    """On fewer training examples."""
    missing: tuple[str, ...]
    """What was asked for and is not there."""

    def rung(self, name: RungName) -> Rung | None:
        """Return a rung on all training examples; None if it was not measured."""
        return next((rung for rung in self.rungs if rung.name == name), None)


def read_ladder(run: Path) -> Climbed:
    """Read the ladder of a run folder. Raises UserError if nothing of it is there."""
    finished = read_finished(run)
    if finished is None or not finished.results:
        raise UserError(f"{run}: no ladder was measured here; llama-peft run RECIPE measures one")
    recipe = _recipe(run)
    plan = measurements(recipe, finished.examples)
    part = part_of(recipe)
    found = [(one, *_read(one, finished, part)) for one in plan]
    repeats = [
        Repeat(measurement=one, system=system, record=record)
        for one, system, record in found
        if system is not None
    ]
    if not repeats:
        raise UserError(
            f"{run}: the results of its ladder are gone; llama-peft run RECIPE measures it again"
        )
    rungs = [
        Rung(name=name, title=title_of(recipe, name), size=size, repeats=own)
        for name, size in dict.fromkeys((one.rung, one.size) for one in plan)
        if (own := _of(repeats, name, size))
    ]
    return Climbed(
        run=run,
        recipe=recipe,
        part=part,
        examples=finished.examples,
        rungs=tuple(rung for rung in rungs if rung.size is None),
        smaller=tuple(rung for rung in rungs if rung.size is not None),
        missing=tuple(
            one.name
            for one, system, _ in found
            if system is None and _says_something(one, repeats[0].system)
        ),
    )


def _says_something(one: Measurement, known: SystemResults) -> bool:
    """Whether a measurement can be made: "no answer" is no floor if every question has an answer.

    known: any results on the same examples.
    """
    return one.rung != "no-answer" or not all(map(any, known.gold_lists.values()))


def part_of(recipe: Recipe) -> str:
    """Return the part that a ladder is judged by: a published one, which was kept apart, or the first."""
    splits = recipe.eval.splits
    return "official" if "official" in splits else splits[0]


def title_of(recipe: Recipe, name: RungName) -> str:
    """Return what people call a rung."""
    kind = recipe.kind
    tuned = kind.tuned_name if kind.head is not None else "answers in words"
    named: dict[RungName, str] = {
        "majority": "the same answer always",
        "no-answer": "no answer always",
        "tf-idf": "TF-IDF",
        "bm25": "BM25",
        "head": f"{kind.tuned_name} alone",
        "tuned": f"LoRA, {tuned}" if recipe.lora is not None else f"{kind.tuned_name} alone",
        "encoder": str(recipe.ladder.encoder),
        "full": "the base, fine-tuned whole",
        "hosted": f"{recipe.ladder.hosted}, hosted",
    }
    return named.get(name, name)


def _recipe(run: Path) -> Recipe:
    """Return the recipe of a ladder, whose run folder is where it lies now."""
    try:
        read_text(run / LADDER, LADDER_RECIPE)
    except FileNotFoundError:
        raise UserError(f"{run / LADDER / LADDER_RECIPE}: this file is missing") from None
    recipe = load_recipe(run / LADDER / LADDER_RECIPE)
    train = recipe.train.model_copy(update={"output_dir": str(run)})
    return recipe.model_copy(update={"train": train})


def _read(
    one: Measurement, finished: Finished, part: str
) -> tuple[SystemResults | None, TrainingRecord | WholeRecord | None]:
    """Return the results of a measurement on one part, and the record of its training."""
    proof = finished.results.get(one.results)
    if proof is None or not is_whole(one, proof):
        return None, None
    systems = read_systems(Path(one.run, one.results))
    system = next((own for own in systems if own.part == part), None)
    record = record_of(one) if one.is_trained else None
    return system, record


def _of(repeats: Sequence[Repeat], name: RungName, size: int | None) -> tuple[Repeat, ...]:
    kept: Iterator[Repeat] = (
        one for one in repeats if one.measurement.rung == name and one.measurement.size == size
    )
    return tuple(kept)
