"""threshold.json: above this probability of no answer, a run gives no answer; or above which
probability a run gives each label, if a text can have several; and the temperature of the
probabilities of labels.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

from pydantic import Field

from llama_peft.errors import UserError
from llama_peft.recipe.fields import later
from llama_peft.run_folder.layout import THRESHOLD
from llama_peft.run_folder.record import Stored, TrainingRecord, read_record
from llama_peft.run_folder.run import Run
from llama_peft.system.files import read_summed, write_summed
from llama_peft.system.numbers import Count, Finite, Probability

UNFITTED = 0.5
"""The threshold of a run that has no validation examples to fit it on."""


LabelThresholds = Annotated[list[Probability] | None, Field(min_length=2)]


Temperature = Annotated[Finite, Field(ge=0.001, le=1000)] | None


_KINDS = ("no_answer_threshold", "label_thresholds", "temperature")
_TOGETHER: Mapping[str, Sequence[set[str]]] = {
    "answers": [{"no_answer_threshold"}],
    "label_sets": [{"label_thresholds"}, {"label_thresholds", "temperature"}],
    "labels": [{"temperature"}],
}
"""What can be fitted together, by what is predicted."""


class Threshold(Stored):
    """A fitted threshold or temperature, and what it was fitted for."""

    no_answer_threshold: Annotated[Finite, Field(ge=-1, le=1)] | None = later(None)
    """Below 0 if giving no answer at all is best."""
    label_thresholds: LabelThresholds = later(None)
    """For each label, in their order; for runs whose texts can have several labels."""
    temperature: Temperature = later(None)
    """What the logits are divided by before the softmax, or before the sigmoid if a text can have
    several labels. The thresholds are for the probabilities with it.
    """
    fitted_on: Count = 0
    """Validation examples."""
    metric: str = "f1"
    fitted_for: str | None = None
    """A digest of the settings and examples that the threshold depends on."""
    adapter_sha256: str | None = None
    """The sum of the weights that it was fitted for."""


def write_threshold(folder: Path, threshold: Threshold) -> None:
    """Keep a fitted threshold in its run folder. Raises OSError if the folder cannot be written to."""
    write_summed(folder, THRESHOLD, threshold.model_dump(mode="json"))


def read_threshold(folder: Path, record: TrainingRecord | None = None) -> Threshold | None:
    """The threshold that a run was evaluated with; None before its evaluation.

    record: the run's training record, if the caller has read it already.
    Raises UserError if the file is damaged, or belongs to other weights than the run's.
    """
    try:
        found = Threshold.model_validate(read_summed(folder, THRESHOLD, required=False))
        weights = found.adapter_sha256
        if weights is not None and weights not in (record or read_record(folder)).files.values():
            raise ValueError("it belongs to other weights")
        if _kinds(found) not in chain.from_iterable(_TOGETHER.values()):
            raise ValueError("it holds no threshold, or kinds that no task has together")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, UserError):
        raise _damaged(folder) from None
    return found


def run_threshold(run: Run) -> Threshold | None:
    """The threshold of a run; None before its evaluation, or if its kind of task has none.

    Raises UserError as `read_threshold`, or if the file is for another task or other labels.
    """
    found = read_threshold(run.folder, run.record)
    kind = run.recipe.kind
    if found is None or not (run.recipe.fits_threshold or kind.fits_temperature):
        return None
    limits = found.label_thresholds
    is_other = limits is not None and len(limits) != len(run.labels)
    if is_other or _kinds(found) not in _TOGETHER[kind.side]:
        raise _damaged(run.folder)
    return found


def _kinds(found: Threshold) -> set[str]:
    return {name for name in _KINDS if getattr(found, name) is not None}


def _damaged(folder: Path) -> UserError:
    return UserError(
        f"{folder / THRESHOLD}: this file is damaged, or belongs to other weights than the run's; fit the "
        f"threshold again with: llama-eval run --model {folder}"
    )
