"""llama-eval: measure a base or a run on a task, and compare what was measured."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llama_peft import cli

app = typer.Typer(
    help="Measure zero-shot and tuned models on the same examples, with intervals.",
    no_args_is_help=True,
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
        str | None,
        typer.Option(
            help="Hub id or folder of a base, or a run folder. Default: the recipe's base."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A file or Hub name to measure on, whole.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="test, validation or official. Default: the recipe's.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Measure on a sample of so many.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the results.")] = None,
    show: Annotated[int, typer.Option(min=0, help="Print so many prompts with their outputs.")] = 0,
) -> None:
    """Predict, score, and write predictions.jsonl and results.json."""
    from eval.job import make_job

    job = make_job(task, model, data, split, limit, output, overrides or [])
    from eval import harness

    harness.run(job)
    from eval import report

    for text in harness.shown(job, show):
        print(text)
    print(report.render(report.compare([job.output]), "rich"))
    print(job.output)


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
    from eval import report

    print(report.render(report.compare(folders), format))


@app.command()
def html(
    run: Annotated[Path, typer.Argument(help="A run folder with zero-shot/ and tuned/.")],
) -> None:
    """Write the run's report.html."""
    from eval import report

    print(report.write_html(run))


def main() -> None:
    cli.run(app)


if __name__ == "__main__":
    main()
