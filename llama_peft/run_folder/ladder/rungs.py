"""The rungs of a ladder: what `llama-peft run` measures beside the trained model, the cheapest first.

    majority, no-answer    a constant answer
    tf-idf, bm25           no language model: word counts and a linear classifier, the best sentence
    zero-shot, few-shot    the untouched base
    head                   a head alone on the frozen base
    tuned                  the recipe's own training
    encoder                another model, fine-tuned whole
    full                   the base, fine-tuned whole
    hosted                 another model, untouched, on a server

A rung that trains is repeated for each seed and for each size of the training part, and each of
these is an ordinary run in a folder of its own. This file says which rungs a recipe asks for, with
the recipe of each; it trains and measures nothing.
"""

import math
from dataclasses import dataclass

from llama_peft.errors import UserError
from llama_peft.recipe.ladder import RUNGS, Ladder, RungName
from llama_peft.recipe.schema import Hub, Recipe
from llama_peft.run_folder.layout import LADDER

WHOLE: tuple[RungName, ...] = ("encoder", "full")
"""Rungs that train every weight of a model, and leave an ordinary checkpoint."""
TRAINED: tuple[RungName, ...] = ("head", "tuned", *WHOLE)
"""Rungs whose weights are trained, so that their scores depend on a seed."""
LEARNING: tuple[RungName, ...] = ("tf-idf", *TRAINED)
"""Rungs that can use more training examples."""

_HEAD_BATCH = 64
"""Texts in a step of a head alone, which costs next to nothing on cached states."""
_MOST_REPEATS = 5.0
"""How many times as often a small part of the training examples is read."""
SERVER = "OPENAI_BASE_URL"
"""The environment variable with the address of the server of the rung `hosted`."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One rung with one seed on one number of training examples."""

    rung: RungName
    recipe: Recipe
    """What is trained or measured; its run folder is that of this measurement."""
    run: str
    """The run folder of the ladder."""
    results: str
    """The folder of its results, in the run folder of the ladder."""
    seed: int | None = None
    """Only of rungs that are trained."""
    size: int | None = None
    """Examples that it learns from; None for all, or if it learns from none."""

    @property
    def is_trained(self) -> bool:
        return self.rung in TRAINED

    @property
    def trains_all_weights(self) -> bool:
        return self.rung in WHOLE

    @property
    def is_own(self) -> bool:
        """Whether it is the run itself: the recipe's training with its own seed on all examples."""
        return self.is_trained and self.recipe.run_folder == self.run

    @property
    def name(self) -> str:
        """What progress and messages call it: tuned, 64 examples, seed 2."""
        words = [f"{self.size:,} examples"] if self.size is not None else []
        words += [f"seed {self.seed}"] if self.seed is not None else []
        return ", ".join([self.rung, *words])


def fitting(recipe: Recipe) -> tuple[RungName, ...]:
    """Return the rungs that fit a task, the cheapest first."""
    labels = recipe.kind.has_labels
    kept: dict[RungName, bool] = {
        "majority": labels,
        "no-answer": not labels,
        "tf-idf": labels,
        "bm25": not labels and recipe.dataset.columns.context is not None,
        "zero-shot": True,
        "few-shot": True,
        # A span head alone stays below the floor, and its states are too large to be kept.
        "head": labels and recipe.lora is not None,
        "tuned": True,
        "encoder": labels and recipe.ladder.encoder is not None,
        "full": labels and recipe.ladder.full,
        "hosted": recipe.ladder.hosted is not None,
    }
    return tuple(name for name in RUNGS if kept[name])


def wanted(recipe: Recipe) -> tuple[RungName, ...]:
    """Return the rungs that a recipe asks for, the cheapest first."""
    own = fitting(recipe)
    asked = recipe.ladder.rungs
    return own if asked is None else tuple(name for name in own if name in asked)


def settled(recipe: Recipe) -> Recipe:
    """Return the recipe whose own seed is one of its ladder's."""
    seeds = recipe.ladder.seeds
    if not seeds or recipe.train.seed in seeds:
        return recipe
    return recipe.with_train({"seed": seeds[0]})


def measurements(recipe: Recipe, examples: int) -> list[Measurement]:
    """Return what a ladder measures, in the order in which it does: first every rung once, then the
    other seeds, then the smaller training parts, the smallest last, so that several jobs end together.

    recipe: a settled one. examples: how many its training part has.
    """
    rungs, seeds = wanted(recipe), _seeds(recipe)
    first = [_measurement(recipe, rung, examples, seeds[0]) for rung in rungs]
    more = [
        _measurement(recipe, rung, examples, seed)
        for seed in seeds[1:]
        for rung in rungs
        if rung in TRAINED
    ]
    smaller = [
        _measurement(recipe, rung, examples, seed, size)
        for size in reversed(sizes(recipe, examples))
        for rung in rungs
        if rung in LEARNING
        for seed in (seeds if rung in TRAINED else seeds[:1])
    ]
    return [*first, *more, *smaller]


def sizes(recipe: Recipe, examples: int) -> list[int]:
    """Return the numbers of training examples of the learning curve that are below all."""
    return sorted({size for size in recipe.ladder.sizes if size != "all" and size < examples})


def check_rung(recipe: Recipe, name: str) -> RungName:
    """Return a rung by its name. Raises UserError if the recipe's ladder has no such rung."""
    own = wanted(recipe)
    for rung in own:
        if rung == name:
            return rung
    raise UserError(f"{name}: this ladder has no such rung; its rungs are {', '.join(own)}")


def _seeds(recipe: Recipe) -> list[int]:
    own = recipe.train.seed
    return [own, *(seed for seed in recipe.ladder.seeds if seed != own)]


def _measurement(
    recipe: Recipe, rung: RungName, examples: int, seed: int, size: int | None = None
) -> Measurement:
    """Return one measurement. The tuned model with the recipe's own seed is the run itself."""
    own, trained = recipe.run_folder, rung in TRAINED
    is_own = rung == "tuned" and size is None and seed == recipe.train.seed
    words = [rung, *([str(size)] if size else []), *([f"seed-{seed}"] if trained else [])]
    folder = f"{LADDER}/{'-'.join(words)}"
    placed = _plain(recipe, f"{own}/{folder}" if trained and not is_own else own)
    placed = _of_rung(placed, rung, recipe.ladder)
    if size is not None:
        placed = _smaller(placed, size, examples, repeats=rung == "tuned")
    if trained:
        placed, folder = placed.with_train({"seed": seed}), f"{folder}/tuned"
    return Measurement(
        rung=rung,
        recipe=placed,
        run=own,
        results=rung if is_own or rung == "zero-shot" else folder,
        seed=seed if trained else None,
        size=size,
    )


def _of_rung(recipe: Recipe, rung: RungName, asked: Ladder) -> Recipe:
    """Return the recipe of what a rung trains or measures."""
    if rung == "few-shot":
        return recipe.changed(eval={"num_fewshot": asked.few_shot})
    if rung == "head":
        return _head_alone(recipe)
    if rung == "encoder":
        return _whole(_of_model(recipe, asked.encoder))
    if rung == "full":
        return _whole(recipe)
    return _of_model(recipe, asked.hosted) if rung == "hosted" else recipe


def _plain(recipe: Recipe, folder: str) -> Recipe:
    """Return the recipe of one run, which has no ladder of its own and is not pushed."""
    hub = recipe.hub if folder == recipe.run_folder else Hub()
    return recipe.changed(train={"output_dir": folder}, hub=hub, ladder=Ladder())


def _smaller(recipe: Recipe, size: int, examples: int, repeats: bool) -> Recipe:
    """Return the recipe on a part of its training examples.

    A fixed number of passes would leave a small part with a few steps, and a fixed number of steps
    would make it as dear as all. So the passes grow with the root of the ratio; `auto` follows the
    number of rows anyway.
    """
    changed = recipe.changed(dataset={"max_train_samples": size, "sampling": "nested"})
    epochs = recipe.train.num_train_epochs
    if not repeats or recipe.train.max_steps > 0 or epochs == "auto":
        return changed
    epochs = round(epochs * min(_MOST_REPEATS, math.sqrt(examples / size)), 2)
    return changed.with_train({"num_train_epochs": epochs})


def _head_alone(recipe: Recipe) -> Recipe:
    """Return the recipe that trains only a head, on cached states of the frozen base."""
    has_validation = recipe.dataset.parts.validation is not None or recipe.dataset.validation_size
    chooses = recipe.kind.side == "labels" and has_validation
    return _without_trees(recipe).changed(
        lora=None,
        head={"layer": "auto" if chooses else recipe.head.layer, "features": "prefix_tree"},
        train={
            "learning_rate": "auto",
            "per_device_train_batch_size": _HEAD_BATCH,
            "gradient_accumulation_steps": 1,
            "num_train_epochs": "auto",
            "max_steps": -1,
            "eval_steps": None,
            "packing": "none",
        },
    )


def _without_trees(recipe: Recipe) -> Recipe:
    """Return the recipe without an attention that computes nothing but tree rows."""
    trees = recipe.model.attn_implementation == "varlen"
    return recipe.changed(model={"attn_implementation": None}) if trees else recipe


def _of_model(recipe: Recipe, name: str | None) -> Recipe:
    """Return the recipe of another model."""
    return recipe.changed(model={"model_name_or_path": name, "revision": "main"})


def _whole(recipe: Recipe) -> Recipe:
    """Return the recipe that trains all weights, which are not packed."""
    return _without_trees(recipe).in_float32().changed(lora=None)
