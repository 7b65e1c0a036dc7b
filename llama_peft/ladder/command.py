"""The command `llama-peft run`."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from llama_peft import cli
from llama_peft.system.terminal import say, share, typed


def run(
    recipe: cli.RecipeName,
    overrides: cli.Overrides = None,
    fresh: Annotated[
        bool, typer.Option(help="Train and measure again, even if it is finished.")
    ] = False,
    only: Annotated[
        str | None, typer.Option(help="Measure this rung only, such as zero-shot or tuned.")
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="Also print every metric of every rung.")
    ] = False,
    processes: cli.Processes = 1,
    jobs: cli.Jobs = 1,
    named: Annotated[
        bool,
        typer.Option(
            help="Begin each line of progress with the run's name: for several runs in one terminal."
        ),
    ] = False,
) -> None:
    """Train a recipe, and compare it with all that is cheaper.

    It ends in a verdict of a few lines. Finished steps are skipped, interrupted ones resume.
    """
    from llama_peft.survey.own_folder import load_in_own_folder

    loaded = load_in_own_folder(recipe, overrides or [])
    if named:
        share(Path(loaded.run_folder).name)
    from llama_peft.ladder.evaluation import find_evaluation
    from llama_peft.ladder.walk import run as walk

    pushes = loaded.hub.push_to_hub
    evaluation = find_evaluation()
    folder = walk(
        loaded, evaluation,
        fresh=fresh, only=only, pushes=pushes, processes=processes, jobs=jobs,
    )  # fmt: skip
    say(*evaluation.verdict(folder, show_all), *map(typed, _next(folder)), folder)
    if pushes:
        push_trained(folder)


def work(
    recipe: Path,
    plan: Path,
    fresh: Annotated[bool, typer.Option("--fresh")] = False,
    only: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Make the next measurements of a ladder, as one of the processes of llama-peft run --jobs."""
    from llama_peft.ladder.evaluation import find_evaluation
    from llama_peft.ladder.walk import work as climb
    from llama_peft.recipe import load_recipe

    climb(load_recipe(recipe), find_evaluation(), plan, fresh, only)


def _next(folder: Path) -> Iterator[str]:
    """Yield what can be done with a run that was trained and measured."""
    from llama_peft.run_folder.layout import REPORT, TRAINING
    from llama_peft.system.files import is_file

    run = shlex.quote(str(folder))
    if is_file(folder, REPORT):
        yield f"next: open {folder / REPORT}"
    if is_file(folder, TRAINING):
        yield f"next: llama-peft predict {run}, or llama-peft push {run} --dry-run"
        yield f"next: llama-peft snippet {run}, the lines that load it in plain transformers"


def push_trained(folder: Path) -> None:
    """Push the run. A push that fails gives a warning only, because the training is finished and
    kept.
    """
    from llama_peft.errors import UserError
    from llama_peft.export import push as hub

    try:
        say(hub.push(folder).commit_url)
    except UserError as error:
        cli.complain_of(error, "warning")
