"""From a YAML file and overrides to a checked Recipe, and back.

A user's mistakes are gathered and reported together, each with its place, what is wrong and the
nearest valid key. The knobs themselves are in `recipe_schema`.
"""

import difflib
import json
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from llama_peft.errors import UserError
from llama_peft.recipe import strict_yaml as recipe_yaml
from llama_peft.recipe.checks import Fault, KeyPath, pair_faults
from llama_peft.recipe.schema import (
    Recipe,
)
from llama_peft.recipe.strict_yaml import Value

_PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = next(
    folder / "recipes"
    for folder in (
        _PACKAGE,
        _PACKAGE.parent,
    )  # as a wheel installs them, and as they lie in a checkout
    if (folder / "recipes").is_dir()
)
"""The recipes that come with the project."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or the packaged one of that name, with `section.key=value` on top."""
    file = find_recipe(str(path))
    raw = _read(file)
    try:
        document = recipe_yaml.read_bytes(raw)
    except recipe_yaml.YamlFaults as error:
        lines = [f"line {line}: {text}" if line else text for line, text in error.faults]
        raise _user_error(file, lines) from None
    if not isinstance(document.value, dict):
        what = "is empty" if document.value is None else "holds no keys"
        raise UserError(f"{file}: {what}: a recipe is lines of `key: value`, see {RECIPES}")
    values = {"name": _name(file), **document.value}
    places = {key: f"line {line}: " for key, line in document.lines.items()}
    lines = list(_apply(values, places, overrides))
    recipe, faults = validate(values)
    lines += _report(faults, places)
    if lines or recipe is None:
        raise _user_error(file, lines)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """YAML with every key written out, which `load_recipe` reads back to an equal recipe."""
    return recipe_yaml.dump(recipe.model_dump(mode="json"))


def find_recipe(path: str) -> Path:
    """The file that the user means: a path, or the name of a packaged recipe."""
    if Path(path).is_file():
        return Path(path)
    packaged = RECIPES / f"{path}.yaml"
    if not path.endswith((".yaml", ".yml")) and packaged.is_file():
        return packaged
    names = sorted(file.stem for file in RECIPES.glob("*.yaml"))
    near = difflib.get_close_matches(Path(path).stem, names, n=3, cutoff=0.5) or names
    raise UserError(
        f"{path}: no such recipe; did you mean {_or(near)}?" if near else f"{path}: no such file"
    )


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def _name(file: Path) -> str:
    """The name of a run: the file's, with what a folder or a repository cannot hold replaced."""
    return re.sub(r"[^\w.-]|^[.-]", "-", file.stem).lstrip("-") or "run"


def _user_error(file: Path, lines: Sequence[str]) -> UserError:
    count = f"{len(lines)} fault{'s' if len(lines) > 1 else ''}"
    return UserError("\n  ".join([f"{file}: {count}", *lines]))


def _report(faults: Sequence[Fault], places: dict[KeyPath, str]) -> list[str]:
    """A line each: where, which key, what is wrong; in the order of the file."""
    rows = []
    for fault in faults:
        path = fault.paths[0]
        above = (path[:end] for end in range(len(path), 0, -1))
        place = next((places[key] for key in above if key in places), "")
        line = re.match(r"line (\d+): ", place)
        rows.append((int(line[1]) if line else 10**6, f"{place}{'.'.join(path)}: {fault.message}"))
    return [text for _, text in sorted(rows)]


def _apply(
    values: dict[str, Any], places: dict[KeyPath, str], overrides: Sequence[str]
) -> Iterator[str]:
    """Put each override into `values` and its place into `places`; yields faults."""
    for override in overrides:
        key, equals, text = override.partition("=")
        path = tuple(key.strip().split("."))
        where = f"override {override}: "
        if not equals or not all(path):
            yield f"{where}write section.key=value"
            continue
        try:
            value = _override_value(text.strip())
        except recipe_yaml.YamlFaults as error:
            yield f"{where}{error.faults[0].message}"
            continue
        section: Any = values
        for part in path[:-1]:
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                yield f"{where}{part} is not a section"
                break
        else:
            section[path[-1]] = value
            places[path] = where


def _override_value(text: str) -> Value:
    """A plain word, a quoted one, or a list or mapping on one line.

    A template such as `{text}` or `Review: {text}` is a word here, though not in a YAML file.
    """
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    listed = text.startswith("[") and text.endswith("]")
    mapped = re.fullmatch(r"\{\s*\}|\{.*:.*\}", text, re.DOTALL)
    if quoted or listed or mapped:
        return recipe_yaml.read(text).value
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise recipe_yaml.YamlFaults([recipe_yaml.YamlFault(0, "not UTF-8 text")])
    return recipe_yaml.scalar(text)


REQUIRED: dict[str, Any] = {"task": "classification", "model": {"model_name_or_path": "tiny"}}
"""What stands for a missing key while the others are checked."""


def validate(values: dict[str, Any]) -> tuple[Recipe | None, list[Fault]]:
    """The recipe, or all that is wrong with it.

    What is wrong alone hides what is wrong together; so wrong keys are put back to their defaults
    and the rest is checked again, less what concerns a key that was put back.
    """
    faults = list(_field_faults(values))
    wrong = [fault.paths[0] for fault in faults]
    for path in wrong:
        values = _without(values, path)
    recipe = Recipe.model_validate(_filled(values))
    for fault in pair_faults(recipe):
        if not any(_overlap(path, other) for path in fault.paths for other in wrong):
            faults.append(fault)
    return (None if faults else recipe), faults


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    model = REQUIRED["model"] | values.get("model", {})
    return REQUIRED | values | {"model": model}


def _without(values: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    """A copy less one key."""
    first, *rest = path
    if not rest:
        return {key: value for key, value in values.items() if key != first}
    if not isinstance(values.get(first), dict):
        return values
    return values | {first: _without(values[first], tuple(rest))}


def _overlap(one: KeyPath, other: KeyPath) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _field_faults(values: dict[str, Any]) -> Iterator[Fault]:
    """What pydantic refuses, in our words, once a key."""
    try:
        Recipe.model_validate(values)
    except ValidationError as error:
        seen = set()
        for detail in error.errors():
            path = _field_path(detail["loc"])
            if path not in seen:
                seen.add(path)
                yield Fault((path,), _message(detail, path, values))


def _field_path(location: tuple[int | str, ...]) -> KeyPath:
    """The keys of a pydantic location, without list indices and the names of alternatives."""
    path: list[str] = []
    section: type[BaseModel] | None = Recipe
    for part in map(str, location):
        if section is None:
            break
        path.append(part)
        field = section.model_fields.get(part)
        section = section_of(field.annotation) if field else None
    return tuple(path)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, if it holds one."""
    options = get_args(annotation) or (annotation,)
    sections = (item for item in options if isinstance(item, type) and issubclass(item, BaseModel))
    return next(sections, None)


def _message(detail: Any, path: KeyPath, values: dict[str, Any]) -> str:
    if detail["type"] == "extra_forbidden":
        return f"unknown key; {_nearest_key(path)}"
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    field = fields()[path]
    wanted = describe(field.annotation, field.metadata)
    if detail["type"] == "missing":
        return f"missing: it must be {wanted}"
    value: Any = values
    for part in path:
        value = value[part]
    return f"must be {wanted}, not {_shown(value)}{_near_value(field.annotation, value)}"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _near_value(annotation: Any, value: object) -> str:
    names = [name for name in get_args(annotation) if isinstance(name, str)]
    near = difflib.get_close_matches(value, names, n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]}?" if near else ""


def fields(section: type[BaseModel] = Recipe, above: KeyPath = ()) -> dict[KeyPath, FieldInfo]:
    """Every key of a recipe, sections included, by its path."""
    result = {}
    for name, field in section.model_fields.items():
        result[(*above, name)] = field
        if inner := section_of(field.annotation):
            result |= fields(inner, (*above, name))
    return result


def _nearest_key(path: KeyPath) -> str:
    """Where an unknown key belongs: the same name elsewhere, else a like one, here first."""
    keys = list(fields())
    here = [key for key in keys if key[:-1] == path[:-1]]
    names = {key[-1] for key in here}
    elsewhere = [key for key in keys if key[-1] == path[-1]]
    near = difflib.get_close_matches(path[-1], names, n=1)
    if not elsewhere and near:
        elsewhere = [(*path[:-1], near[0])]
    if not elsewhere:
        near = difflib.get_close_matches(path[-1], {key[-1] for key in keys}, n=1)
        elsewhere = [key for key in keys if key[-1] in near]
    if elsewhere:
        return f"did you mean {_or(['.'.join(key) for key in elsewhere])}?"
    return f"valid here: {', '.join(key[-1] for key in here)}"


def _or(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def describe(annotation: Any, metadata: Sequence[object] = ()) -> str:
    """What a key may hold, in words: its own where it has some, else from its type."""
    for item in metadata:
        if isinstance(item, str):
            return item
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        return _or([describe(argument) for argument in arguments])
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if arguments[1:] else str(arguments[0])
    if origin is list:
        return f"a list ({describe(arguments[0])})"
    if origin is dict:
        return f"a mapping ({describe(arguments[1])})"
    if section_of(annotation):
        return "a section of keys"
    return NAMES[annotation]


NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
}
