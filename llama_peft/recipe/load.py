"""Finds a recipe, reads it, puts overrides on top, and writes it back as YAML.

All mistakes of a user are collected and reported together. `validate` finds them, and `messages`
puts them into words.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from llama_peft.errors import UserError
from llama_peft.recipe import strict_yaml
from llama_peft.recipe.messages import either, report_lines
from llama_peft.recipe.schema import GIVEN, Recipe, Section
from llama_peft.recipe.strict_yaml import KeyPath, Value
from llama_peft.recipe.validate import validate
from llama_peft.system.files import open_regular

_PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = next(
    folder / "recipes"
    # A wheel installs the recipes inside the package, and a checkout holds them beside it.
    for folder in (_PACKAGE, _PACKAGE.parent)
    if (folder / "recipes").is_dir()
)
"""The recipes that come with the project."""
_SUFFIXES = (".yaml", ".yml")


Source: TypeAlias = Recipe | str | Path | Mapping[str, object]
"""A recipe: checked, by its name or file, or as a dict of its sections."""


def load_recipe(
    source: Source,
    overrides: Sequence[str] = (),
    given: Iterable[str] = (),
) -> Recipe:
    """Return the checked recipe from a file, from the name of a recipe, or from a dict.

    overrides: `section.key=value` words that replace what the source says.
    given: parts whose rows `data.load` will get from Python, so that the recipe need not name them.

    Raises UserError with every fault.
    """
    values: dict[str, object]
    places: dict[KeyPath, str] = {}
    if isinstance(source, Recipe):
        source = source.model_dump(mode="json")
    if isinstance(source, Mapping):
        shown = "recipe"
        values = {str(key): _from_python(value) for key, value in source.items()}
    elif isinstance(source, str | Path):
        file = find_recipe(str(source))
        shown = str(file)
        values, places = _read_file(file)
    else:
        raise UserError(
            f"a recipe is a file, a name or a dict, not of type {type(source).__name__}"
        )
    words = [*overrides, *(f"dataset.parts.{part}={GIVEN}" for part in given)]
    lines = list(_apply(values, places, words))
    recipe, faults = validate(values)
    lines += report_lines(faults, places)
    if lines or recipe is None:
        raise _user_error(shown, lines)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Return YAML that `load_recipe` reads back to an equal recipe.

    Every key is written out, except for later keys (`fields.later`) that have their default.
    """
    return strict_yaml.dump(recipe.model_dump(mode="json"))


def differences(one: Recipe, other: Recipe) -> dict[str, tuple[object, object]]:
    """Return the values of both recipes by each key, as section.key, in which they differ."""
    first, second = flat_values(one), flat_values(other)
    keys = dict.fromkeys([*first, *second])
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def flat_values(recipe: Recipe) -> dict[str, object]:
    """Return every value of a recipe by its key, as section.key."""
    return dict(_flat(recipe.model_dump(mode="json")))


def _flat(values: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: a path, or a name in ./recipes or among the packaged recipes."""
    file = _lookup(name)
    if file is not None:
        return file
    folders = (Path("recipes"), RECIPES)
    known = {
        path.stem for folder in folders for end in _SUFFIXES for path in folder.glob(f"*{end}")
    }
    here = {path.name for end in _SUFFIXES for path in Path().glob(f"*{end}")}
    words = Path(name).stem, {*known, *here}
    near = difflib.get_close_matches(*words, n=3, cutoff=0.5) or sorted(known)
    raise UserError(f"{name}: no such recipe; did you mean {either(near)}?")


def is_recipe_name(name: str) -> bool:
    """Return whether a word means a recipe, not a model: it ends in .yaml or .yml, or is found."""
    return name.endswith(_SUFFIXES) or _lookup(name) is not None


def _lookup(name: str) -> Path | None:
    if Path(name).is_file():
        return Path(name)
    if name.endswith(_SUFFIXES) or Path(name).name != name:
        return None
    own = [Path("recipes", f"{name}{end}") for end in _SUFFIXES]
    return next((file for file in [*own, RECIPES / f"{name}.yaml"] if file.is_file()), None)


def _read_file(file: Path) -> tuple[dict[str, object], dict[KeyPath, str]]:
    """Return the values of a file, and the words for the line that each key is on."""
    try:
        with open_regular(file) as opened:
            document = strict_yaml.read_bytes(opened.read(strict_yaml.MAX_BYTES + 1))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except strict_yaml.YamlFaults as error:
        lines = [f"line {line}: {text}" if line else text for line, text in error.faults]
        raise _user_error(str(file), lines) from None
    if not isinstance(document.value, dict):
        problem = "is empty" if document.value is None else "contains no keys"
        raise UserError(
            f"{file}: {problem}: a recipe has lines such as `key: value`, see {RECIPES}"
        )
    places = {key: f"line {line}: " for key, line in document.lines.items()}
    return {"name": _run_name(file), **document.value}, places


def _run_name(file: Path) -> str:
    """Return the file's name without what a folder or a repository cannot be named."""
    return re.sub(r"[^\w.-]|^[.-]", "-", file.stem).lstrip("-") or "run"


def _from_python(value: object) -> object:
    """Return a copy with the types that YAML gives. Other types stay, and are refused later."""
    if isinstance(value, Section):
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {str(key): _from_python(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_from_python(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _user_error(source: str, lines: Sequence[str]) -> UserError:
    count = f"{len(lines)} fault{'s' if len(lines) > 1 else ''}"
    return UserError(f"{source}: {count}", *lines)


def _apply(
    values: Mapping[str, object], places: dict[KeyPath, str], overrides: Sequence[str]
) -> Iterator[str]:
    """Put each override into `values` and its place into `places`. Yields what is wrong."""
    for override in overrides:
        key, equals, text = override.partition("=")
        path = tuple(key.strip().split("."))
        where = f"override {override}: "
        if not equals or not all(path):
            yield f"{where}write section.key=value"
            continue
        try:
            value = _override_value(text.strip())
        except strict_yaml.YamlFaults as error:
            yield f"{where}{error.faults[0].message}"
            continue
        section: object = values
        for part in path[:-1]:
            assert isinstance(section, dict), "checked below, and a recipe is a dict"
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                yield f"{where}{part} is not a section"
                break
        else:
            assert isinstance(section, dict)
            section[path[-1]] = value
            places[path] = where


def _override_value(text: str) -> Value:
    """Return the value of a word, of a quoted text, or of a list or mapping on one line.

    A template such as `{text}` or `Review: {text}` is text here, but would not be in YAML.
    """
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    is_list = text.startswith("[") and text.endswith("]")
    is_mapping = re.fullmatch(r"\{\s*\}|\{.*:.*\}", text, re.DOTALL)
    if quoted or is_list or is_mapping:
        return strict_yaml.read(text).value
    if strict_yaml.SURROGATE.search(text):
        raise strict_yaml.YamlFaults([strict_yaml.YamlFault(0, "is not UTF-8 text")])
    return strict_yaml.scalar(text)
