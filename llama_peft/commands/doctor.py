"""The command `llama-peft doctor`."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_peft import cli
from llama_peft.system.terminal import say, say_json

if TYPE_CHECKING:
    from llama_peft.doctor.examine import Report


def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(help="The recipe that shall run. Default: all that come with the project."),
    ] = None,
    overrides: cli.Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether this machine can do it, and what to do if it cannot.

    It downloads no weights. The output has no token and no name of your home folder, so that you can
    paste it. The exit code is 1 if something blocks.
    """
    from llama_peft.recipe import load_recipe

    loaded = None if recipe is None else load_recipe(recipe, overrides or [])
    from llama_peft.doctor.examine import examine
    from llama_peft.rehearsal.base import SHAPES

    found = examine(loaded, SHAPES)
    if as_json:
        say_json(_without_home(asdict(found)), indent=1)
    else:
        say(*map(_without_home, _lines(found)))
    if found.blockers:
        raise typer.Exit(1)


def _lines(found: "Report") -> Iterator[str]:
    from llama_peft.doctor.examine import time_of

    yield from (f"blocked: {one}" for one in found.blockers)
    if not found.blockers:
        yield "Nothing blocks."
    yield ""
    width = max(len(fact.name) for fact in found.facts)
    yield from (f"{fact.name:<{width}}  {fact.found}" for fact in found.facts)
    yield ""
    if found.bases:
        yield from (f"{name}: {state}" for name, state in found.bases.items())
        yield ""
    width = max(len(fit.recipe) for fit in found.recipes)
    for fit in found.recipes:
        sign = "yes" if fit.fits else "no"
        yield f"{fit.recipe:<{width}}  {sign:<3}  {fit.here}; {time_of(fit)}"


def _without_home(value: object) -> object:
    """Return texts with ~ in place of the home folder, also inside lists and dicts."""
    if isinstance(value, str):
        return value.replace(str(Path.home()), "~")
    if isinstance(value, dict):
        return {_without_home(key): _without_home(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_home(inner) for inner in value]
    return value
