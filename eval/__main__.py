"""llama-eval: evaluate a base or a run on a task, and compare the results.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llama_peft import cli
from llama_peft.cli import Overrides
from llama_peft.errors import UserError
from llama_peft.system.processes.job import shares_work
from llama_peft.system.terminal import say

from .predictors.kinds import BASELINE_WORDS, EngineName, Kind, chosen_engine

if TYPE_CHECKING:
    from .job import Job

_BASELINES = "; ".join(f"{name}, {what}" for name, what in BASELINE_WORDS.items())

app = typer.Typer(
    help="Evaluate base and fine-tuned models on the same examples, with confidence intervals.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

Split = Annotated[
    list[str] | None,
    typer.Option(
        help="The part of the recipe's data: test, validation or official. With a Hub name in --data, one of "
        "its splits. Default: the recipe's eval.splits."
    ),
]


@app.command()
def run(
    overrides: Overrides = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="The recipe: a YAML file, or a packaged name such as sst2. Default: the run's own recipe."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="The model, as a folder or a Hub name: a base, a run, an adapter, or a whole checkpoint with a "
            "classification or question answering head. Or a baseline, unless a folder has its name: "
            f"{_BASELINES}. Give it again to compare several. Default: the recipe's base.",
            callback=cli.names,
        ),
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="What the model is. Needed only if its files do not tell.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The base of a run or an adapter, if it names a folder of another machine.",
            callback=cli.name,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A file or Hub name to evaluate on, in place of the recipe's data.",
            callback=cli.name,
        ),
    ] = None,
    split: Split = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Evaluate on a random sample of N examples.", metavar="N"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The folder for the results. Several models get a folder each inside it."
        ),
    ] = None,
    show: Annotated[
        int,
        typer.Option(
            min=0, help="Print the first N prompts with the model's outputs.", metavar="N"
        ),
    ] = 0,
    engine: Annotated[
        EngineName | None,
        typer.Option(
            help="Who answers in place of this process: openai, a server of that API (vLLM, SGLang, llama.cpp, TGI), "
            "or vllm, which is started for this. --model still names what is evaluated: its tokenizer makes the prompts."
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            help="The address of the server, such as http://127.0.0.1:8000/v1. Default: OPENAI_BASE_URL of the "
            "environment, where OPENAI_API_KEY is the key."
        ),
    ] = None,
    served_model: Annotated[
        str | None,
        typer.Option(
            help="What the server calls the model, if that is not --model (of a run: the name of its folder)."
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=1024, help="Requests to the server at the same time.")
    ] = 8,
    prices: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="The prices of a million tokens that are read, and that are written. results.json then holds the cost.",
            metavar="READ WRITTEN",
        ),
    ] = None,
    processes: cli.Processes = 1,
) -> None:
    """Evaluate one or several models.

    Each model's folder gets predictions.jsonl and results.json.
    """
    from .job import make_job

    choice = chosen_engine(engine, base_url, served_model, concurrency, prices)
    if choice and choice.served_model and model and len(model) > 1:
        raise UserError("--served-model is the name of one model; evaluate several one by one")
    models: list[str | None] = [*model] if model else [None]
    jobs = [
        make_job(
            task,
            model=name,
            data_file=data,
            splits=split,
            limit=limit,
            output=_inside(output, name, models),
            overrides=overrides or (),
            kind=kind,
            base=base,
            engine=choice,
        )
        for name in models
    ]
    _check_folders(jobs)
    if processes > 1 and not shares_work():
        from .harness import run_in

        run_in(processes, jobs, sys.argv[1:])
    else:
        _evaluate(jobs, show)


def _evaluate(jobs: "list[Job]", show: int) -> None:
    """Evaluate the jobs in turn. If one fails, the table of those before it is still shown."""
    from . import harness

    # A model that cannot be evaluated is refused before the first one starts.
    subjects = [harness.identify_job(job) for job in jobs]
    finished: list[Path] = []
    try:
        for job, subject in zip(jobs, subjects, strict=True):
            if harness.run(job, show, len(jobs) == 1, subject) is not None:
                finished.append(job.output)
    finally:
        if finished:
            _print_table(finished)


def _check_folders(jobs: "list[Job]") -> None:
    """Refuse folders that are not ours, and two models that would write to the same folder."""
    from llama_peft.run_folder.ownership import check_evaluation_folder

    for number, job in enumerate(jobs):
        check_evaluation_folder(job.output)
        for other in jobs[:number]:
            if job.output.resolve() == other.output.resolve():
                raise UserError(
                    f"{job.output}: {other.model} and {job.model} would both write their results "
                    "here; evaluate them one at a time, each with its own --output"
                )


def _inside(output: Path | None, model: str | None, models: list[str | None]) -> Path | None:
    """Return the folder of one model's results: `output` itself, or one inside it if there are
    several models.
    """
    from .job import slug

    if output is None or model is None or len(models) == 1:
        return output
    return output / slug(model)


def _print_table(folders: list[Path]) -> None:
    from . import report

    say(*report.render(report.compare(folders), "rich").split("\n"))
    for folder in folders:
        say(folder)


@app.command()
def score(
    predictions: Annotated[
        Path,
        typer.Option(
            help="predictions.jsonl, a CSV file with the columns id and prediction, what llama-peft predict wrote, "
            "samples_*.jsonl of lm-evaluation-harness, or SQuAD's official JSON format: {id: text}."
        ),
    ],
    task: Annotated[
        str, typer.Option(help="The recipe: a YAML file, or a packaged name such as sst2.")
    ],
    data: Annotated[
        str | None,
        typer.Option(help="The file with the correct answers. Default: the recipe's test part."),
    ] = None,
    overrides: Overrides = None,
    no_answer_probabilities: Annotated[
        Path | None,
        typer.Option(
            help="SQuAD's official JSON format: {id: probability that there is no answer}."
        ),
    ] = None,
    split: Split = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The folder for the results. Default: beside the predictions."),
    ] = None,
) -> None:
    """Score predictions from a file, without loading a model."""
    from .job import make_job
    from .predictions_file import score_file, scores_folder

    folder = output or scores_folder(predictions)
    job = make_job(task, data_file=data, splits=split, output=folder, overrides=overrides or ())
    score_file(job, predictions, no_answer_probabilities)
    _print_table([folder])


@app.command()
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of results, or of runs. The others are compared with the first."
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(help="What the others are compared with: its folder, or the end of its path."),
    ] = None,
    format: Annotated[
        Literal["rich", "markdown", "latex"], typer.Option(help="The format of the table.")
    ] = "rich",
) -> None:
    """Show results side by side.

    Results on the same examples are compared with paired tests.
    """
    from . import report

    say(*report.render(report.compare(folders, against), format).split("\n"))


@app.command()
def verdict(
    runs: Annotated[list[Path], typer.Argument(help="Run folders that llama-peft run has made.")],
) -> None:
    """Show what the ladder of a run says: its table and its verdict."""
    from .ladder.steps import lines_of
    from .ladder.verdict import judge

    for run in runs:
        say(*lines_of(judge(run)))


@app.command(hidden=True)
def rung(
    name: str,
    recipe: Path,
    run: str,
    results: str,
    again: Annotated[bool, typer.Option()] = False,
) -> None:
    """Measure a rung of a ladder, as one of the processes of llama-peft run --processes."""
    from .ladder.steps import measure_share

    measure_share(name, recipe, run, results, again)


@app.command()
def wordnet() -> None:
    """Install WordNet, which METEOR needs for synonyms.

    Debian's copy is used if it is installed. Otherwise Princeton's is downloaded (10 MB).
    """
    from .metrics.words.wordnet import get

    try:
        say(get())
    except ValueError as error:
        raise UserError(str(error)) from None


@app.command()
def html(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="A run folder that holds zero-shot/ and tuned/; or folders of results, and the others are compared "
            "with the first."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Where to write the page of several folders.")
    ] = None,
) -> None:
    """Write report.html of a run, or of results side by side."""
    from . import report

    if output is None and len(folders) > 1:
        raise UserError(
            "several folders need --output FILE.html, which says where to write the page"
        )
    page = (
        report.write_html(folders[0])
        if output is None
        else report.write_comparison(folders, output)
    )
    say(page)


def main() -> None:
    cli.run(app)


if __name__ == "__main__":
    main()
