"""Work that never ends: patterns, pipes, devices, files of any size, nesting, and chat templates, which
also fail, or look for what they must not see.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from tests.faults.models.damaged import reseal

from .case import GENERATIVE, LORA, Case, Plan, Scene, predicts, trains
from .stage import change_adapter, change_json, evaluated
from .terminal import recipe_on

PATTERN = "(([a-z_.0-9])+)+$$!"
PATTERNS = {
    "nested": PATTERN,
    "choices": "(a|a|[a-z._0-9])*$!",
    "repeats": "(.*)*(.*)*(.*)*!",
    "counted": "((.{1,60}){1,60}){1,60}!",
}


def cases() -> Iterator[Case]:
    for name, pattern in PATTERNS.items():
        yield _adapter("target_modules", name, pattern, cheap=name == "nested")
    for key in ("exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern"):
        yield _adapter(key, "nested", PATTERN)
    for key, value in RECIPES.items():
        yield _recipe(key, value, cheap=key == "target_modules")
    yield Case("endless: a pattern in an adapter that is evaluated", _evaluated)
    yield Case("endless: a pattern in an adapter that is merged", _merged)
    yield Case("endless: a pattern in an adapter without a run", _bare_adapter)
    for name in ("a.csv", "a.jsonl", "a.json", "a.parquet"):
        for how, make in SOURCES.items():
            yield _data(name, how, make, cheap=(name, how) in CHEAP)
    for how, make in SOURCES.items():
        yield _record("recipe.yaml", how, make)
        yield _record("training.json", how, make)
        yield _base("config.json", how, make)
    yield _base("model.safetensors", "a pipe", SOURCES["a pipe"])
    yield _base("tokenizer.json", "a pipe", SOURCES["a pipe"])
    for how in ("a pipe", "a device"):
        yield _command(how, SOURCES[how])
        yield _predictions(how, SOURCES[how])
    for name in NESTED:
        yield _nested(name, "[" * 100_000)
        yield _nested(name, '{"a":' * 100_000)
    yield Case("endless: history.jsonl of brackets at train", _history)
    yield Case("endless: unfinished predictions of brackets", _unfinished)
    for name, template in TEMPLATES.items():
        yield _template(name, template)
    for name in ("nested loops", "a division by zero", "a text that doubles"):
        yield _template_file(name, str(TEMPLATES[name]))
        yield _zero_shot(name, str(TEMPLATES[name]))


CHEAP = [("a.csv", "a pipe"), ("a.jsonl", "a device"), ("a.csv", "a link to itself")]


def _adapter(key: str, name: str, pattern: str, cheap: bool = False) -> Case:
    value: object = {pattern: 4} if key.endswith("k_pattern") or key == "alpha_pattern" else pattern

    def plan(scene: Scene) -> Plan:
        run = scene.finished()
        more = {"layers_to_transform": [0]} if key == "layers_pattern" else {}
        change_adapter(run, **{key: value}, **more)
        return Plan(["predict", str(run), "a fine film"])

    return Case(f"endless: {key} with {name} in an adapter", plan, cheap=cheap)


RECIPES: dict[str, object] = {
    "target_modules": PATTERN, "exclude_modules": PATTERN, "rank_pattern": {PATTERN: 4}, "alpha_pattern": {PATTERN: 4},
}  # fmt: skip


def _recipe(key: str, value: object, cheap: bool) -> Case:
    def plan(scene: Scene) -> Plan:
        words = scene.again()
        values = yaml.safe_load(Path(words[1]).read_text())
        values["lora"][key] = value
        Path(words[1]).write_text(yaml.safe_dump(values))
        return Plan(words, says=key)

    return Case(f"endless: lora.{key} in a recipe", plan, cheap=cheap)


def _evaluated(scene: Scene) -> Plan:
    run = scene.finished()
    change_adapter(run, target_modules=PATTERN)
    return Plan(["run", "--model", str(run), "--output", str(scene.out)], "eval")


def _merged(scene: Scene) -> Plan:
    run = scene.finished()
    change_adapter(run, target_modules=PATTERN)
    return Plan(["merge", str(run), "--output", str(scene.folder / "merged")])


def _bare_adapter(scene: Scene) -> Plan:
    """An adapter from anywhere, which is not in a run."""
    run = scene.finished()
    change_adapter(run, target_modules=PATTERN, base_model_name_or_path=str(scene.shop.base))
    adapter = shutil.copytree(run / "adapter", scene.folder / "adapter")
    recipe = str(scene.shop.reference(LORA) / "recipe.yaml")
    words = ["run", "--task", recipe, "--model", str(adapter), "--output", str(scene.out)]
    return Plan(words, "eval")


def _huge(path: Path) -> None:
    """A file of a terabyte of zeros, which takes no room on the disk."""
    path.touch()
    os.truncate(path, 10**12)


SOURCES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terabyte": _huge,
    "a link to itself": lambda path: path.symlink_to(path.name),
}


def _data(name: str, how: str, make: Callable[[Path], object], cheap: bool) -> Case:
    def plan(scene: Scene) -> Plan:
        make(scene.folder / name)
        says = "link|loops|follow" if how == "a link to itself" else name
        return Plan(["validate", recipe_on(scene, scene.folder / name)], says=says)

    return Case(f"endless: {how} as {name}", plan, cheap=cheap)


def _record(name: str, how: str, make: Callable[[Path], object]) -> Case:
    def plan(scene: Scene) -> Plan:
        run = scene.finished()
        (run / name).unlink()
        make(run / name)
        return Plan(["predict", str(run), "a fine film"], says=name)

    return Case(f"endless: {how} as {name} of a run", plan)


def _base(name: str, how: str, make: Callable[[Path], object]) -> Case:
    def plan(scene: Scene) -> Plan:
        base = Path(shutil.copytree(scene.shop.base, scene.folder / "base"))
        (base / name).unlink()
        make(base / name)
        return Plan(scene.shop.write(scene.shop.recipe(LORA, scene.folder, base), scene.folder))

    return Case(f"endless: {how} as {name} of a base", plan)


def _command(how: str, make: Callable[[Path], object]) -> Case:
    def plan(scene: Scene) -> Plan:
        make(scene.folder / "recipe.yaml")
        return Plan(["validate", str(scene.folder / "recipe.yaml")], says="recipe.yaml")

    return Case(f"endless: {how} as a recipe", plan)


def _predictions(how: str, make: Callable[[Path], object]) -> Case:
    def plan(scene: Scene) -> Plan:
        make(scene.folder / "mine.jsonl")
        recipe = str(scene.shop.reference(LORA) / "recipe.yaml")
        words = ["score", "--task", recipe, "--predictions", str(scene.folder / "mine.jsonl")]
        return Plan([*words, "--output", str(scene.out)], "eval", says="mine.jsonl")

    return Case(f"endless: {how} as predictions", plan)


NESTED = (
    "training.json", "adapter/adapter_config.json", "tuned/results.json", "comparison.json", "history.jsonl",
    "tuned/predictions.jsonl",
)  # fmt: skip


def _nested(name: str, text: str) -> Case:
    """A file of brackets in an evaluated run, of which the report is made again."""

    def plan(scene: Scene) -> Plan:
        run = evaluated(scene)
        (run / name).write_text(text)
        if name.startswith("adapter"):
            reseal(run)
            return Plan(["predict", str(run), "a fine film"])
        if name == "history.jsonl":
            change_json(run / "training.json", lambda values: values.update(history_sha256=None))
            return Plan(["html", str(run)], "eval", lambda scene, done: "")
        if name in ("comparison.json", "tuned/predictions.jsonl"):
            return Plan(["html", str(run)], "eval", lambda scene, done: "")
        return Plan(["html", str(run)], "eval")

    return Case(f"endless: {text[:5]} nested in {name}", plan)


def _history(scene: Scene) -> Plan:
    words = scene.unfinished()
    (scene.run / "history.jsonl").write_text("[" * 100_000)
    return Plan(words, same=trains(LORA))


def _unfinished(scene: Scene) -> Plan:
    """With the checksum that belongs to the line."""
    import zlib

    scene.shop.tuned(LORA)
    text = "[" * 100_000
    scene.out.mkdir()
    line = f"{zlib.crc32(text.encode()):08x} {text}\n"
    (scene.out / "predictions.partial.jsonl").write_text(line)
    words = ["run", "--model", str(scene.shop.reference(LORA)), "--output", str(scene.out)]
    return Plan(words, "eval", predicts(LORA))


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
ENDS = "{% endfor %}{% endfor %}{% endfor %}"
TEMPLATES = {
    "nested loops": LOOPS + ENDS,
    "nested loops that write": LOOPS + "x" + ENDS,
    "a wide number": "{{ '%999999999d' % 1 }}",
    "a wide number by format": "{{ '{:999999999d}'.format(1) }}",
    "a text that doubles": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "a text times a number": "{{ 'x' * 99999999999 }}",
    "a list that doubles": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a power": "{{ 9 ** 9 ** 9 }}",
    "a shift of powers": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "a division by zero": "{{ 1 / 0 }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a long range": "{% for i in range(10 ** 12) %}{% endfor %}",
    "a list of a long range": "{{ range(10 ** 12) | list }}",
    "a filter that centers": "{{ 'x' | center(99999999999) }}",
    "a filter that joins": "{{ range(9999999999) | join('x') }}",
    "a filter that indents": "{{ 'x' | indent(99999999999, true) }}",
    "a sorted range": "{{ range(9999999999) | sort }}",
    "a sum": "{{ range(99999999999) | sum }}",
    "lorem ipsum": "{{ lipsum(n=99999999, min=99, max=100) }}",
    "a broken template": "{% for %}",
    "a template of brackets": "{{ " + "(" * 9000 + ")" * 9000 + " }}",
    "a megabyte": "x" * 50_000_000,
    "an unknown filter": "{{ messages | nobody }}",
    "an unknown name": "{{ nobody.nothing.at_all }}",
    "classes": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch OUT') }}",
    "globals of a joiner": "{{ joiner.__init__.__globals__['os'].popen('touch OUT') }}",
    "an attribute by a filter": "{{ (messages|attr('__class__')|attr('__base__'))|attr('__subclasses__')() }}",
    "an attribute by format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "an include": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os.system('true') }}",
    "its own error": "{{ raise_exception('the template says no') }}",
    "an error over lines": "{{ raise_exception('one\\ntwo\\nthree') }}",
    "the user's words removed": "no message at all",
    "nothing": "",
    "a list": ["a", "b"],
    "a number": 7,
    "several by name": {"default": "{{ 1 / 0 }}"},
}
CHEAP_TEMPLATES = ("a division by zero", "a wide number")
EMPTY_TEMPLATES = ("nothing",)


def _copied(scene: Scene) -> Path:
    return Path(shutil.copytree(scene.shop.base, scene.folder / "base"))


def _template(name: str, template: object) -> Case:
    def plan(scene: Scene) -> Plan:
        base = _copied(scene)
        text = json.loads(json.dumps(template).replace("OUT", str(scene.outside / "executed")))
        change_json(base / "tokenizer_config.json", lambda v: v.update(chat_template=text), False)
        words = scene.shop.write(scene.shop.recipe(GENERATIVE, scene.folder, base), scene.folder)
        return Plan(words, same=(lambda scene, done: "") if name in EMPTY_TEMPLATES else None)

    return Case(f"template: {name}", plan, cheap=name in CHEAP_TEMPLATES)


def _template_file(name: str, template: str) -> Case:
    """In a file of its own, which newer tokenizers have."""

    def plan(scene: Scene) -> Plan:
        base = _copied(scene)
        (base / "chat_template.jinja").write_text(template)
        return Plan(
            scene.shop.write(scene.shop.recipe(GENERATIVE, scene.folder, base), scene.folder)
        )

    return Case(f"template: {name} in chat_template.jinja", plan)


def _zero_shot(name: str, template: str) -> Case:
    def plan(scene: Scene) -> Plan:
        base = _copied(scene)
        change_json(
            base / "tokenizer_config.json", lambda v: v.update(chat_template=template), False
        )
        task = str(scene.shop.reference(GENERATIVE) / "recipe.yaml")
        words = ["run", "--task", task, "--model", str(base), "--output", str(scene.out)]
        return Plan(words, "eval")

    return Case(f"template: {name} at zero-shot", plan)
