"""Text from data, records and names that would command the terminal, and secrets in what is printed."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from llama_peft.recipe import strict_yaml
from tests.faults.data.case import squad
from tests.faults.inputs import PARTS
from tests.faults.models.damaged import reseal
from tests.support import runs

from .case import GENERATIVE, LORA, SECRET, SPAN, Case, End, Plan, Scene, goes_on
from .stage import change_adapter, change_json, change_recipe, evaluated

BASE = "model: {model_name_or_path: tiny}\n"
ORDERS = {
    "a colour": "\x1b[31m", "the clipboard": "\x1b]52;c;cm0=\x07", "a hyperlink": "\x1b]8;;file:/x\x1b\\",
    "a bell": "\x07", "a C1 sequence": "\x9b31m", "right to left": "\u202e", "an isolate": "\u2066",
    "a carriage return": "\rfake", "a backspace": "\x08\x08", "a delete": "\x7f", "a title": "\x1b]0;x\x9c",
    "a line separator": "\u2028", "a mark": "\u200f",
}  # fmt: skip
ALL = "x" + "".join(ORDERS.values())
NAME = "x\x1b[31m\x07\u202e\u2066\x9b2J\r\x08y"
"""For the names of files, which hold no slash."""


def cases() -> Iterator[Case]:
    for number, (name, order) in enumerate(ORDERS.items()):
        yield _validated(name, order, cheap=number < 2)
    for name, plan in SHOWN.items():
        yield Case(f"terminal: {name}", plan, cheap=name in CHEAP)
    for name, word in URLS.items():
        for place, words in URL_PLACES.items():
            yield _secret(name, word, place, words)
    yield Case("secret: a token of the user in an error", _own_token)


CHEAP = (
    "ids and prompts of --show",
    "a label that predict prints",
    "a missing data file",
    "a model's name in compare",
)


def write_csv(path: Path, *rows: tuple[str, ...]) -> Path:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    path.write_bytes(text.getvalue().encode())
    return path


def recipe_on(scene: Scene, data: Path, kind: str = LORA, **sections: Any) -> str:
    """A recipe on a file."""
    values = scene.shop.recipe(kind, scene.folder).model_dump(
        exclude={"dataset"}, exclude_none=True
    )
    shares = {"validation_size": 0.2, "test_size": 0.2, "stratify": False}
    values["dataset"] = {"path": str(data), **shares}
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys}
    path = scene.folder / "recipe.yaml"
    path.write_text(strict_yaml.dump(values))
    return str(path)


def texts(scene: Scene, label: str) -> Path:
    rows = [(f"text {n}", (label, "other")[n % 2]) for n in range(20)]
    return write_csv(scene.folder / "a.csv", ("text", "label"), *rows)


def _validated(name: str, order: str, cheap: bool) -> Case:
    def plan(scene: Scene) -> Plan:
        words = ["validate", recipe_on(scene, texts(scene, f"good{order}film"))]
        return Plan(words, same=goes_on, goes_on=True)

    return Case(f"terminal: a label with {name}", plan, cheap=cheap)


def _data(name: str, *rows: tuple[str, ...]) -> Callable[[Scene], Plan]:
    def plan(scene: Scene) -> Plan:
        return Plan(["validate", recipe_on(scene, write_csv(scene.folder / name, *rows))])

    return plan


def _questions(raw: bytes) -> Callable[[Scene], Plan]:
    def plan(scene: Scene) -> Plan:
        path = scene.folder / "a.json"
        path.write_bytes(raw)
        return Plan(["validate", recipe_on(scene, path, SPAN)])

    return plan


def _recipe(text: str) -> Callable[[Scene], Plan]:
    def plan(scene: Scene) -> Plan:
        path = scene.folder / "recipe.yaml"
        path.write_text(text, "utf-8")
        return Plan(["validate", str(path)])

    return plan


def _quoted(text: str) -> str:
    """The text in YAML's double quotes, with escapes."""
    return json.dumps(text)


def _words(*words: str, program: str = "llama_peft") -> Callable[[Scene], Plan]:
    return lambda scene: Plan(
        [word.replace("BASE", str(scene.shop.base)) for word in words], program
    )


def _base(change: Callable[[Path], object], *words: str) -> Callable[[Scene], Plan]:
    def plan(scene: Scene) -> Plan:
        base = Path(shutil.copytree(scene.shop.base, scene.folder / "base"))
        change(base)
        if words:
            return Plan([*words, str(base)], same=goes_on)
        return Plan(scene.shop.write(scene.shop.recipe(LORA, scene.folder, base), scene.folder))

    return plan


def _edit(name: str, **keys: object) -> Callable[[Path], object]:
    return lambda folder: change_json(folder / name, lambda values: values.update(keys), False)


def _predict(change: Callable[[Path], object], *more: str) -> Callable[[Scene], Plan]:
    def plan(scene: Scene) -> Plan:
        run = scene.finished()
        change(run)
        return Plan(["predict", str(run), "a film", *more], same=goes_on, goes_on=change is _label)

    return plan


def _label(run: Path) -> None:
    change_recipe(run, {"dataset": {"labels": ["a" + ALL, "b" + ALL]}})


def _named_file(run: Path) -> None:
    values = json.loads((run / "training.json").read_text())
    runs.write_record(run, values | {"files": values["files"] | {ALL: "0" * 64}})


def _tensor(run: Path) -> None:
    path = run / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"base_model.{ALL}"] = tensors.pop(next(iter(tensors)))
    save_file(tensors, path)
    reseal(run)


def _shown(scene: Scene) -> Plan:
    run = scene.finished()
    path = write_csv(
        scene.folder / "mine.csv",
        ("id", "text", "label"),
        ("i" + ALL, "t" + ALL, "positive"),
        ("2", "bad", "negative"),
    )
    words = [
        "run",
        "--model",
        str(run),
        "--data",
        str(path),
        "--output",
        str(scene.out),
        "--show",
        "2",
    ]
    return Plan(words, "eval", goes_on, goes_on=True)


def _answered(scene: Scene) -> Plan:
    run = scene.finished(GENERATIVE)
    path = scene.folder / "mine.jsonl"
    row = {
        "id": ALL,
        "question": "Who?" + ALL,
        "context": "Ada " + ALL,
        "answers": [{"text": "Ada", "answer_start": 0}],
    }
    path.write_text(json.dumps(row) + "\n")
    words = [
        "run",
        "--model",
        str(run),
        "--data",
        str(path),
        "--output",
        str(scene.out),
        "--show",
        "1",
    ]
    return Plan(words, "eval", goes_on, goes_on=True)


def _compared(change: Callable[[dict[str, Any]], object]) -> Callable[[Scene], Plan]:
    def plan(scene: Scene) -> Plan:
        tuned = scene.shop.tuned(LORA)
        shutil.copytree(tuned, scene.out)
        change_json(scene.out / "results.json", change)
        return Plan(["compare", str(tuned), str(scene.out)], "eval", goes_on)

    return plan


def _metric(values: dict[str, Any]) -> None:
    for scores in values["results"].values():
        scores[ALL] = scores["accuracy"]


def _scored(end: End | None = None, **keys: object) -> Callable[[Scene], Plan]:
    def plan(scene: Scene) -> Plan:
        tuned = scene.shop.tuned(LORA)
        lines = [json.loads(line) for line in (tuned / "predictions.jsonl").open()]
        path = scene.folder / "mine.jsonl"
        path.write_text("".join(json.dumps({**line, **keys}) + "\n" for line in lines))
        task = ["--task", str(tuned.parent / "recipe.yaml")]
        words = ["score", *task, "--predictions", str(path), "--output", str(scene.out)]
        return Plan(words, "eval", end)

    return plan


def _page(scene: Scene) -> Plan:
    run = evaluated(scene)
    change_json(run / "tuned/results.json", lambda values: values.update(adapter_sha256=ALL))
    return Plan(["html", str(run)], "eval")


def _existing(scene: Scene) -> Plan:
    output = scene.folder / NAME
    output.mkdir()
    return Plan(["merge", str(scene.finished()), "--output", str(output)])


def _trained(scene: Scene) -> Plan:
    """A training in a folder of such a name, with data of such a name."""
    data = texts(scene, "good").rename(scene.folder / f"{NAME}.csv")
    recipe = recipe_on(scene, data, train={"output_dir": str(scene.folder / NAME), "max_steps": 1})
    return Plan(["train", recipe], same=goes_on)


def _other_recipe(scene: Scene) -> Plan:
    run = scene.finished()
    (run / "recipe.yaml").write_text(f"name: {ALL}\n", "utf-8")
    return Plan(scene.again(train={"seed": 9}))


SHOWN: dict[str, Callable[[Scene], Plan]] = {
    "a label that predict prints": _predict(_label),
    "a label that predict --json prints": _predict(_label, "--json"),
    "ids and prompts of --show": _shown,
    "ids, questions and passages of --show": _answered,
    "columns of a table": _data("a.csv", (ALL, "label"), ("fine", "1"), ("bad", "0")),
    "an id twice": _data("a.csv", ("id", "text", "label"), (ALL, "fine", "1"), (ALL, "bad", "0")),
    "the id of a text that is empty": _data("a.csv", ("id", "text", "label"), (ALL, "", "1"), ("2", "bad", "0")),
    "the id of a question": _questions(squad([{"text": "Ada", "answer_start": 7}], id=ALL)),
    "an answer that is not there": _questions(squad([{"text": ALL, "answer_start": 0}])),
    "a broken line of JSON": _questions(b"[{" + ALL.encode()),
    "a missing data file": lambda scene: Plan(
        ["validate", recipe_on(scene, scene.folder / f"{NAME}.csv")], says="no such file"
    ),
    "a data file of an unknown kind": _data(f"{NAME}.xlsx", ("a", "b")),
    "an unknown key of a recipe": _recipe(f"task: classification\n{_quoted(ALL)}: 1\n"),
    "a value of a recipe": _recipe(f"task: {_quoted(ALL)}\ndataset: {{path: tiny}}\n"),
    "the name of a recipe": _recipe(f"name: {_quoted(ALL)}\ntask: classification\ndataset: {{path: tiny, name: reviews, {PARTS}}}\n{BASE}"),
    "a data set's name": _recipe(f"task: classification\ndataset: {{path: tiny, name: {_quoted(ALL)}, {PARTS}}}\n{BASE}"),
    "a broken recipe": _recipe(f"task: [\n{ALL}: }}\n"),
    "a recipe that is missing": _words("train", f"/no/{NAME}.yaml"),
    "an override": _words("validate", "tiny-sst2", f"{NAME}=1"),
    "the value of an override": _words("validate", "tiny-sst2", f"train.seed={NAME}"),
    "an unknown option": _words("validate", f"--{NAME}"),
    "an unknown command": _words(NAME),
    "a run that is missing": _words("predict", f"/no/{NAME}", "text"),
    "a model that is missing": _words("params", f"/no/{NAME}"),
    "the name of a repository": _words("predict", f"user/{NAME}", "text"),
    "an unknown part": _words("run", "--task", "tiny-sst2", "--model", "BASE", "--split", NAME, program="eval"),
    "an unknown kind of model": _words("run", "--task", "tiny-sst2", "--kind", NAME, program="eval"),
    "missing predictions": _words("score", "--task", "tiny-sst2", "--predictions", f"/no/{NAME}", program="eval"),
    "missing results": _words("compare", f"/no/{NAME}", program="eval"),
    "the family of a base": _base(_edit("config.json", model_type=ALL), "params"),
    "the class of a tokenizer": _base(_edit("tokenizer_config.json", tokenizer_class=ALL), "params"),
    "the precision of a base": _base(_edit("config.json", dtype=ALL, torch_dtype=ALL)),
    "a template's own error": _base(_edit("tokenizer_config.json", chat_template=f"{{{{ raise_exception({ALL!r}) }}}}")),
    "a file in the record": _predict(_named_file),
    "a value in the record": _predict(lambda run: change_json(run / "training.json", lambda v: v.update({"steps": ALL}))),
    "a key in the record": _predict(
        lambda run: change_json(run / "training.json", lambda v: v.update({"rows": {ALL: "x"}}))
    ),
    "the method of an adapter": _predict(lambda run: change_adapter(run, peft_type=ALL)),
    "a target of an adapter": _predict(lambda run: change_adapter(run, target_modules=[ALL])),
    "a key of an adapter": _predict(lambda run: change_adapter(run, **{ALL: 1})),
    "a tensor of an adapter": _predict(_tensor),
    "a model's name in compare": _compared(lambda values: values["config"].update(model=ALL)),
    "a metric's name in compare": _compared(_metric),
    "a task's name in compare": _compared(lambda v: v.update(results={ALL: next(iter(v["results"].values()))})),
    "the date of results in compare": _compared(lambda values: values.update(date=ALL)),
    "an unknown prediction": _scored(id=ALL),
    "a prediction that is not a label": _scored(goes_on, prediction=ALL),  # it counts as unparsable
    "weights of another run in html": _page,
    "a folder that exists": _existing,
    "the folder of a training": _trained,
    "a recipe that differs": _other_recipe,
    "the name of a pushed repository": lambda scene: Plan(["push", str(evaluated(scene)), "--dry-run", "--repo-id", NAME]),
}  # fmt: skip

PASSWORD = "correct-horse-7Qx"
URLS = {
    "a token": f"https://user:{SECRET}@huggingface.co/meta/llama",
    "a password": f"https://user:{PASSWORD}@host.example/data.csv",
    "a key in the query": f"https://host.example/data.csv?token={PASSWORD}",
}
URL_PLACES: dict[str, tuple[str, ...]] = {
    "the model": ("train", "tiny-sst2", "model.model_name_or_path=URL", "train.output_dir=OUT"),
    "the data": ("eval", "run", "--task", "tiny-sst2", "--data", "URL"),
    "the recipe": ("validate", "URL"),
    "the run": ("predict", "URL", "text"),
    "params": ("params", "URL"),
    "the output": ("train", "tiny-sst2", "train.output_dir=/proc/nowhere/URL"),
}


def _secret(name: str, url: str, place: str, words: tuple[str, ...]) -> Case:
    def plan(scene: Scene) -> Plan:
        given = [word.replace("URL", url).replace("OUT", str(scene.run)) for word in words]
        program = given.pop(0) if given[0] == "eval" else "llama_peft"
        return Plan(given, program, hidden=(PASSWORD,))

    return Case(
        f"secret: {name} in the name of {place}",
        plan,
        cheap=(name, place) == ("a token", "the model"),
    )


def _own_token(scene: Scene) -> Plan:
    import os

    def hook() -> None:
        os.environ["HF_TOKEN"] = "a-token-of-another-form-99"

    scene.hook = hook
    return Plan(["predict", "/no/a-token-of-another-form-99", "x"], hidden=("a-token-of-another",))
