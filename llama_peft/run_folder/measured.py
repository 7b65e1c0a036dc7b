"""What measuring left in a run folder, read with care: each file can be damaged, missing, or of other weights than the run's.

Numbers of other weights must not stand in a report or a card, so results are held against the run before they are shown. Reports
need no torch, so neither does this room.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from llama_peft.errors import UserError
from llama_peft.system.files import check_sum

COMPARISON, REPORT = "comparison.json", "report.html"
ZERO_SHOT, TUNED = "zero-shot/results.json", "tuned/results.json"
RESULTS = (ZERO_SHOT, TUNED)
TRAINING, HISTORY = "training.json", "history.jsonl"


def is_measured(run: Path) -> bool:
    """Whether there are two systems to compare: half a measurement says nothing of what tuning bought."""
    return all((run / name).is_file() for name in RESULTS)


def command(run: Path, name: str) -> str:
    """What makes a file of the run's measurements anew."""
    words = ["llama-eval", "html", str(run)]
    if name == TRAINING:
        words = ["llama-peft", "train", str(run / "recipe.yaml")]
    elif name == ZERO_SHOT:
        words = ["llama-eval", "run", "--task", str(run / "recipe.yaml")]
        words += ["--output", str((run / name).parent)]
        _, base = _trained(run)
        if not base.startswith("sha256:"):  # a commit: the branch may have moved on since
            words.append(f"model.revision={base}")
    elif name == TUNED:
        words = ["llama-eval", "run", "--model", str(run), "--output", str((run / name).parent)]
    return shlex.join(words)


def text(run: Path, name: str) -> str:
    """A file's text. Raises UserError, with the command that makes it anew, where it is none."""
    try:
        return (run / name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(run, name, error) from None


def values(run: Path, name: str) -> dict[str, Any]:
    """A file's JSON, an object as all of them are. Raises UserError like `text`."""
    try:
        found = json.loads(text(run, name))
        if not isinstance(found, dict):
            raise ValueError("no object in it")
        if "sum" in found:
            check_sum(found)
    except (ValueError, RecursionError) as error:
        raise damaged(run, name, error) from None
    return found


def damaged(run: Path, name: str, error: Exception) -> UserError:
    """The line that names a damaged file, what is wrong with it, and what makes it anew."""
    if isinstance(error, FileNotFoundError):
        fault = "missing"
    elif isinstance(error, OSError):
        fault = f"cannot be read ({error.strerror})"
    else:
        fault = f"damaged ({f'no {error} in it' if isinstance(error, KeyError) else error})"
    return UserError(f"{run / name}: {fault}; make it anew with: {command(run, name)}")


def check_own(run: Path) -> None:
    """Raise UserError unless the tuned results are of the run's own weights, and zero-shot of its untouched base."""
    weights, base = _trained(run)
    if values(run, TUNED).get("adapter_sha256") not in weights:
        raise UserError(
            f"{run / TUNED}: measured on other weights than are there now; "
            f"measure again with: {command(run, TUNED)}"
        )
    zero_shot = values(run, ZERO_SHOT)
    config = zero_shot.get("config")
    kind = str(config.get("model_kind")) if isinstance(config, dict) else "unknown"
    if not kind.startswith("zero-shot"):
        raise UserError(
            f"{run / ZERO_SHOT}: is of {kind}, no zero-shot; measure it with: {command(run, ZERO_SHOT)}"
        )
    if zero_shot.get("base_revision") != base:
        raise UserError(
            f"{run / ZERO_SHOT}: measured on another base than the run was trained on; "
            f"measure again with: {command(run, ZERO_SHOT)}"
        )
    _check_same_settings(run)


def _check_same_settings(run: Path) -> None:
    """Refuse a zero-shot of another prompt or precision than the tuned model's; what older results do not say is not held."""
    before, after = (_settings(values(run, name)) for name in RESULTS)
    for key in ("prompt", "quantization", "dtype", "max_length", "doc_stride"):
        if key in before and key in after and before[key] != after[key]:
            raise UserError(
                f"{run / ZERO_SHOT}: measured with another {key} than the tuned model; "
                f"measure again with: {command(run, ZERO_SHOT)}"
            )


def _settings(results: dict[str, Any]) -> dict[str, Any]:
    """How the first task was measured; one file's tasks differ in their part alone."""
    configs = results.get("configs")
    found = next(iter(configs.values()), None) if isinstance(configs, dict) else None
    return found if isinstance(found, dict) else {}


def _trained(run: Path) -> tuple[list[str], str]:
    """The sums of the run's weights, and what tells its base from others."""
    facts = values(run, TRAINING)
    try:
        sums, base = facts["files"], facts["base_fingerprint"]
        return [sums[name] for name in sums if name.endswith(".safetensors")], str(base)
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(run, TRAINING, error) from None
