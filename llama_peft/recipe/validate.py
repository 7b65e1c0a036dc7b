"""Checks the values of a recipe and returns every fault at once."""

from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from llama_peft.recipe import messages
from llama_peft.recipe.checks import Fault, pair_faults
from llama_peft.recipe.model_sections import Section, section_of
from llama_peft.recipe.schema import Recipe
from llama_peft.recipe.strict_yaml import KeyPath

_REQUIRED_MODEL = {"model_name_or_path": "tiny"}
"""What replaces a missing required key while the other keys are checked."""


def validate(values: Mapping[str, object]) -> tuple[Recipe | None, list[Fault]]:
    """Return the recipe, or None and everything that is wrong with the values.

    Keys that are wrong alone hide keys that are wrong together. So wrong keys get their defaults
    back, and the rest is checked again without what concerns them.
    """
    faults = list(_field_faults(values))
    wrong = [fault.paths[0] for fault in faults]
    for path in wrong:
        values = _without(values, path)
    recipe = Recipe.model_validate(_with_required(values))
    for fault in pair_faults(recipe):
        if not any(_overlap(path, other) for path in fault.paths for other in wrong):
            faults.append(fault)
    return (None if faults else recipe), faults


def _with_required(values: Mapping[str, object]) -> dict[str, object]:
    model = values.get("model", {})
    if isinstance(model, Mapping):
        model = {**_REQUIRED_MODEL, **model}
    return {"task": "classification", **values, "model": model}


def _without(values: Mapping[str, object], path: KeyPath) -> Mapping[str, object]:
    """Return a copy without one key."""
    first, *rest = path
    if not rest:
        return {key: value for key, value in values.items() if key != first}
    inner = values.get(first)
    if not isinstance(inner, Mapping):
        return values
    return {**values, first: _without(inner, tuple(rest))}


def _overlap(one: KeyPath, other: KeyPath) -> bool:
    """Return whether two paths name the same key, or a key and its section."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _field_faults(values: Mapping[str, object]) -> Iterator[Fault]:
    """Yield one fault for each key that pydantic refuses."""
    try:
        Recipe.model_validate(values)
    except ValidationError as error:
        seen = set()
        for detail in error.errors():
            path = _field_path(detail["loc"])
            if path not in seen:
                seen.add(path)
                yield Fault((path,), messages.of_pydantic(detail, path, values))


def _field_path(location: tuple[int | str, ...]) -> KeyPath:
    """Return the keys of a pydantic location without list indices and names of alternatives."""
    path: list[str] = []
    section: type[Section] | None = Recipe
    for part in map(str, location):
        if section is None:
            break
        path.append(part)
        field = section.model_fields.get(part)
        section = section_of(field.annotation) if field else None
    return tuple(path)
