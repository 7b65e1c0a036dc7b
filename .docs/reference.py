"""Makes the reference of the documentation from the code: keys of recipes, metrics, commands.

mkdocs calls `on_files`; `pages` alone needs no mkdocs. Nothing here is written by hand, so no page
can be older than the code that it is about.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from typer.main import get_command

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
Node = Mapping[str, object]


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the generated pages and the pictures."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    for picture in ROOT.glob(".github/*.png"):
        files.append(File.generated(config, picture.name, abs_src_path=str(picture)))
    return files


def pages() -> dict[str, str]:
    """Return the text of each generated page by its name. The start page is the project's README."""
    readme = (ROOT / "README.md").read_text("utf-8")
    return {
        "index.md": readme.replace(".docs/pages/", "").replace(".github/report-", "report-"),
        "reference/keys.md": "\n".join(_keys()),
        "reference/metrics.md": "\n".join(_metrics()),
        "reference/commands.md": "\n".join(_commands()),
    }


def _keys() -> Iterator[str]:
    """Yield the page of every key that a recipe may have."""
    from llama_peft.recipe import Recipe

    schema = Recipe.model_json_schema()
    sections = cast("Mapping[str, Node]", schema["$defs"])
    yield "# Keys of a recipe\n"
    yield "A recipe is a YAML file. Every key has a default, except `task` and the base.\n"
    yield from _section("", schema, sections)


def _section(prefix: str, node: Node, sections: Mapping[str, Node]) -> Iterator[str]:
    """Yield the table of a section's own keys, and then the sections inside it."""
    inner: list[tuple[str, Node]] = []
    rows = []
    for name, each in cast("Mapping[str, Node]", node["properties"]).items():
        found = _inner(each, sections)
        if found is not None:
            inner.append((name, found))
        else:
            default = f"`{json.dumps(each['default'])}`" if "default" in each else ""
            rows.append(
                (f"`{prefix}{name}`", _type(each), default, str(each.get("description", "")))
            )
    if prefix:
        yield f"\n## `{prefix.removesuffix('.')}`\n"
        yield f"{node.get('description', '')}\n"
    yield from _table(("key", "type", "default", "what it does"), rows)
    for name, found in inner:
        yield from _section(f"{prefix}{name}.", found, sections)


def _inner(node: Node, sections: Mapping[str, Node]) -> Node | None:
    """Return the section that a key holds; None if it holds a value."""
    for each in (node, *cast("Iterable[Node]", node.get("anyOf", ()))):
        if "$ref" in each:
            return sections[str(each["$ref"]).rsplit("/", 1)[1]]
    return None


def _type(node: Node) -> str:
    """Return the type of a value in a few words."""
    if "anyOf" in node:
        found = [_type(each) for each in cast("Iterable[Node]", node["anyOf"])]
        return " or ".join(dict.fromkeys(found))
    if "enum" in node:
        return " or ".join(f"`{one}`" for one in cast("Iterable[object]", node["enum"]))
    if "const" in node:
        return f"`{node['const']}`"
    if node.get("type") == "array":
        return f"list of {_type(cast('Node', node.get('items', {})))}"
    return str(node.get("type", "value"))


def _metrics() -> Iterator[str]:
    """Yield the page of every score in results.json."""
    from eval.metrics.catalogue import METRICS

    yield "# Metrics\n"
    yield "Every score of results.json. Those of tables are shown everywhere, the others with `--all`.\n"
    for side in dict.fromkeys(metric.side for metric in METRICS):
        yield f"\n## {side.replace('_', ' ').capitalize()}\n"
        rows = [
            (
                f"`{metric.name}`",
                "percent" if metric.is_percent else "",
                "higher" if metric.higher_is_better else "lower",
                "yes" if metric.in_tables else "",
            )
            for metric in METRICS
            if metric.side == side
        ]
        yield from _table(("name", "unit", "better", "in tables"), rows)


def _commands() -> Iterator[str]:
    """Yield the page of both programs, with every command, argument and option."""
    from eval.__main__ import app as eval_app
    from llama_peft.__main__ import app

    yield "# Commands"
    for program, its in (("llama-peft", app), ("llama-eval", eval_app)):
        yield f"\n## `{program}`\n"
        for name, command in cast("click.Group", get_command(its)).commands.items():
            yield f"\n### `{program} {name}`\n"
            context = click.Context(command, info_name=f"{program} {name}")
            yield f"{' '.join((command.help or '').split())}\n"
            yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
            rows = [record for one in command.params if (record := one.get_help_record(context))]
            yield from _table(("option", "what it does"), rows)


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a table; a bar inside a cell is escaped."""
    if not (rows := list(rows)):
        return
    yield ""
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        cells = (" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;") for cell in row)
        yield f"| {' | '.join(cells)} |"
    yield ""


if __name__ == "__main__":
    for _name, _text in pages().items():
        print(_text)
