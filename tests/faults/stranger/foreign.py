"""Folders of other tools and files of the user, in every place where a command writes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.faults.shop import Done
from tests.support.hub.server import Hub, serve

from .case import HEAD, LORA, PRIVATE, SPAN, Case, Plan, Scene, goes_on, predicts, trains
from .stage import evaluated, use_hub


def cases() -> Iterator[Case]:
    for name, files in FOLDERS.items():
        for fresh in (False, True):
            yield _trained(name, files, fresh)
    for name, files in BESIDE.items():
        for fresh in (False, True):
            yield _beside(name, files, fresh)
    for name in ("results.json", "predictions.jsonl", "predictions.partial.jsonl", "notes.txt"):
        yield _evaluated(name)
        yield _scored(name)
    yield Case("foreign: lm-eval's folder as --output", _lm_eval, cheap=True)
    yield Case("foreign: lm-eval's folder as --output of several models", _several)
    yield Case("foreign: the user's README.md at push --dry-run", _dry_card, cheap=True)
    yield Case("foreign: the user's README.md at push", _pushed_card)
    yield Case("foreign: a README.md in the user's repository at push", _their_card)
    yield Case("foreign: the user's report.html at html", _report)
    yield Case("foreign: the user's comparison.json at html", _comparison)
    yield Case("foreign: the user's folder beside merge's output", _merge_partial)
    yield Case("foreign: the user's folder as merge's output", _merge_output)
    yield Case("foreign: the user's files in the folder of features", _features)
    yield Case("foreign: the user's threshold.json at an evaluation", _threshold)
    yield Case("foreign: a dry run writes nothing", _dry_run)


def write(folder: Path, *names: str) -> tuple[Path, ...]:
    """Files of the user."""
    paths = tuple(folder / name for name in names)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"mine": "{PRIVATE}"}}\n')
    return paths


FOLDERS: dict[str, tuple[str, ...]] = {
    "a Trainer's output": (
        "checkpoints/checkpoint-500/model.safetensors", "checkpoints/checkpoint-500/trainer_state.json",
        "adapter/adapter_model.safetensors", "history.jsonl",
    ),
    "another tool's checkpoints": ("checkpoints/checkpoint-500/optimizer.pt",),
    "another tool's adapter": ("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    "an adapter at the top": ("adapter_config.json", "adapter_model.safetensors", "checkpoint-10/optimizer.pt"),
    "another tool's history": ("history.jsonl",),
    "another tool's recipe": ("recipe.yaml", "checkpoints/epoch_0/model.safetensors"),
    "another tool's training.json": ("training.json",),
    "another tool's split.json": ("split.json", "data.sha256"),
    "another tool's head": ("head.safetensors", "head.json"),
    "another tool's results": ("tuned/results.json", "zero-shot/results.json", "report.html"),
    "the user's project": ("README.md", "notes/ideas.txt", ".git/config", "src/main.py"),
    "a folder .previous of the user": (".previous/thesis.txt",),
    "a folder .previous.partial of the user": (".previous.partial/recipe.yaml", ".previous.partial/thesis.txt"),
}  # fmt: skip


def _trained(name: str, files: tuple[str, ...], fresh: bool) -> Case:
    def plan(scene: Scene) -> Plan:
        mine = write(scene.run, *files)
        words = [*scene.again(), *(["--fresh"] if fresh else [])]
        return Plan(words, same=goes_on, mine=mine)

    cheap = name == "a Trainer's output"
    return Case(
        f"foreign: {name}{' at train --fresh' if fresh else ' at train'}", plan, cheap=cheap
    )


BESIDE: dict[str, tuple[str, ...]] = {
    "notes": ("notes.txt", "notes/ideas.txt"),
    "notes in our folders": ("tuned/notes.txt", "checkpoints/notes.txt", "adapter/notes.txt"),
    "a checkpoint of another tool": (
        "checkpoints/step-500/optimizer.pt",
        "checkpoints/best/model.bin",
    ),
    "an evaluation of another tool": ("tuned-by-hand/results.json", "tuned-2/notes.txt"),
    "a README.md": ("README.md",),
    "a report.html": ("report.html",),
    "a file called .x.partial": (".notes.partial", "notes.partial", "results.json.partial"),
    "a folder .previous": (".previous/thesis.txt",),
}


def _beside(name: str, files: tuple[str, ...], fresh: bool) -> Case:
    """The user's files in a run of ours."""

    def plan(scene: Scene) -> Plan:
        if fresh:
            scene.finished()
            words = [*scene.again(), "--fresh"]
        else:
            words = scene.unfinished()
        mine = write(scene.run, *files)
        return Plan(words, same=trains(LORA), mine=mine)

    return Case(
        f"foreign: {name} in our run{' at train --fresh' if fresh else ''}",
        plan,
        cheap=fresh and name == "notes",
    )


def _evaluated(name: str) -> Case:
    def plan(scene: Scene) -> Plan:
        expected = scene.shop.tuned(SPAN)
        mine = write(scene.out, name)
        words = ["run", "--model", str(expected.parent), "--output", str(scene.out)]
        return Plan(words, "eval", predicts(SPAN), mine=mine)

    return Case(f"foreign: the user's {name} at run --output", plan, cheap=name == "results.json")


def _scored(name: str) -> Case:
    def plan(scene: Scene) -> Plan:
        tuned = scene.shop.tuned(LORA)
        shutil.copy(tuned / "predictions.jsonl", scene.folder / "mine.jsonl")
        mine = write(scene.folder / "mine-scores", name)
        recipe = str(tuned.parent / "recipe.yaml")
        words = ["score", "--task", recipe, "--predictions", str(scene.folder / "mine.jsonl")]
        return Plan(words, "eval", goes_on, mine=mine)

    return Case(f"foreign: the user's {name} at score", plan)


LM_EVAL = {
    "results": {"sst2": {"acc,none": 0.5}},
    "configs": {},
    "versions": {},
    "config": {"model": "hf"},
}


def _lm_eval_folder(folder: Path) -> tuple[Path, ...]:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(LM_EVAL))
    (folder / "samples_sst2.jsonl").write_text('{"doc_id": 0}\n')
    return folder / "results.json", folder / "samples_sst2.jsonl"


def _lm_eval(scene: Scene) -> Plan:
    run = scene.shop.reference(LORA)
    mine = _lm_eval_folder(scene.out)
    words = ["run", "--model", str(run), "--output", str(scene.out)]
    return Plan(words, "eval", mine=mine, says="results.json")


def _several(scene: Scene) -> Plan:
    from eval.job import slug

    runs = [str(scene.shop.reference(LORA)), str(scene.shop.reference(HEAD))]
    mine = _lm_eval_folder(scene.out / slug(runs[1]))
    words = ["run", "--model", runs[0], "--model", runs[1], "--output", str(scene.out)]
    return Plan(words, "eval", mine=mine, says="results.json")


def _dry_card(scene: Scene) -> Plan:
    run = evaluated(scene)
    mine = write(run, "README.md")

    def prints_card(scene: Scene, done: Done) -> str:
        return "" if "\nlibrary_name: peft\n" in done.text else "the card was not printed"

    return Plan(["push", str(run), "--dry-run"], same=prints_card, mine=mine)


def _dry_run(scene: Scene) -> Plan:
    run = evaluated(scene)
    (run / "README.md").unlink(missing_ok=True)
    return Plan(["push", str(run), "--dry-run"], same=goes_on, mine=(run,))


def _hub(scene: Scene) -> Hub:
    hub = Hub(users={"hf_writer": {"name": "me", "role": "write"}})
    scene.around = serve(hub)
    scene.hook = lambda: use_hub(hub, scene.folder / "cache", "hf_writer")
    return hub


def _pushed_card(scene: Scene) -> Plan:
    run = evaluated(scene)
    mine = write(run, "README.md")
    hub = _hub(scene)

    def sent(scene: Scene, done: object) -> str:
        card = hub.repos["me/new"].head.files["README.md"]
        return "the user's words were sent" if PRIVATE.encode() in bytes(card) else ""  # type: ignore[arg-type]

    return Plan(["push", str(run), "--repo-id", "me/new"], same=sent, mine=mine)


def _their_card(scene: Scene) -> Plan:
    run = evaluated(scene)
    hub = _hub(scene)
    hub.add("me/old", {"README.md": b"my own model", "model.bin": b"1"})
    return Plan(["push", str(run), "--repo-id", "me/old"], says="me/old")


def _report(scene: Scene) -> Plan:
    run = evaluated(scene)
    return Plan(["html", str(run)], "eval", goes_on, mine=write(run, "report.html"))


def _comparison(scene: Scene) -> Plan:
    run = evaluated(scene)
    return Plan(["html", str(run)], "eval", goes_on, mine=write(run, "comparison.json"))


def _merge_partial(scene: Scene) -> Plan:
    run = scene.finished()
    mine = write(scene.folder / ".merged.partial", "thesis.txt")
    words = ["merge", str(run), "--output", str(scene.folder / "merged")]
    return Plan(words, same=goes_on, mine=mine)


def _merge_output(scene: Scene) -> Plan:
    run = scene.finished()
    mine = write(scene.folder / "merged", "thesis.txt")
    return Plan(["merge", str(run), "--output", str(scene.folder / "merged")], mine=mine)


def _features(scene: Scene) -> Plan:
    words = scene.again(HEAD)
    names = ("features/mine.npy", "features/states/thesis.txt", "features/states-1.safetensors")
    return Plan(words, same=trains(HEAD), mine=write(scene.run.parent, *names))


def _threshold(scene: Scene) -> Plan:
    scene.shop.tuned(SPAN)
    run = scene.finished(SPAN)
    mine = write(run, "threshold.json")
    words = ["run", "--model", str(run), "--output", str(scene.out)]
    return Plan(words, "eval", goes_on, mine=mine)
