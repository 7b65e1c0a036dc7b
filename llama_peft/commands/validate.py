"""The command `llama-peft validate`."""

from typing import Annotated

import typer

from llama_peft import cli
from llama_peft.system.terminal import say


def validate(
    recipe: cli.RecipeName,
    overrides: cli.Overrides = None,
    data: Annotated[
        bool,
        typer.Option(help="Check the data too. Data and tokenizer of the Hub are downloaded."),
    ] = True,
) -> None:
    """Check a recipe and its data without loading a model.

    It shows the examples and labels of each part, and their lengths in tokens.
    """
    from llama_peft.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if data:
        from llama_peft.data import load
        from llama_peft.survey.parts import lines_of

        for line in lines_of(loaded, load(loaded)):
            say(line)
    say(f"{loaded.name}: {loaded.task} on {loaded.model.model_name_or_path}, valid")
