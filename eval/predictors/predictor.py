"""What every way to open a model gives: a function from examples to predictions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from llama_peft.data import Example
from llama_peft.inference.predict import Prediction, Shots
from llama_peft.run_folder.results import EngineRecord, ModelConfig


class Remote(Protocol):
    """A server that answers for a model."""

    @property
    def identity(self) -> str:
        """What tells its answers apart from those of other servers."""

    def record(self) -> EngineRecord:
        """Return what is known of it, and what it was asked until now."""

    def close(self) -> None:
        """Ask nothing more, and end the server if it was started for this evaluation."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A loaded model, and how it answers a task's examples."""

    config: ModelConfig
    """What results.json records about the model."""
    labels: tuple[str, ...]
    predict: Callable[[Sequence[Example], int], Iterator[list[Prediction]]]
    """Yields predictions by batch. The number is the size of a batch."""
    prompt: Callable[[Example], str]
    """Returns what the model reads of an example."""
    length: Callable[[str], int] | None = None
    """Returns the tokens of an answer, if the length of answers is limited and their tokens are known."""
    fits_threshold: bool = False
    """Whether thresholds that are fitted on validation decide: between a span and "no answer", or on
    each label of a text that can have several.
    """
    fits_temperature: bool = False
    """Whether its probabilities get a temperature that is fitted on validation."""
    with_shots: "Callable[[int, Shots | None], Predictor] | None" = None
    """Returns the same model with so many worked examples; None if it reads none."""
    reads_whole: Callable[[Example], bool] | None = None
    """Whether nothing of an example is cut, if prompts can be cut."""
    prepare: Callable[[Sequence[Example]], float] | None = None
    """Computes what the predictions of a recipe's own examples share with those of other runs, or finds
    it, and returns the seconds that this takes for one example if nothing is found.
    """
    fit: Callable[[], int] | None = None
    """Fits a baseline on the train part before its first prediction, and returns the bytes of what was
    fitted. The same part gives the same predictions.
    """
    fitted_on: str | None = None
    """The sum of that part."""
    remote: Remote | None = None
    """None if this process answers."""

    @property
    def kind(self) -> str:
        """What tables call it: zero-shot verbalizer, span head + LoRA, ..."""
        return self.config.model_kind

    def close(self) -> None:
        """End what answers, if it is not this process."""
        if self.remote is not None:
            self.remote.close()
