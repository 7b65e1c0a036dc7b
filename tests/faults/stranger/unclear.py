"""Accidents that each need one clear line: it names the place, and what to do."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from llama_peft.system.lock import only_process
from tests.faults.inputs import PARTS
from tests.support import runs

from .case import LORA, SECRET, Case, Plan, Scene, prints
from .stage import change_adapter
from .terminal import recipe_on, write_csv


def cases() -> Iterator[Case]:
    yield Case("unclear: a model's address with a password", _address)
    for name, files in NAMED_FILES.items():
        yield _files(name, files, cheap=name == "no files")
    for left in ((), ("recipe.yaml",), ("checkpoints",), ("recipe.yaml", "checkpoints")):
        name = f"unclear: an evaluation beside train --fresh, with {left or 'nothing'}"
        yield Case(name, _beside_fresh(*left), cheap=not left)
    yield Case(
        "unclear: an adapter that train --fresh moves meanwhile", _moved_meanwhile, cheap=True
    )
    yield Case("unclear: an evaluation of an unfinished run", _unfinished)
    yield Case("unclear: a table that is a link to itself", _loop, cheap=True)
    yield Case("unclear: a run folder that is a link to itself", _loop_run)
    yield Case("unclear: loftq on a base that is not quantised", _loftq, cheap=True)
    yield Case("unclear: an adapter that began with loftq", _adapter_of_loftq)
    for length in (300, 5000):
        for command in ("validate", "train"):
            yield _long_name(length, command)
    yield Case("unclear: a long output folder", _long_output)
    yield Case(
        "unclear: a data set of the Hub whose name is a folder here",
        _folder_of_that_name,
        cheap=True,
    )
    yield Case("unclear: a data set of the Hub whose name is a file here", _file_of_that_name)
    yield Case("unclear: a record that is not an object", _list_record)
    yield Case("unclear: a folder as data", _folder_as_data)
    yield Case("unclear: a zero byte in a path", _zero_byte)
    yield Case("unclear: a run that is a file", _file_as_run)
    yield Case("unclear: results without their predictions", _no_predictions)


def _address(scene: Scene) -> Plan:
    words = scene.again()
    words.append(f"model.model_name_or_path=https://user:{SECRET}@huggingface.co/meta/llama")
    return Plan(words, says=r"\*\*\*")


NAMED_FILES: dict[str, object] = {
    "no files": {},
    "only texts": {"recipe.yaml": "RECIPE"},
    "a list": [],
    "a sum that is a number": {"recipe.yaml": 7},
    "a name that is absolute": {"/etc/passwd": "0" * 64, "recipe.yaml": "RECIPE"},
    "an empty name": {"": "0" * 64},
}


def _files(name: str, files: object, cheap: bool) -> Case:
    """A record of a run that names too little, or what it cannot name."""

    def plan(scene: Scene) -> Plan:
        from llama_peft.system.files import sha256

        run = scene.finished()
        text = json.dumps(files).replace("RECIPE", sha256(run / "recipe.yaml"))
        values = json.loads((run / "training.json").read_text()) | {"files": json.loads(text)}
        runs.write_record(run, values)
        return Plan(["predict", str(run), "a fine film"], says=r"training\.json|passwd")

    return Case(f"unclear: training.json names {name}", plan, cheap=cheap)


def _beside_fresh(*left: str) -> Callable[[Scene], Plan]:
    """The training has put the earlier run aside, and has made nothing yet but what is `left`."""

    def plan(scene: Scene) -> Plan:
        run = scene.finished()
        (run / ".previous").mkdir()
        for path in list(run.iterdir()):
            if path.name != ".previous" and path.name not in left:
                shutil.move(path, run / ".previous" / path.name)
        scene.around = only_process(run, "training")
        words = ["run", "--model", str(run), "--output", str(scene.out)]
        return Plan(words, "eval", says="no finished run|not a run folder|training")

    return plan


def _moved_meanwhile(scene: Scene) -> Plan:
    """The training begins, and moves the adapter, after the evaluation has opened the run."""
    run = scene.finished()

    def hook() -> None:
        from llama_peft.model import backbone

        original = backbone.load

        def load(*words: Any, **keys: Any) -> Any:
            shutil.move(run / "adapter", run / ".previous.adapter")
            return original(*words, **keys)

        backbone.load = load

    scene.hook = hook
    words = ["run", "--model", str(run), "--output", str(scene.out)]
    return Plan(words, "eval", says="^(?!.*pickled)")


def _unfinished(scene: Scene) -> Plan:
    scene.unfinished()
    words = ["run", "--model", str(scene.run), "--output", str(scene.out)]
    return Plan(words, "eval", says="no finished run")


def _loop(scene: Scene) -> Plan:
    path = scene.folder / "loop.csv"
    path.symlink_to("loop.csv")
    return Plan(["validate", recipe_on(scene, path)], says="link|loops|follow")


def _loop_run(scene: Scene) -> Plan:
    words = scene.again()
    scene.run.parent.mkdir()
    scene.run.symlink_to("run")
    return Plan(words, says="runs/run")


def _loftq(scene: Scene) -> Plan:
    words = [*scene.again(), "lora.init_lora_weights=loftq"]
    return Plan(words, says="lora.init_lora_weights")


def _adapter_of_loftq(scene: Scene) -> Plan:
    run = scene.finished()
    change_adapter(run, init_lora_weights="loftq", loftq_config={"loftq_bits": 4})
    words = ["predict", str(scene.shop.reference(LORA)), "a film"]
    return Plan(["predict", str(run), "a film"], same=prints(words), says="init_lora_weights|LoftQ")


def _long_name(length: int, command: str) -> Case:
    def plan(scene: Scene) -> Plan:
        path = scene.folder / "recipe.yaml"
        path.write_text(
            f"name: {'n' * length}\ntask: classification\nmodel: {{model_name_or_path: tiny}}\n"
            f"dataset: {{path: tiny, name: reviews, {PARTS}}}\n"
        )
        scene.hook = lambda: os.chdir(scene.folder)
        return Plan([command, str(path)], says=r"\bname\b")

    return Case(
        f"unclear: a name of {length} letters at {command}",
        plan,
        cheap=(length, command) == (300, "validate"),
    )


def _long_output(scene: Scene) -> Plan:
    return Plan(
        [*scene.again(), f"train.output_dir={scene.folder / ('n' * 300)}"], says="output_dir|nnn"
    )


def _named(scene: Scene) -> Plan:
    """The command runs in a folder that holds the name, and does not read it instead of the Hub."""
    path = scene.folder / "recipe.yaml"
    path.write_text(
        "task: classification\ndataset: {path: text, columns: {text: text, label: label}, "
        "labels: [a, b], parts: {train: train, test: test}}\n"
        "model: {model_name_or_path: tiny}\n"
    )
    scene.hook = lambda: os.chdir(scene.folder)
    return Plan(["validate", str(path)], says="text")


def _folder_of_that_name(scene: Scene) -> Plan:
    (scene.folder / "text").mkdir()
    (scene.folder / "text/train.txt").write_text("the working directory")
    return _named(scene)


def _file_of_that_name(scene: Scene) -> Plan:
    write_csv(scene.folder / "text", ("text", "label"), ("fine", "a"), ("bad", "b"))
    return _named(scene)


def _list_record(scene: Scene) -> Plan:
    run = scene.finished()
    (run / "training.json").write_text("[]")
    return Plan(["predict", str(run), "x"], says=r"training\.json")


def _folder_as_data(scene: Scene) -> Plan:
    (scene.folder / "a.csv").mkdir()
    return Plan(["validate", recipe_on(scene, scene.folder / "a.csv")], says=r"a\.csv")


def _zero_byte(scene: Scene) -> Plan:
    path = scene.folder / "recipe.yaml"
    path.write_text(
        'task: classification\nmodel: {model_name_or_path: tiny}\ndataset: {path: "a\\0.csv"}\n'
    )
    return Plan(["validate", str(path)], says="dataset.path|a.*csv")


def _file_as_run(scene: Scene) -> Plan:
    (scene.folder / "run.txt").write_text("no run")
    return Plan(["predict", str(scene.folder / "run.txt"), "x"], says=r"run\.txt")


def _no_predictions(scene: Scene) -> Plan:
    tuned = scene.shop.tuned(LORA)
    shutil.copytree(tuned, scene.out)
    (scene.out / "predictions.jsonl").unlink()
    return Plan(["compare", str(tuned), str(scene.out)], "eval", says=r"predictions\.jsonl")
