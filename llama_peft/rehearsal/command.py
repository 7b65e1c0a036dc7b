"""The command `llama-peft rehearse`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llama_peft import cli
from llama_peft.rehearsal import Fault, Request
from llama_peft.rehearsal import rehearse as rehearsed
from llama_peft.rehearsal.device.cards import CARDS, card_named
from llama_peft.rehearsal.report import text
from llama_peft.system import files
from llama_peft.system.terminal import complain, say


def rehearse(
    recipe: cli.RecipeName,
    overrides: cli.Overrides = None,
    card: Annotated[str, typer.Option(help=f"The GPU: {', '.join(CARDS)}.")] = "4090",
    base: Annotated[
        str | None,
        typer.Option(
            help="A folder with a config.json, or a name on the Hub, in place of the recipe's base.",
            callback=cli.name,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A folder with the tokenizer that stands in for the base's."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the numbers to this file.")
    ] = None,
) -> None:
    """Rehearse a training on a GPU that is not here.

    It makes two steps at the true shape of the base, validates and predicts. It takes about a minute,
    downloads nothing, and shows memory, kernels and where the CPU waits for
    the GPU. A run that would fail on the GPU gives one line and exit code 1.
    """
    card_named(card)
    if json_file is not None:
        cli.check_absent(json_file)
    request = Request(
        recipe=recipe, settings=tuple(overrides or ()), card=card, base=base, tokenizer=tokenizer
    )
    (found,) = rehearsed([request])
    if isinstance(found, Fault):
        complain(f"{recipe} would fail on this card: {found}")
        raise typer.Exit(1)
    if json_file is not None:
        files.write_text(
            json_file.parent, json_file.name, json.dumps(asdict(found), indent=1) + "\n"
        )
    say(*text(found))
