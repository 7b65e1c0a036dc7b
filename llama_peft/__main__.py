"""llama-peft: train a recipe, check it, count its parameters, use what it made."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_peft import cli

app = typer.Typer(
    help="Fine-tune a small Llama or Gemma in 4-bit: heads, LoRA, generative question answering.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RecipeName = Annotated[
    str, typer.Argument(help="A recipe: its file, or the name of a packaged one.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value, through the recipe's own checks.")
]


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option(help="Start again, whatever the run folder holds.")
    ] = False,
) -> None:
    """Train a recipe. The same command continues a run that was cut off."""
    from llama_peft.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from llama_peft.train import train as fit

    print(fit(loaded, fresh=fresh))


@app.command()
def validate(
    recipe: RecipeName,
    overrides: Overrides = None,
    data: Annotated[
        bool, typer.Option(help="Check the data too (a Hub name downloads it).")
    ] = True,
) -> None:
    """Check a recipe and its data without loading a model."""
    from llama_peft.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if data:
        from llama_peft.data import load

        dataset = load(loaded)
        for part, examples in dataset.parts.items():
            print(f"{part}: {len(examples)} examples")
        if dataset.labels:
            print(f"labels: {', '.join(dataset.labels)}")
    print(f"{loaded.name}: {loaded.task} on {loaded.model.model_name_or_path}, valid")


@app.command()
def params(
    recipe_or_model: Annotated[
        str, typer.Argument(help="A recipe, or a model's folder or Hub id.")
    ],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count parameters exactly, from the config alone."""
    from llama_peft import counting

    found = counting.report(recipe_or_model, overrides or [])
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:<20} {value:>15,}" if isinstance(value, int) else f"{name:<20} {value}")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    text: Annotated[str | None, typer.Argument(help="The text to classify.")] = None,
    question: Annotated[str | None, typer.Option(help="The question to answer.")] = None,
    context: Annotated[str | None, typer.Option(help="The passage that it is about.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Classify a text, or answer a question from a passage, with a finished run."""
    from llama_peft.checkpoint import read_facts
    from llama_peft.recipe import UserError, load_recipe

    read_facts(run)
    task = load_recipe(run / "recipe.yaml").task
    if task == "classification" and (text is None or question or context):
        raise UserError(f'{run} classifies: llama-peft predict {run} "text"')
    if task != "classification" and (text or question is None or context is None):
        raise UserError(
            f"{run} answers questions: llama-peft predict {run} --question Q --context PASSAGE"
        )
    from llama_peft.predict import predict_one

    found: dict[str, Any] = predict_one(run, text, question, context)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print(
            "  ".join(
                f"{value:.4f}" if isinstance(value, float) else str(value)
                for value in found.values()
            )
        )


def main() -> None:
    cli.run(app)


if __name__ == "__main__":
    main()
