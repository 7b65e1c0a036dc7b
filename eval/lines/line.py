"""One line of predictions.jsonl: what a model said of one example, and what is right."""

from pydantic import ConfigDict, Field

from llama_peft.run_folder.record import Stored
from llama_peft.tokens.prompts import parse_answer

from ..metrics.measure import Said


class PredictionLine(Stored):
    """One example of predictions.jsonl."""

    model_config = ConfigDict(allow_inf_nan=False)

    id: str
    prediction: Said
    """The name of a label, the names of several, a number, or an answer; "" means no answer."""
    probabilities: list[float] | None = None
    """The probability of each label, in the order of the labels."""
    no_answer_probability: float | None = None
    raw: str | None = None
    """The model's output before it was parsed, if it is known."""
    gold: Said
    """The name of the right label, those of all right labels, the right number, or the right answers:
    none if there is no answer.
    """
    text: str = ""
    """The sentence or question, if the file holds it."""
    passage: str = Field(default="", exclude_if=lambda value: not value)
    """The passage of a question, if the file holds it."""
    prompt: str = Field(default="", exclude_if=lambda value: not value)
    """All that the model read, if the file holds it."""
    start: int | None = None
    """The first character of `raw` in the passage, if a model found it there."""
    gold_starts: list[int] | None = None
    """The first character of each right answer in the passage, if they are known."""
    group: str | None = None
    """What it was drawn with, as the passage of a question; None if it was drawn alone, and in files
    of version 0.1.0.
    """
    split: str
    """The part of the data that the example belongs to."""


def before_threshold(line: PredictionLine, no_answer: str) -> str:
    """Return the answer before a threshold removed it.

    A model that wrote the no-answer phrase had no answer before either.
    """
    raw, said = line.raw or "", str(line.prediction)
    removed = not said and parse_answer(raw, no_answer)
    return raw if removed else said
