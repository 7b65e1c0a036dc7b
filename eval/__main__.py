"""llama-eval: measure a base or a run on a task, and compare what was measured."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llama_peft import cli
from llama_peft.errors import UserError

from .job import Job, Kind, make_job, slug

app = typer.Typer(
    help="Measure zero-shot and tuned models on the same examples, with intervals.",
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def run(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value, through the recipe's own checks.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="sst2, squad, or a recipe. Default: the run's own recipe.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Hub id or folder of a base, a run, an adapter, or a whole classification or question answering "
            "checkpoint; several make one table. Default: the recipe's base."
        ),
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="What the model is, where its files do not tell.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A file or Hub name to measure on, whole.")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="test, validation or official, or the split of a Hub name given by --data. Default: the recipe's."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Measure on a sample of so many.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the results; of several models, one in it for each."),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Print so many prompts with their outputs.")] = 0,
) -> None:
    """Predict, score, and write predictions.jsonl and results.json."""
    models: list[str | None] = [*model] if model else [None]
    jobs = [
        make_job(
            task, name, data, split, limit, _inside(output, name, models), overrides or [], kind
        )
        for name in models
    ]
    _check_folders(jobs)
    from . import harness
    from .predictors.open import check_model

    for job in jobs[1:]:  # the first is checked as it starts
        check_model(job.model, job.recipe, job.kind)
    finished: list[Path] = []
    try:
        for job in jobs:
            harness.run(job, show, again=len(jobs) == 1)
            finished.append(job.output)
    finally:
        if finished:
            _print_table(finished)


def _check_folders(jobs: list[Job]) -> None:
    """Refuse two models of which the second would overwrite the first's results."""
    for number, job in enumerate(jobs):
        for other in jobs[:number]:
            if job.output.resolve() == other.output.resolve():
                raise UserError(
                    f"{other.model} and {job.model} would both be written to {job.output}: "
                    "measure them apart, each with an --output of its own"
                )


def _inside(output: Path | None, model: str | None, models: list[str | None]) -> Path | None:
    """The folder of one model's results: each its own where there are several."""
    if output is None or model is None or len(models) == 1:
        return output
    return output / slug(model)


def _print_table(folders: list[Path]) -> None:
    from . import report

    print(report.render(report.compare(folders), "rich"))
    for folder in folders:
        print(folder)


@app.command()
def score(
    predictions: Annotated[
        Path, typer.Option(help="predictions.jsonl, or the official JSON of {id: text}.")
    ],
    task: Annotated[str, typer.Option(help="sst2, squad, or a recipe.")],
    data: Annotated[
        str | None, typer.Option(help="The file with the truth. Default: the recipe's test part.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value, through the recipe's own checks.")
    ] = None,
    no_answer_probabilities: Annotated[
        Path | None, typer.Option(help="The official JSON of {id: probability of no answer}.")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="test, validation or official, or the split of a Hub name given by --data. Default: the recipe's."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results. Default: beside the predictions.")
    ] = None,
) -> None:
    """Score predictions that were made elsewhere; no model is loaded."""
    from . import scoring

    folder = output or predictions.with_name(f"{predictions.stem}-scores")
    job = make_job(task, None, data, split, None, folder, overrides or [])
    scoring.score_file(job, predictions, no_answer_probabilities)
    _print_table([folder])


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Result folders; the first is the one compared to.")
    ],
    format: Annotated[
        Literal["rich", "markdown", "latex"], typer.Option(help="How the table is written.")
    ] = "rich",
) -> None:
    """Put results side by side, with paired tests where the same examples were measured."""
    from . import report

    print(report.render(report.compare(folders), format))


@app.command()
def wordnet() -> None:
    """Get the WordNet that METEOR looks synonyms up in: Debian's where it is installed, else Princeton's (10 MB)."""
    from .metrics.wordnet import get

    try:
        print(get())
    except ValueError as error:
        raise UserError(str(error)) from None


@app.command()
def html(
    run: Annotated[Path, typer.Argument(help="A run folder with zero-shot/ and tuned/.")],
) -> None:
    """Write the run's report.html."""
    from . import report

    print(report.write_html(run))


def main() -> None:
    cli.run(app)


if __name__ == "__main__":
    main()
