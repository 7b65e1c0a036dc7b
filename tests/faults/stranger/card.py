"""Markup from data and recipes, in the card and in the report."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from tests.faults.shop import Done
from tests.support.hub.server import Hub, serve

from .case import Case, Plan, Scene
from .stage import change_json, change_recipe, evaluated, use_hub

MARKUP = {
    "a script": "<script>alert(1)</script>",
    "an image": "<img src=x onerror=alert(1)>",
    "a line": "x\n\n# Owned\n",
    "a backtick": "x`<b>y`",
    "a fence": "x\n```\n<script>1</script>",
    "a link": "[x](javascript:alert(1))",
    "a table's bar": "x | y |\n| z",
    "front matter": "x\n---\nlicense: evil\n",
    "a template": "{{ 7 * 7 }}{% for x in y %}",
    "an order to the terminal": "x\x1b[31m\x07\u202e",
    "an entity": "&lt;script&gt;&#x3c;",
    "an HTML comment": "<!-- hidden",
}
RAW = re.compile(
    r"(?<!\\)<(?:script|img|!--)|(?<!\\)\]\(javascript:|^# Owned|^\| z|[\x1b\x07\u202e]",
    re.MULTILINE,
)
FRONT = re.compile(r"^---\n(.*?)\n---\n", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```|(`+)[^`\n]+\1(?!`)", re.MULTILINE | re.DOTALL)
"""In code, markup is text."""


def cases() -> Iterator[Case]:
    for name, text in MARKUP.items():
        yield _labels(name, text, cheap=name in ("a script",))
    for place, change in PLACES.items():
        for name in ("a script", "a line", "front matter"):
            yield _place(place, change, name)
    for name in ("a script", "an image"):
        yield _report(name)
    yield Case("card: a script in a label of a real push", _pushed)


def wrong(text: str) -> str:
    """What a card must not hold as it stands."""
    front = FRONT.search(text)
    if front and "evil" in str(yaml.safe_load(front[1]).get("license")):
        return "the licence is the stranger's"
    found = RAW.search(CODE.sub("", FRONT.sub("", text)))
    return f"the card holds {found[0]!r}" if found else ""


def _card(scene: Scene, done: Done) -> str:
    """The card is printed by a dry run, or lies in the run."""
    kept = scene.run / "README.md"
    return wrong(done.text + (kept.read_text("utf-8") if kept.is_file() else ""))


def _labels(name: str, text: str, cheap: bool) -> Case:
    def plan(scene: Scene) -> Plan:
        run = _relabelled(scene, text)
        return Plan(["push", str(run), "--dry-run"], same=_card)

    return Case(f"card: {name} in a label", plan, cheap=cheap)


def _relabelled(scene: Scene, text: str) -> Path:
    run = evaluated(scene)
    change_recipe(run, {"dataset": {"labels": [f"a{text}", f"b{text}"]}})
    return run


PLACES: dict[str, Callable[[Path, str], object]] = {
    "the data set's name": lambda run, text: change_recipe(run, {"dataset": {"name": text}}),
    "the data set's path": lambda run, text: change_recipe(
        run, {"dataset": {"path": f"user/{text}"}}
    ),
    "a column": lambda run, text: change_recipe(run, {"dataset": {"columns": {"text": text}}}),
    "the prompt": lambda run, text: change_recipe(run, {"prompt": {"template": text + "{text}"}}),
    "the language": lambda run, text: change_recipe(run, {"hub": {"language": text}}),
    "a result's task": lambda run, text: [
        change_json(
            run / part / "results.json",
            lambda v: v.update(results={text: next(iter(v["results"].values()))}),
        )
        for part in ("tuned", "zero-shot")
    ],
    "a result's versions": lambda run, text: [
        change_json(
            run / part / "results.json",
            lambda v: v["config"].update(model=text, packages={text: text}),
        )
        for part in ("tuned", "zero-shot")
    ],
}


def _place(place: str, change: Callable[[Path, str], object], name: str) -> Case:
    def plan(scene: Scene) -> Plan:
        run = evaluated(scene)
        change(run, MARKUP[name])
        for made in ("comparison.json", "report.html"):
            (run / made).unlink()
        scene.shop.run(["html", str(run)], "eval")
        return Plan(["push", str(run), "--dry-run"], same=_card)

    return Case(f"card: {name} in {place}", plan)


def _report(name: str) -> Case:
    """The page quotes the texts of predictions."""

    def plan(scene: Scene) -> Plan:
        run = evaluated(scene)
        change_json(run / "tuned/results.json", lambda v: v["config"].update(model=MARKUP[name]))
        return Plan(["html", str(run)], "eval", _page)

    return Case(f"report: {name} in a model's name", plan)


def _page(scene: Scene, done: Done) -> str:
    page = (scene.run / "report.html").read_text("utf-8")
    return "the page holds it" if "<script>alert(1)" in page or "<img src=x" in page else ""


def _pushed(scene: Scene) -> Plan:
    run = _relabelled(scene, MARKUP["a script"])
    hub = Hub(users={"hf_writer": {"name": "me", "role": "write"}})
    scene.around = serve(hub)
    scene.hook = lambda: use_hub(hub, scene.folder / "cache", "hf_writer")

    def sent(scene: Scene, done: Done) -> str:
        files = hub.repos["me/new"].head.files
        return wrong(bytes(files["README.md"]).decode())  # type: ignore[arg-type]

    return Plan(["push", str(run), "--repo-id", "me/new"], same=sent)
