"""What faults of bases share: runs on two bases that must learn and predict the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.faults.data.case import says_so
from tests.faults.shop import Done, Fault, Seen, Shop

LORA, SPAN, WRITTEN = "classification + LoRA", "span + LoRA", "generative + LoRA"


class Outcome(NamedTuple):
    """What a run learned, and what it says to its test part."""

    done: Done
    weights: bytes = b""
    said: tuple[str, ...] = ()


def copied(shop: Shop, folder: Path, name: str = "base") -> Path:
    return Path(shutil.copytree(shop.base, folder / name))


def configure(base: Path, **changes: Any) -> Path:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return base


def retokenize(base: Path, change: Callable[[PreTrainedTokenizerBase], object]) -> Path:
    """The base after a change to its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    change(tokenizer)
    tokenizer.save_pretrained(base)
    return base


def words_of(shop: Shop, folder: Path, kind: str, base: Path, **sections: Any) -> list[str]:
    """The command that trains two steps on a base."""
    steps = {"max_steps": 2} | sections.pop("train", {})
    return shop.write(shop.recipe(kind, folder, base, train=steps, **sections), folder)


def learned(shop: Shop, folder: Path, kind: str, base: Path, **sections: Any) -> Outcome:
    """Train on a base and evaluate the run."""
    done = shop.run(words_of(shop, folder, kind, base, **sections))
    run = folder / "runs/run"
    if done.code == 0:
        done = shop.run(["run", "--model", str(run), "--output", str(folder / "out")], "eval")
    if done.code != 0:
        return Outcome(done)
    weights = (run / "adapter/adapter_model.safetensors").read_bytes()
    return Outcome(done, weights, predictions(folder / "out"))


def predictions(folder: Path) -> tuple[str, ...]:
    """The lines of predictions, which hold probabilities and texts."""
    return tuple((folder / "predictions.jsonl").read_text("utf-8").splitlines())


def failed(done: Done) -> Seen:
    return Seen("traceback" if "Traceback" in done.text else "wrong", f"refused: {done.last_line}")


def alike(one: Outcome, other: Outcome) -> Seen:
    """Right if two runs have the same weights and predictions, bit for bit."""
    for outcome in (one, other):
        if outcome.done.code != 0:
            return failed(outcome.done)
    if one.weights != other.weights:
        return Seen("wrong", "other weights")
    return Seen("right" if one.said == other.said else "wrong", "the same predictions")


def refuses(
    name: str, change: Callable[[Path], object], says: str, kind: str = LORA, **sections: Any
) -> Fault:
    """A base that is refused before anything is made of it, in a line that matches a pattern."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        base = copied(shop, folder)
        change(base)
        done = shop.run(words_of(shop, folder, kind, base, **sections))
        return says_so(shop.refused(done, folder), says)

    return Fault("model", name, inflict)


Twin = Callable[[Shop, Path], tuple[Path, Path]]
"""Makes two bases in a folder that must give the same."""


def gives(name: str, twin: Twin, kind: str = LORA, cheap: bool = False, **sections: Any) -> Fault:
    """A base that gives the run of another base. `other`: sections for the other base alone."""
    other = sections.pop("other", sections)

    def inflict(shop: Shop, folder: Path) -> Seen:
        one, two = twin(shop, folder)
        first = learned(shop, folder / "one", kind, one, **sections)
        return alike(first, learned(shop, folder / "two", kind, two, **other))

    return Fault("model", name, inflict, cheap)
