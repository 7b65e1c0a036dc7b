"""Reads the evaluations in a run folder, and checks them: a file can be damaged, missing, or about
other weights.

Numbers about other weights must not stand in a report or a card, so results are checked against the
run before they are shown. Reports need no torch, so this room needs none either.
"""

import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from llama_peft.errors import UserError
from llama_peft.run_folder.comparison import Comparison, read_comparison
from llama_peft.run_folder.layout import (
    BOTH_RESULTS,
    COMPARISON,
    RECIPE,
    REPORT,
    TRAINING,
    TUNED_RESULTS,
    ZERO_SHOT_RESULTS,
)
from llama_peft.run_folder.ownership import REPORT_POLICY
from llama_peft.run_folder.record import TrainingRecord, read_record
from llama_peft.run_folder.results import Results, read_results
from llama_peft.system.files import inside, read_text, sha256_of, sum_of

_COMPARABLE = ("prompt", "quantization", "dtype", "max_length", "doc_stride")
"""Settings that both evaluations must share."""
_ATTRIBUTES = r"""(?:\s+(?:
    (?:lang|scope|class|id|role|tabindex|aria-label(?:ledby)?|data-label|viewBox|points|[dxyr]|[xy][12]|c[xy]|text-anchor
    |transform|fill|stroke-width|stroke-dasharray|(?:(?:fill|stroke)-)?opacity|font-size|font-weight)="[^"<>]*"
    |href="\#[a-z-]*"
    |style="background:\ rgb\(var\(--shade\)\ /\ [\d.]+\)"
))*"""
_META = r"""<meta\s+(?:
    charset="utf-8"
    |name="viewport"\ content="width=device-width,\ initial-scale=1"
)>"""
_TAG = re.compile(
    rf"""{_META}|</?(?:
        html|head|title|style|body|header|nav|main|section|a|h[1234]|p|div|ul|li|small|pre|details|summary|dl|dt|dd
        |table|caption|thead|tbody|tr|th|td|figure|figcaption|svg|g|line|polyline|circle|path|text
    ){_ATTRIBUTES}\s*/?>""",
    re.VERBOSE,
)
"""An element of the template, or of that of version 0.1.0. Text in a report holds no `<`, because the
template escapes it.
"""
_SUM = "sha256-[A-Za-z0-9+/]+="
_POLICY = (
    rf"{re.escape(REPORT_POLICY)}(?:unsafe-inline|{_SUM})'"
    rf"(?:;\ script-src\ '{_SUM}';\ base-uri\ 'none';\ form-action\ 'none')?"
)
_BEGINNING = re.compile(
    rf"""<!doctype\ html>\s*<html\ lang="en">\s*<head>\s*<meta\ charset="utf-8">\s*
    <meta\ http-equiv="Content-Security-Policy"\s+content="{_POLICY}">""",
    re.VERBOSE,
)
_NOT_PUSHED = re.compile("<!-- not pushed -->.*?<!-- end of not pushed -->", re.DOTALL)
"""The examples of a report, and the script that shows them."""


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


def checked_report(run: Path, comparison: Comparison) -> str:
    """The text of the report without its examples and its script. Raises UserError if it is not the
    one that was written with the comparison.
    """
    try:
        page = read_text(run, REPORT)
        if comparison.report_sha256 is None:
            raise ValueError(f"{COMPARISON} does not record its sum")
        if comparison.report_sha256 != sha256_of(page):
            raise ValueError("it was changed after it was written")
        page = _NOT_PUSHED.sub("", page, count=1)
        check_markup(page)
    except (OSError, ValueError) as error:
        raise damaged(run, REPORT, error) from None
    return page


def check_markup(page: str) -> None:
    """Raise ValueError if a page holds anything but the elements of our template. So it holds no
    script, no event handler, no form and no address.

    A sum proves only that the page and the sum belong together: a stranger can write both.
    """
    if not _BEGINNING.match(page):
        raise ValueError("it does not begin as a report of llama-eval does")
    rest = _TAG.sub("", _BEGINNING.sub("", page, count=1))
    if "<" in rest:
        found = rest[rest.index("<") :].split(">")[0][:40]
        raise ValueError(f"it holds {found}>, which a report of llama-eval never does")
    for style in re.findall(r"<style[^>]*>(.*?)(?:</style|\Z)", page, re.DOTALL):
        if re.search(r"\\|url\(|@import", style):
            raise ValueError("its style names an address, which a report of llama-eval never does")


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
