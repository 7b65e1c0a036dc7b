"""Links, pipes and folders that are planted where a command writes, reads or removes."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from .case import HEAD, LORA, SPAN, Case, Plan, Scene, goes_on, predicts, trains
from .stage import change_json, evaluated

Plant = Callable[[Scene, Path], object]
PLANTS: dict[str, Plant] = {
    "a link": lambda scene, path: path.symlink_to(scene.victim),
    "a link to nothing": lambda scene, path: path.symlink_to(scene.outside / "absent"),
    "a hard link": lambda scene, path: os.link(scene.victim, path),
    "a link to a folder": lambda scene, path: path.symlink_to(scene.outside / "folder"),
    "a link to itself": lambda scene, path: path.symlink_to(path.name),
    "a relative link": lambda scene, path: path.symlink_to(
        os.path.relpath(scene.victim, path.parent)
    ),
    "a pipe": lambda scene, path: os.mkfifo(path),
    "a folder": lambda scene, path: path.mkdir(),
}


def plant(scene: Scene, how: str, path: Path) -> None:
    """Put a link, a pipe or a folder in the place of whatever is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    PLANTS[how](scene, path)


def cases() -> Iterator[Case]:
    for name, how, cheap in EVALUATED:
        yield _evaluated(name, how, cheap)
    for kind, name, how, cheap in TRAINED:
        yield _trained(kind, name, how, cheap)
    for name, how in FRESH:
        yield _fresh(name, how)
    for name, how in ASKED:
        yield _asked(name, how)
    for name, how in PUSHED:
        yield _pushed(name, how)
    for name, how in REPORTED:
        yield _reported(name, how)
    for name, how in COMPARED:
        yield _compared(name, how)
    yield Case("merge: a link to a folder at its unfinished output", _merged)
    yield Case("push: the report is a file of this machine", _report_of_this_machine, cheap=True)


EVALUATED = [
    (".holder", "a link", False), (".holder", "a link to nothing", False), (".holder", "a hard link", False),
    (".lock", "a link", False), (".lock", "a link to nothing", False),
    ("results.json.partial", "a link", False), ("predictions.jsonl.partial", "a link", False),
    ("predictions.partial.jsonl", "a link", True), ("predictions.partial.jsonl", "a link to nothing", False),
    ("predictions.partial.jsonl", "a hard link", False), ("predictions.partial.jsonl", "a pipe", False),
    ("predictions.partial.jsonl.partial", "a link", False), ("validation.partial.jsonl", "a link", False),
    ("results.json", "a link", False), ("results.json", "a folder", False), ("results.json", "a pipe", False),
    ("predictions.jsonl", "a link to nothing", False), ("predictions.jsonl", "a relative link", False),
]  # fmt: skip


def _evaluated(name: str, how: str, cheap: bool) -> Case:
    def plan(scene: Scene) -> Plan:
        expected = scene.shop.tuned(SPAN)
        plant(scene, how, scene.out / name)
        words = ["run", "--model", str(expected.parent), "--output", str(scene.out)]
        return Plan(words, "eval", predicts(SPAN))

    return Case(f"eval: {how} at {name}", plan, cheap=cheap)


TRAINED = [
    (LORA, ".holder", "a link", False), (LORA, ".lock", "a link", False), (LORA, ".lock", "a pipe", False),
    (LORA, "recipe.yaml.partial", "a link", False), (LORA, "recipe.yaml", "a link", False),
    (LORA, "recipe.yaml", "a pipe", False), (LORA, "split.json", "a link", False),
    (LORA, "data.sha256", "a link", False), (LORA, "history.jsonl", "a link", False),
    (LORA, "history.jsonl", "a hard link", False), (LORA, "history.jsonl", "a pipe", False),
    (LORA, "history.jsonl", "a link to nothing", False), (LORA, "training.json", "a link", False),
    (LORA, "training.json", "a link to nothing", False), (LORA, "adapter", "a link to a folder", False),
    (LORA, "checkpoints", "a link to a folder", True), (LORA, "checkpoints/checkpoint-99", "a link to a folder", False),
    (LORA, "checkpoints/checkpoint-8", "a link", False), (LORA, "checkpoints/checkpoint-7", "a link to a folder", False),
    (LORA, "adapter.partial", "a link to a folder", False), (LORA, ".previous", "a link to a folder", False),
    (LORA, ".previous.partial", "a link to a folder", False), (LORA, "training.json.partial", "a link", False),
    (HEAD, "head.safetensors", "a link", False), (HEAD, "head.safetensors.partial", "a link", False),
    (HEAD, "../features", "a link to a folder", False), (LORA, "tuned", "a link to a folder", False),
]  # fmt: skip


def _trained(kind: str, name: str, how: str, cheap: bool) -> Case:
    def plan(scene: Scene) -> Plan:
        words = scene.unfinished(kind)
        plant(scene, how, scene.run / name)
        return Plan(words, same=trains(kind))

    return Case(f"train: {how} at {name}", plan, cheap=cheap)


FRESH = [
    ("checkpoints", "a link to a folder"), ("tuned", "a link to a folder"), ("adapter", "a link to a folder"),
    (".previous", "a link to a folder"), (".previous.partial", "a link to a folder"),
    ("tuned/.holder", "a link"), ("tuned-mine", "a link to a folder"), ("history.jsonl", "a link"),
    ("report.html", "a link"),
]  # fmt: skip


def _fresh(name: str, how: str) -> Case:
    def plan(scene: Scene) -> Plan:
        scene.finished()
        plant(scene, how, scene.run / name)
        return Plan([*scene.again(), "--fresh"], same=trains(LORA))

    return Case(f"train --fresh: {how} at {name}", plan)


ASKED = [
    ("training.json", "a link"), ("training.json", "a pipe"), ("recipe.yaml", "a link"), ("recipe.yaml", "a pipe"),
    ("adapter/adapter_config.json", "a link"), ("adapter/adapter_config.json", "a pipe"),
    ("adapter/adapter_model.safetensors", "a link"), ("threshold.json", "a link"), ("threshold.json", "a pipe"),
]  # fmt: skip


def _asked(name: str, how: str) -> Case:
    def plan(scene: Scene) -> Plan:
        kind = SPAN if name == "threshold.json" else LORA
        run = scene.finished(kind)
        plant(scene, how, run / name)
        asked = ["a fine film"] if kind == LORA else ["--question", "Who?", "--context", "Ada did."]
        absent = (name, how) == ("threshold.json", "a pipe")  # as a run that was never evaluated
        return Plan(["predict", str(run), *asked], same=goes_on if absent else None)

    return Case(f"predict: {how} at {name}", plan)


PUSHED = [
    ("README.md", "a link"), ("README.md", "a hard link"), ("README.md.partial", "a link"),
    ("threshold.json", "a link"), ("comparison.json", "a link"), ("tuned/results.json", "a link"),
    ("zero-shot", "a link to a folder"), ("report.html", "a pipe"), ("recipe.yaml", "a link"),
    ("adapter/adapter_config.json", "a link"),
]  # fmt: skip


def _pushed(name: str, how: str) -> Case:
    def plan(scene: Scene) -> Plan:
        run = evaluated(scene)
        plant(scene, how, run / name)
        return Plan(["push", str(run), "--dry-run"], same=goes_on)

    return Case(f"push --dry-run: {how} at {name}", plan)


def _report_of_this_machine(scene: Scene) -> Plan:
    """The comparison no longer names the sum of the report, so the report may be any file."""
    run = evaluated(scene)
    plant(scene, "a link", run / "report.html")
    change_json(run / "comparison.json", lambda values: values.pop("report_sha256"))
    return Plan(["push", str(run), "--dry-run"], same=goes_on)


REPORTED = [
    ("report.html", "a link"), ("report.html.partial", "a link"), ("comparison.json", "a link"),
    ("comparison.json.partial", "a link"), ("tuned/predictions.jsonl", "a link"),
    ("tuned/predictions.jsonl", "a pipe"), ("history.jsonl", "a link"),
]  # fmt: skip


def _reported(name: str, how: str) -> Case:
    def plan(scene: Scene) -> Plan:
        run = evaluated(scene)
        plant(scene, how, run / name)
        return Plan(["html", str(run)], "eval", goes_on)

    return Case(f"html: {how} at {name}", plan)


COMPARED = [("results.json", "a link"), ("results.json", "a pipe"), ("predictions.jsonl", "a pipe")]


def _compared(name: str, how: str) -> Case:
    def plan(scene: Scene) -> Plan:
        tuned = scene.shop.tuned(LORA)
        shutil.copytree(tuned, scene.out)
        plant(scene, how, scene.out / name)
        return Plan(["compare", str(tuned), str(scene.out)], "eval")

    return Case(f"compare: {how} at {name}", plan)


def _merged(scene: Scene) -> Plan:
    run = scene.finished()
    words = ["merge", str(run), "--output", str(scene.folder / "merged")]
    plant(scene, "a link to a folder", scene.folder / ".merged.partial")
    return Plan(words, same=lambda scene, done: "" if _is_merged(scene) else "nothing was merged")


def _is_merged(scene: Scene) -> bool:
    return (scene.folder / "merged/model.safetensors").is_file()
