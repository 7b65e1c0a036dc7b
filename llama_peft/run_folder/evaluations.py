"""Reads the evaluations in a run folder, and checks them: a file can be damaged, missing, or about
other weights.

Numbers about other weights must not stand in a report or a card, so results are checked against the
run before they are shown. Reports need no torch, so this room needs none either.
"""

import os
import shlex
from pathlib import Path
from typing import NamedTuple

from llama_peft.errors import UserError
from llama_peft.run_folder.comparison import Comparison, read_comparison
from llama_peft.run_folder.layout import (
    BOTH_RESULTS,
    COMPARISON,
    RECIPE,
    TRAINING,
    TUNED_RESULTS,
    ZERO_SHOT_RESULTS,
)
from llama_peft.run_folder.record import TrainingRecord, read_record
from llama_peft.run_folder.results import Results, read_results
from llama_peft.system.files import inside, sum_of

_COMPARABLE = ("prompt", "quantization", "dtype", "max_length", "doc_stride")
"""Settings that both evaluations must share."""


class Evaluations(NamedTuple):
    """The two evaluations of a run, both checked against it."""

    zero_shot: Results
    tuned: Results


def is_evaluated(run: Path) -> bool:
    """Whether there are two systems to compare: one alone does not show what fine-tuning changed."""
    return all(os.path.lexists(run / name) for name in BOTH_RESULTS)


def read_evaluations(run: Path, record: TrainingRecord | None = None) -> Evaluations:
    """Both results of a run. Raises UserError unless tuned is about the run's own weights, and
    zero-shot about its base.

    record: the run's training record, if the caller has read it already.
    """
    record = record or read_record(run)
    tuned = _read(run, TUNED_RESULTS)
    if tuned.adapter_sha256 not in record.files.values():
        raise UserError(
            f"{run / TUNED_RESULTS}: these results are about other weights than the run has now; "
            f"{_again(run, TUNED_RESULTS)}"
        )
    zero_shot = _read(run, ZERO_SHOT_RESULTS)
    if not zero_shot.config.model_kind.startswith("zero-shot"):
        raise UserError(
            f"{run / ZERO_SHOT_RESULTS}: these results are about {zero_shot.config.model_kind}, "
            f"not about zero-shot; {_again(run, ZERO_SHOT_RESULTS)}"
        )
    if zero_shot.base_revision != record.base_fingerprint:
        raise UserError(
            f"{run / ZERO_SHOT_RESULTS}: these results are about another base than the run was "
            f"trained on; {_again(run, ZERO_SHOT_RESULTS)}"
        )
    _check_same_settings(run, zero_shot, tuned)
    return Evaluations(zero_shot, tuned)


def _check_same_settings(run: Path, zero_shot: Results, tuned: Results) -> None:
    """Refuse a zero-shot with another prompt or precision than the tuned model's. What older
    results do not say is not compared.
    """
    before, after = zero_shot.settings, tuned.settings
    said = before.model_fields_set & after.model_fields_set
    for key in _COMPARABLE:
        one, other = getattr(before, key), getattr(after, key)
        if key == "dtype" and None in (one, other):
            continue  # version 0.1.0 named it only if the recipe did
        if key in said and one != other:
            raise UserError(
                f"{run / ZERO_SHOT_RESULTS}: zero-shot was evaluated with another {key} than the "
                f"tuned model; {_again(run, ZERO_SHOT_RESULTS)}"
            )


def _again(run: Path, name: str) -> str:
    return f"evaluate again with: {command(run, name)}"


def checked_comparison(run: Path) -> Comparison:
    """The comparison of a run's two results. Raises UserError if there is no comparison of exactly
    these results.
    """
    again = f"make it with: {command(run, COMPARISON)}"
    try:
        found = read_comparison(run)
    except FileNotFoundError:
        raise UserError(f"{run}: {COMPARISON} is missing; {again}") from None
    except (OSError, ValueError) as error:
        raise damaged(run, COMPARISON, error) from None
    if found.results_sha256 != results_sums(run):
        raise UserError(
            f"{run / COMPARISON}: it was made from other results than are there now; {again}"
        )
    return found


def results_sums(run: Path) -> dict[str, str]:
    """The sum of each of the two results, by the name of its folder."""
    return {Path(name).parent.name: sum_of(run, name) for name in BOTH_RESULTS}


def _read(run: Path, name: str) -> Results:
    try:
        return read_results(inside(run, name))
    except (OSError, ValueError) as error:
        raise damaged(run, name, error) from None


def damaged(run: Path, name: str, error: Exception) -> UserError:
    """A UserError that names a file, what is wrong with it, and the command that makes it again."""
    if isinstance(error, FileNotFoundError):
        fault = "this file is missing"
    elif isinstance(error, OSError):
        fault = f"this file cannot be read ({error.strerror})"
    else:
        fault = f"this file is damaged ({' '.join(str(error).split())})"
    return UserError(f"{run / name}: {fault}; make it again with: {command(run, name)}")


def command(run: Path, name: str) -> str:
    """The command that makes a file of a run's evaluations again."""
    words = ["llama-eval", "html", str(run)]
    if name == TRAINING:
        words = ["llama-peft", "train", str(run / RECIPE)]
    elif name == ZERO_SHOT_RESULTS:
        words = ["llama-eval", "run", "--task", str(run / RECIPE)]
        words += ["--output", str((run / name).parent)]
        base = read_record(run).base_fingerprint
        if not base.startswith("sha256:"):  # a commit: the branch may have moved on since
            words.append(f"model.revision={base}")
    elif name == TUNED_RESULTS:
        words = ["llama-eval", "run", "--model", str(run), "--output", str((run / name).parent)]
    return shlex.join(words)
