"""What a ladder asks of the evaluation, which it does not import: the command line joins the two.

The evaluation is called `eval` in a checkout and `llama_peft_eval` if it is installed.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

from llama_peft.data import Example, Rows
from llama_peft.inference.predict import Prediction
from llama_peft.run_folder.ladder.rungs import Measurement
from llama_peft.run_folder.run import Run


class Evaluation(Protocol):
    """The functions of `eval/ladder/steps.py`."""

    def measure(
        self, one: Measurement, given: Mapping[str, Rows], again: bool, processes: int = 1
    ) -> None:
        """Predict and score one measurement, whose training is finished, into its folder; in so many
        processes, if a model of this machine predicts.
        """

    def forgetting(self, run: Path) -> None:
        """Measure what the adapter of a run costs elsewhere."""

    def untouched(self, run: Run) -> Callable[[Sequence[Example]], list[Prediction]]:
        """Load a run's base without training, and return what says its answers to examples."""

    def verdict(self, run: Path, show_all: bool = False) -> list[str]:
        """Write the report of a run, and return the lines of its tables and of its verdict."""


def find_evaluation() -> Evaluation:
    """Return the evaluation that lies beside this package: a user may have an `eval` of their own."""
    beside = Path(__file__).resolve().parents[2]
    for name in ("llama_peft_eval", "eval"):
        spec = find_spec(name)
        if spec and spec.origin and Path(spec.origin).resolve().parents[1] == beside:
            return cast("Evaluation", import_module(f"{name}.ladder.steps"))
    raise ImportError(f"the package of the evaluation is not beside llama_peft in {beside}")
