"""The command `llama-peft init`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from llama_peft import cli
from llama_peft.system.terminal import say, typed


def init(
    data: Annotated[
        str,
        typer.Argument(
            help="The data: a file in any format that a recipe can name, or a data set on the Hub.",
            callback=cli.name,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="The new file. Default: the name of the data, with .yaml, here."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The base to train. Default: one that fits this machine.", callback=cli.name
        ),
    ] = None,
) -> None:
    """Write a recipe for your data.

    What it guessed stands in the recipe as comments.
    """
    from llama_peft.survey.draft import draft, name_of
    from llama_peft.system.files import write_text

    output = output or Path(f"{name_of(data)}.yaml")
    cli.check_absent(output)
    written = draft(data, base)
    write_text(output.parent, output.name, written)
    say(*written.rstrip("\n").split("\n"))
    say(f"next: {typed(f'llama-peft run {shlex.quote(str(output))}')}")
