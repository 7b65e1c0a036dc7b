"""What a model costs: seconds to fit it, seconds to predict, and bytes to ship beside the base."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from llama_peft.data import Example
from llama_peft.inference.predict import Prediction
from llama_peft.run_folder.layout import ADAPTER_FILES
from llama_peft.run_folder.results import Costs
from llama_peft.system.processes.job import sharers

from .predictor import Predictor
from .recognise import Subject


class Meter:
    """Measures a predictor at work."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.seconds, self.predictions = 0.0, 0
        self.fit_seconds, self.fitted_bytes = 0.0, 0
        self.shared_seconds = 0.0
        """Seconds of one prediction that are spent before, perhaps by another run."""

    def fit(self) -> None:
        """Fit what is fitted before the first prediction."""
        if self.predictor.fit is not None:
            started = time.perf_counter()
            self.fitted_bytes = self.predictor.fit()
            self.fit_seconds = time.perf_counter() - started

    def prepare(self, examples: Sequence[Example]) -> None:
        """Compute what the predictions of these examples share with those of other runs."""
        if self.predictor.prepare is not None:
            self.shared_seconds = self.predictor.prepare(examples)

    @property
    def measured(self) -> Predictor:
        """The predictor, whose predictions are counted from now on."""
        return replace(self.predictor, predict=self._predict)

    def _predict(self, examples: Sequence[Example], size: int) -> Iterator[list[Prediction]]:
        portions = self.predictor.predict(examples, size)
        while True:
            started = time.perf_counter()
            found = next(portions, None)
            self.seconds += time.perf_counter() - started
            if found is None:
                return
            self.predictions += len(found)
            yield found

    def costs(self, subject: Subject) -> Costs:
        """Return what is known of the costs of the model."""
        rate = None
        if self.predictions:
            rate = 1000 * (self.seconds / self.predictions + self.shared_seconds)
        config = self.predictor.config
        choice = config.fewshot_choice
        trained = config.training.wall_seconds if choice is None else choice.seconds
        is_other = subject.run is None and subject.kind not in ("causal", "baseline")
        return Costs(
            fit_seconds=None if is_other else round(trained or self.fit_seconds, 3),
            seconds_per_1000=None if rate is None else round(rate, 3),
            bytes_to_ship=_shipped(subject, self.fitted_bytes),
            jobs=sharers(),
        )


def _shipped(subject: Subject, fitted: int) -> int | None:
    """Return the bytes beside the base; None for a whole checkpoint, which has none."""
    if subject.run is not None:
        return sum(path.stat().st_size for path in subject.run.weights)
    if subject.adapter is not None:
        return sum((subject.adapter.folder / name).stat().st_size for name in ADAPTER_FILES)
    return fitted if subject.kind in ("causal", "baseline") else None
