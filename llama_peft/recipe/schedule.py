"""What `auto` becomes for the learning rate and the number of epochs.

The usual values are those of a base of a billion weights and of thousands of rows. A smaller base
needs larger steps, and few rows give few steps: 600 rows in 5 classes leave a base of 8M weights at
42 % with the usual values, and at 85 % with these. Three times the highest rate ruins one of 1M
weights (tests/benchmarks/results/small_base.json).
"""

from math import ceil

from llama_peft.recipe.schema import Recipe

OPEN_WITH_EPOCHS = {"early_stopping_patience": None, "early_stopping_threshold": 0.0}
"""The keys that epochs that are auto choose too, and the value of each that leaves it open."""
LARGE = 10**9
"""Weights of a base for which the usual rate is right."""
USUAL_RATE, HIGHEST_RATE = 2e-4, 2e-3
LABEL_HEAD_RATE, OTHER_HEAD_RATE = 1e-2, 1e-3
"""For a head alone: the final norm gives the states of any base about the same size."""
STEPS = 1000
"""Steps that are enough: more epochs than usual are made until there are so many."""
USUAL_EPOCHS, MOST_EPOCHS = 3, 8
PATIENCE, LEAST_GAIN = 2, 0.005
"""Epochs that are auto end early: after two in a row that gain less than this, in nats or in the unit
of the score. 300 easy texts in 4 classes are learned after 3 epochs of 8.
"""


def choose(
    recipe: Recipe,
    rows: int,
    weights: int | None,
    *,
    validates: bool = True,
    processes: int = 1,
) -> dict[str, float]:
    """Return the values in place of auto.

    rows: those of an epoch. weights: of the base, if known. validates: whether each epoch ends with
        a validation, so that the last ones can be left out.
    """
    train, found = recipe.train, {}
    if train.learning_rate == "auto":
        found["learning_rate"] = _rate(recipe, weights or LARGE)
    if train.num_train_epochs == "auto":
        batch = recipe.train_batch_size * train.gradient_accumulation_steps * processes
        wanted = ceil(STEPS / ceil(rows / batch))
        found["num_train_epochs"] = float(min(max(wanted, USUAL_EPOCHS), MOST_EPOCHS))
        by_epoch = validates and train.eval_steps is None and train.max_steps < 1
        # The loss of numbers has their own unit, so there is no small gain for all of them.
        if by_epoch and train.early_stopping_patience is None and recipe.kind.side != "numbers":
            found["early_stopping_patience"] = PATIENCE
            found["early_stopping_threshold"] = train.early_stopping_threshold or LEAST_GAIN
    return found


def _rate(recipe: Recipe, weights: int) -> float:
    """Return the rate for LoRA: it grows with the root of the ratio to a large base; one digit."""
    if recipe.lora is None:
        return LABEL_HEAD_RATE if recipe.kind.names_labels else OTHER_HEAD_RATE
    rate = USUAL_RATE * max(1.0, (LARGE / weights) ** 0.5)
    return float(f"{min(rate, HIGHEST_RATE):.0e}")
