"""The command `llama-peft runs`."""

from pathlib import Path
from typing import Annotated

import typer

from llama_peft.system.terminal import complain, one_line, say, say_json


def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs in a folder, the newest first."""
    from llama_peft.survey.runs import find_runs

    rows = [run.as_dict() for run in find_runs(folder)]
    if as_json:
        say_json(rows, indent=1)
        return
    if not rows:
        complain(f"{folder}: there are no runs here yet")
        return
    lines = [{name: name for name in rows[0]}, *rows]
    lines = [{name: one_line(cell) for name, cell in line.items()} for line in lines]
    widths = {name: max(len(line[name]) for line in lines) for name in rows[0]}
    for line in lines:
        say("  ".join(f"{cell:<{widths[name]}}" for name, cell in line.items()).rstrip())
