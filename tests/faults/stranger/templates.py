"""Chat templates that never end, take all memory, fail, or look for what they must not see."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from .case import GENERATIVE, Case, Plan, Scene
from .stage import change_json

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
CHEAP = ("a division by zero", "endless recursion", "a wide number", "globals")
EMPTY = ("nothing",)


def cases() -> Iterator[Case]:
    for name, template in TEMPLATES.items():
        yield _trained(name, template)
    for name in ("nested loops", "a division by zero", "a text that doubles"):
        yield _file(name, str(TEMPLATES[name]))
        yield _zero_shot(name, str(TEMPLATES[name]))


def _base(scene: Scene) -> Path:
    return Path(shutil.copytree(scene.shop.base, scene.folder / "base"))


def _trained(name: str, template: object) -> Case:
    def plan(scene: Scene) -> Plan:
        base = _base(scene)
        text = json.loads(json.dumps(template).replace("OUT", str(scene.outside / "executed")))
        change_json(base / "tokenizer_config.json", lambda v: v.update(chat_template=text), False)
        words = scene.shop.write(scene.shop.recipe(GENERATIVE, scene.folder, base), scene.folder)
        return Plan(words, same=(lambda scene, done: "") if name in EMPTY else None)

    return Case(f"template: {name}", plan, cheap=name in CHEAP)


def _file(name: str, template: str) -> Case:
    """In a file of its own, which newer tokenizers have."""

    def plan(scene: Scene) -> Plan:
        base = _base(scene)
        (base / "chat_template.jinja").write_text(template)
        return Plan(
            scene.shop.write(scene.shop.recipe(GENERATIVE, scene.folder, base), scene.folder)
        )

    return Case(f"template: {name} in chat_template.jinja", plan)


def _zero_shot(name: str, template: str) -> Case:
    def plan(scene: Scene) -> Plan:
        base = _base(scene)
        change_json(
            base / "tokenizer_config.json", lambda v: v.update(chat_template=template), False
        )
        task = str(scene.shop.reference(GENERATIVE) / "recipe.yaml")
        words = ["run", "--task", task, "--model", str(base), "--output", str(scene.out)]
        return Plan(words, "eval")

    return Case(f"template: {name} at zero-shot", plan)
