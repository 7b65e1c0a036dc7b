"""The keys about what a trained model is compared with: the section `ladder`."""

# ruff: noqa: RUF012  (pydantic copies a default, so it may be a list)

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator

from llama_peft.recipe.fields import Count, CountOrAuto, ModelName, Seed, distinct, later
from llama_peft.recipe.model_sections import Section

RungName = Literal[
    "majority", "no-answer", "tf-idf", "bm25", "zero-shot", "few-shot", "head", "tuned", "encoder", "full", "hosted",
]  # fmt: skip
RUNGS: tuple[RungName, ...] = get_args(RungName)
"""All rungs, the cheapest first."""

Rungs = Annotated[list[RungName], AfterValidator(distinct)]
Seeds = Annotated[list[Seed], AfterValidator(distinct)]
Sizes = Annotated[
    list[Annotated[Count | Literal["all"], "a number of examples, or all"]],
    AfterValidator(distinct),
]


class Ladder(Section):
    """What `llama-peft run` compares the trained model with."""

    rungs: Rungs | None = None
    "What is measured. null takes every rung that fits the task."
    seeds: Seeds = []
    "Seeds with which the rungs that learn are trained. If it is empty, train.seed is the only one."
    sizes: Sizes = []
    "Numbers of training examples for a learning curve, such as [64, 256, 1024, all]."
    few_shot: CountOrAuto = "auto"
    "Number of solved examples of the rung few-shot. auto chooses it on the validation part."
    encoder: ModelName | None = None
    "Hub id or folder of an encoder, such as answerdotai/ModernBERT-base, to fine-tune whole."
    full: bool = later(False)
    "Fine-tune the base itself whole, where the memory holds it (16 bytes a weight)."
    hosted: ModelName | None = later(None)
    """Hub id or folder of a larger model that a server has, such as meta-llama/Llama-3.1-70B, to ask without
    training. The environment's OPENAI_BASE_URL is the address of the server."""
    forgetting: bool = True
    "Measure what the adapter costs elsewhere: on ordinary text, and on a task that was not trained."
