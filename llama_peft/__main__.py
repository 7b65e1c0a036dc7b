"""llama-peft: train a recipe, check it, count its parameters, use what it made."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from llama_peft import cli

app = typer.Typer(
    help="Fine-tune a small Llama or Gemma in 4-bit: heads, LoRA, generative question answering.",
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
    from llama_peft.training.fit import train as fit
    from llama_peft.training.resume import is_main_process

    pushes = loaded.hub.push_to_hub and is_main_process()
    if pushes:
        from llama_peft.export.push import check_before_training

        check_before_training(loaded)
    folder = fit(loaded, fresh=fresh)
    print(folder)
    if pushes:
        _push_trained(folder)


def _push_trained(folder: Path) -> None:
    """Bring the weights to safety. The training is done, so a push that fails is said and no failure of the command."""
    from llama_peft.errors import UserError
    from llama_peft.export import push as hub

    try:
        print(hub.push(folder).commit_url)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)


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
    from llama_peft.model import params as counting

    found = counting.report(recipe_or_model, overrides or [])
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:<20} {value:>15,}" if isinstance(value, int) else f"{name:<20} {value}")


@app.command()
def estimate(
    recipe: RecipeName,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what training a recipe will take: memory term by term, disk, download."""
    from llama_peft.errors import UserError
    from llama_peft.model.preflight import for_machine
    from llama_peft.recipe import load_recipe

    found = for_machine(load_recipe(recipe, overrides or []))
    if found is None:
        raise UserError(f"{recipe}: no formula for the shapes of this base's family")
    if as_json:
        print(
            json.dumps(
                {
                    "memory": {term.name: term.bytes for term in found.memory},
                    "memory_total": found.memory_total,
                    "memory_smallest": found.smallest,
                    "disk": {term.name: term.bytes for term in found.disk},
                    "disk_total": found.disk_total,
                    "download": found.download,
                },
                indent=1,
            )
        )
        return
    for term in found.memory:
        print(f"{term.name:<18} {term.bytes / 1e9:>8.3f} GB  {term.why}")
    print(f"{'memory':<18} {found.memory_total / 1e9:>8.3f} GB  at most, with full rows")
    print(f"{'':<18} {found.smallest / 1e9:>8.3f} GB  with batches halved down to one row")
    for term in found.disk:
        print(f"{term.name:<18} {term.bytes / 1e9:>8.3f} GB  {term.why}")
    print(f"{'download':<18} {found.download / 1e9:>8.3f} GB  unless it is there already")


@app.command()
def predict(
    run: Annotated[
        str, typer.Argument(help="A finished run: its folder, or the Hub's user/repo[@revision].")
    ],
    text: Annotated[str | None, typer.Argument(help="The text to classify.")] = None,
    question: Annotated[str | None, typer.Option(help="The question to answer.")] = None,
    context: Annotated[str | None, typer.Option(help="The passage that it is about.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Classify a text, or answer a question from a passage, with a finished run."""
    from llama_peft.errors import UserError
    from llama_peft.run_folder.fetch import run_folder
    from llama_peft.run_folder.run import open_run

    opened = open_run(run_folder(run))
    labels = opened.recipe.kind.has_labels
    if labels and (text is None or question or context):
        raise UserError(f'{run} classifies: llama-peft predict {run} "text"')
    if not labels and (text or question is None or context is None):
        raise UserError(
            f"{run} answers questions: llama-peft predict {run} --question Q --context PASSAGE"
        )
    from llama_peft.run_folder.predict import predict_one

    found = predict_one(opened, text, question, context)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print(
            "  ".join(
                f"{value:.4f}" if isinstance(value, float) else str(value)
                for value in found.values()
            )
        )


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    repo_id: Annotated[
        str | None, typer.Option(help="user/repo. Default: the recipe's hub.hub_model_id.")
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="Make it so. Default: the recipe's hub.hub_private_repo."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="List the files and write the card; send nothing.")
    ] = False,
    eval_results: Annotated[
        bool, typer.Option(help="Also put the numbers on the data set's page (.eval_results).")
    ] = False,
    if_asked: Annotated[
        bool, typer.Option(help="Do nothing unless the recipe sets hub.push_to_hub.")
    ] = False,
) -> None:
    """Push a run to the Hub: weights, recipe, results, report, and a card of measured numbers."""
    from llama_peft.recipe import load_recipe

    if if_asked and not load_recipe(run / "recipe.yaml").hub.push_to_hub:
        return
    from llama_peft.export import push as hub

    pushed = hub.push(run, repo_id, private, dry_run, eval_results)
    for name, size in pushed.files.items():
        print(f"{size:>12,}  {name}")
    print(f"{sum(pushed.files.values()):>12,}  bytes for {pushed.repo_id}")
    where = f"; the card is {pushed.card}" if pushed.card else ""
    print(pushed.commit_url or f"nothing was sent{where}")


@app.command()
def merge(
    run: Annotated[
        str, typer.Argument(help="A finished run: its folder, or the Hub's user/repo[@revision].")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the merged model; must not exist.")],
) -> None:
    """Merge a run's adapter into the full-precision base: a whole model for llama.cpp, vLLM and others."""
    from llama_peft.run_folder.fetch import run_folder

    folder = run_folder(run)
    from llama_peft.export.merge import merge as merged

    difference = merged(folder, output)
    print(f"largest relative score difference after merging: {difference:.2g}")
    print(output)


def main() -> None:
    cli.run(app)


if __name__ == "__main__":
    main()
