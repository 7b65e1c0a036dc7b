"""The command `llama-peft schema`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from llama_peft import cli
from llama_peft.system.terminal import complain, say, say_json


def schema(
    output: Annotated[
        Path | None, typer.Option(help="A new file to write it to, in place of the terminal.")
    ] = None,
) -> None:
    """Print the JSON Schema of recipes.

    It has the type, the default and the meaning of every key. Editors complete recipes with it.
    """
    from llama_peft.recipe.schema import Recipe
    from llama_peft.system.files import write_text

    found = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(),
    }
    if output is None:
        say_json(found, indent=1)
        complain("schema --output FILE writes it to a file, with which editors complete recipes")
        return
    cli.check_absent(output)
    write_text(output.parent, output.name, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    say(output)
    complain(f"first line of a recipe: # yaml-language-server: $schema={output}")
