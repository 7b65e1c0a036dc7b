"""Checkpoints and adapters of others at `llama-eval run --model`: recognised for what they are, or refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.data.case import says_so
from tests.faults.shop import Done, Fault, Seen, Shop
from tests.support.eval.checkpoints import adapter, classifier, heads

from .case import LORA, WRITTEN, failed, predictions

HOME = "/home/somebody/models/llama"


def _evaluated(shop: Shop, folder: Path, kind: str, model: Path, out: str, *more: str) -> Done:
    """Evaluate a model on the test part of a recipe."""
    (recipe,) = shop.write(shop.recipe(kind, folder), folder)[1:]
    words = ["run", "--task", recipe, "--model", str(model), "--output", str(folder / out), *more]
    return shop.run(words, "eval")


def _classifier(name: str, says: str, **config: Any) -> Fault:
    """A classifier of other labels or outputs."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        theirs = classifier(folder / "theirs", **config)
        done = _evaluated(shop, folder, LORA, theirs, "out")
        return says_so(shop.refused(done), says)

    return Fault("model", f"a classifier {name}", inflict)


def _unnamed(shop: Shop, folder: Path) -> Seen:
    """LABEL_0 and LABEL_1 are numbers of labels, and a line says so."""
    named = {0: "negative", 1: "positive"}
    said = []
    for number, names in enumerate((named, {0: "LABEL_0", 1: "LABEL_1"})):
        theirs = classifier(folder / f"theirs-{number}", id2label=names)
        done = _evaluated(shop, folder, LORA, theirs, f"out-{number}")
        if done.code != 0:
            return failed(done)
        said.append(predictions(folder / f"out-{number}"))
    told = "taken by their numbers: 0 is negative" in " ".join(done.text.split())
    return Seen("right" if told and said[0] == said[1] else "wrong", "the names that it says")


def _turned(shop: Shop, folder: Path) -> Seen:
    """Labels in the other order are taken by their names."""
    said = []
    for number, names in enumerate(
        ({0: "negative", 1: "positive"}, {0: "POSITIVE", 1: "NEGATIVE"})
    ):
        theirs = classifier(folder / f"theirs-{number}", id2label=names)
        done = _evaluated(shop, folder, LORA, theirs, f"out-{number}")
        if done.code != 0:
            return failed(done)
        lines = map(json.loads, predictions(folder / f"out-{number}"))
        said.append([line["probabilities"][:: 1 - 2 * number] for line in lines])
    return Seen("right" if said[0] == said[1] else "wrong", "the same probabilities, turned")


def _moved(shop: Shop, folder: Path) -> Path:
    """An adapter of plain PEFT that names a base on another machine."""
    own = adapter(folder / "adapter", shop.base, *heads(shop.base)["generative_qa"])
    path = own / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": HOME}))
    return own


def _adapter(named: bool) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        theirs = _moved(shop, folder)
        if not named:
            done = _evaluated(shop, folder, WRITTEN, theirs, "out")
            return says_so(shop.refused(done), rf"--base:(.|\n)*{HOME}")
        here = adapter(folder / "here", shop.base, *heads(shop.base)["generative_qa"])
        first = _evaluated(shop, folder, WRITTEN, here, "first")
        second = _evaluated(shop, folder, WRITTEN, theirs, "second", "--base", str(shop.base))
        if first.code or second.code:
            return failed(second if second.code else first)
        same = predictions(folder / "first") == predictions(folder / "second")
        return Seen("right" if same else "wrong", "the same predictions")

    return Fault(
        "model", f"an adapter of another machine, {'with' if named else 'without'} --base", inflict
    )


def _run(program: str, named: bool, changed: bool = False) -> Fault:
    """A run whose base moved; changed: the named base is another one."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        base = Path(shutil.copytree(shop.base, folder / "before"))
        words = shop.write(shop.recipe(LORA, folder, base, train={"max_steps": 2}), folder)
        done = shop.run(words)
        if done.code != 0:
            return failed(done)
        run = str(folder / "runs/run")
        ask = ["predict", run, "A warm film.", "--json"]
        words = ask if program == "llama_peft" else ["run", "--model", run, "--output"]

        def asked(out: str, *more: str) -> Done:
            place = [str(folder / out)] if program == "eval" else []
            return shop.run([*words, *place, *more], program)

        before = asked("one")
        base.rename(folder / "after")
        if changed:
            path = folder / "after/config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.1}))
        done = asked("two", *(["--base", str(folder / "after")] if named else []))
        if not named or changed:
            return says_so(shop.refused(done), "--base" if not named else "another|changed|not the")
        if done.code or before.code:
            return failed(done if done.code else before)
        said = [before.last_line, done.last_line]
        if program == "eval":
            said = [*map(str, (predictions(folder / "one"), predictions(folder / "two")))]
        return Seen("right" if said[0] == said[1] else "wrong", done.last_line)

    what = f"{'changed ' if changed else ''}base moved, {'with' if named else 'without'} --base"
    return Fault("model", f"a run whose {what}: {program}", inflict, cheap=False)


def faults() -> Iterator[Fault]:
    yield _classifier(
        "of several labels a row", "problem_type", problem_type="multi_label_classification"
    )
    yield _classifier("of numbers", "problem_type", problem_type="regression")
    yield _classifier("of one output", "problem_type", id2label={0: "LABEL_0"})
    yield _classifier("of other labels", "spam, ham", id2label={0: "spam", 1: "ham"})
    yield _classifier(
        "of three labels", "label", id2label={0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    )
    yield Fault("model", "a classifier with LABEL_0 and LABEL_1", _unnamed, cheap=False)
    yield Fault(
        "model", "a classifier with its labels in another order and case", _turned, cheap=False
    )
    for named in (True, False):
        yield _adapter(named)
        for program in ("llama_peft", "eval"):
            yield _run(program, named)
    yield _run("eval", named=True, changed=True)
