"""llama-peft: check a recipe, train it, count its parameters, and use the finished run.

Each command imports what it needs when it runs, so that `--help` answers at once. The help is plain
text, because rich alone takes three times as long to load as all the rest.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_peft import cli
from llama_peft.cli import Overrides, RecipeName
from llama_peft.doctor.command import doctor
from llama_peft.ladder.command import push_trained
from llama_peft.ladder.command import run as run_ladder
from llama_peft.rehearsal.command import rehearse
from llama_peft.system.terminal import complain, listed, one_line, say, say_json

if TYPE_CHECKING:
    from llama_peft.inference.ask import Reply
    from llama_peft.inference.predict import Output
    from llama_peft.run_folder.run import Run

app = typer.Typer(
    help="Fine-tune a small Llama or Gemma in 4-bit for classification or question answering.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

RunName = Annotated[
    str,
    typer.Argument(
        help="The finished run: its folder, or user/repo[@revision] on the Hub.", callback=cli.name
    ),
]
BaseName = Annotated[
    str | None,
    typer.Option(
        help="The run's base, if its recipe names a folder of another machine.", callback=cli.name
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


app.command("run")(run_ladder)
app.command()(doctor)


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option(help="Start from the beginning, even if the run folder holds a run.")
    ] = False,
) -> None:
    """Train a recipe, or resume an interrupted run of it."""
    from llama_peft.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from llama_peft.training.fit import train as fit
    from llama_peft.training.resume import is_main_process

    pushes = loaded.hub.push_to_hub and is_main_process()
    if pushes:
        from llama_peft.export.access import check_before_training

        check_before_training(loaded)
    folder = fit(loaded, fresh=fresh)
    say(folder)
    if pushes:
        push_trained(folder)


@app.command()
def validate(
    recipe: RecipeName,
    overrides: Overrides = None,
    data: Annotated[
        bool, typer.Option(help="Check the data too. Data on the Hub is downloaded for this.")
    ] = True,
) -> None:
    """Check a recipe and its data without loading a model."""
    from llama_peft.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if data:
        from llama_peft.data import load

        dataset = load(loaded)
        for part, examples in dataset.parts.items():
            say(f"{part}: {len(examples)} examples")
        if dataset.labels:
            say(f"labels: {listed(dataset.labels)}")
    say(f"{loaded.name}: {loaded.task} on {loaded.model.model_name_or_path}, valid")


@app.command()
def params(
    recipe_or_model: Annotated[
        str,
        typer.Argument(
            help="A recipe, or a model: its folder or its name on the Hub.", callback=cli.name
        ),
    ],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Count the parameters exactly, without loading the model."""
    from llama_peft.model import params as counting

    found = counting.report(recipe_or_model, overrides or [])
    if as_json:
        say_json(found, indent=1)
        return
    for name, value in found.items():
        say(f"{name:<20} {value:>15,}" if isinstance(value, int) else f"{name:<20} {value}")


@app.command()
def estimate(
    recipe: RecipeName,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Estimate the memory, disk and download that training takes.

    Rows of a file and of the generator are encoded. Others are taken as full.
    """
    from llama_peft.recipe import load_recipe
    from llama_peft.training.fit import expected

    found = expected(load_recipe(recipe, overrides or []))
    if as_json:
        say_json(
            {
                "memory": {term.name: term.bytes for term in found.memory},
                "memory_total": found.memory_total,
                "memory_smallest": found.smallest,
                "batches": found.batches,
                "disk": {term.name: term.bytes for term in found.disk},
                "disk_total": found.disk_total,
                "download": found.download,
            },
            indent=1,
        )
        return
    for term in found.memory:
        say(f"{term.name:<18} {term.bytes / 1e9:>8.3f} GB  {term.why}")
    most = f"at most on {found.where}, for {found.batches}"
    say(f"{'memory':<18} {found.memory_total / 1e9:>8.3f} GB  {most}")
    say(f"{'':<18} {found.smallest / 1e9:>8.3f} GB  if batches are split down to one row")
    for term in found.disk:
        say(f"{term.name:<18} {term.bytes / 1e9:>8.3f} GB  {term.why}")
    say(f"{'download':<18} {found.download / 1e9:>8.3f} GB  unless it is already on this machine")


app.command()(rehearse)


@app.command()
def predict(
    run: RunName,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="The text to classify. With --data: settings in place of the recipe's, as dataset.key=value.",
            metavar="[TEXT]",
        ),
    ] = None,
    question: Annotated[str | None, typer.Option(help="The question to answer.")] = None,
    context: Annotated[str | None, typer.Option(help="The passage that holds the answer.")] = None,
    base: BaseName = None,
    as_json: AsJson = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="A file or Hub name to predict; - reads standard input. Labels and answers may be missing.",
            callback=cli.name,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="With a Hub name in --data, one of its splits.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="With --data, the new file for the predictions: .csv or .jsonl. Default: JSON lines on standard "
            "output. In CSV, a text that a spreadsheet would run as a formula begins with an apostrophe."
        ),
    ] = None,
) -> None:
    """Classify texts or answer questions with a run.

    It takes one text or question, or every row of a file, or on a terminal what you type. A prediction into a file that was interrupted
    continues with the same command.
    """
    from llama_peft.errors import UserError

    if data is None:
        if split is not None or output is not None:
            raise UserError("--split and --output belong to --data; name the file to predict")
        _predict_one(run, base, words or [], question, context, as_json)
        return
    if question is not None or context is not None:
        raise UserError("--data names the questions; leave --question and --context out")
    _predict_data(run, base, data, split, output, words or [])


def _predict_data(
    run: str,
    base: str | None,
    data: str,
    split: str | None,
    output: Path | None,
    overrides: list[str],
) -> None:
    """Write the predictions of a file's rows, or print them."""
    from llama_peft.inference import batch
    from llama_peft.run_folder.fetch import run_folder
    from llama_peft.run_folder.run import open_run

    if output is not None:
        batch.check_output(output)
    opened = batch.open_batch(open_run(run_folder(run), base), data, split, overrides)
    if output is not None:
        batch.write(opened, output)
        say(output)
        return
    for row in batch.replies(opened):
        say_json(row)


def _predict_one(
    run: str,
    base: str | None,
    words: list[str],
    question: str | None,
    context: str | None,
    as_json: bool,
) -> None:
    """Print the prediction of one text or question."""
    from llama_peft.errors import UserError
    from llama_peft.run_folder.fetch import run_folder
    from llama_peft.run_folder.run import open_run

    opened = open_run(run_folder(run), base)
    labels = opened.recipe.kind.has_labels
    if not words and question is None and context is None and sys.stdin.isatty():
        _predict_typed(opened, as_json)
        return
    if labels and (len(words) != 1 or question or context):
        raise UserError(
            f'{run} classifies texts: write llama-peft predict {run} "text", or --data FILE'
        )
    passage = bool(opened.recipe.dataset.columns.context)
    if not labels and (words or question is None or (context is None) == passage):
        ending = " --context PASSAGE" if passage else ""
        raise UserError(
            f"{run} answers questions: write llama-peft predict {run} --question Q{ending}, or "
            "--data FILE"
        )
    from llama_peft.inference.ask import load

    asked = words if labels else [{"question": str(question), "context": context or ""}]
    (reply,) = load(opened).predict(asked)
    _say_reply(reply, as_json)


def _predict_typed(run: "Run", as_json: bool) -> None:
    """Ask for texts or questions and print the prediction of each, until the end of input."""
    from llama_peft.errors import UserError
    from llama_peft.inference.ask import load

    recipe, loaded = run.recipe, load(run)
    passage = ["context"] if recipe.dataset.columns.context else []
    names = recipe.prompt.fields or ("text",)
    if not recipe.kind.has_labels:
        names = (*passage, "question")
    complain("Control-D ends.")
    while True:
        try:
            (reply,) = loaded.predict([{name: input(f"{one_line(name)}: ") for name in names}])
        except EOFError:
            return
        except UserError as error:
            complain(error)
        else:
            _say_reply(reply, as_json)


def _say_reply(reply: "Reply", as_json: bool) -> None:
    row = reply.as_dict()
    if as_json:
        say_json(row)
    else:
        say("  ".join(map(_shown, row.values())))


def _shown(value: "Output") -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "(no label)"
    return f"{value:.4f}" if isinstance(value, float) else value


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    repo_id: Annotated[
        str | None,
        typer.Option(
            help="The repository, as user/repo. Default: the recipe's hub.hub_model_id.",
            callback=cli.name,
        ),
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Who can see a new repository. Default: the recipe's hub.hub_private_repo.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="List the files and show the card, but send nothing.")
    ] = False,
    eval_results: Annotated[
        bool,
        typer.Option(help="Also push the file that the data set's own page shows (.eval_results)."),
    ] = False,
    if_asked: Annotated[
        bool, typer.Option(help="Do nothing unless the recipe sets hub.push_to_hub to true.")
    ] = False,
) -> None:
    """Push a finished run to the Hub.

    The commit holds the weights, the recipe, the results, the report, and a card that shows the
    results.
    """
    from llama_peft.recipe import load_recipe

    if if_asked and not load_recipe(run / "recipe.yaml").hub.push_to_hub:
        return
    from llama_peft.export import push as hub

    pushed = hub.push(run, repo_id, private, dry_run, eval_results)
    if dry_run:
        say(*pushed.card.split("\n"))
    for name, size in pushed.files.items():
        say(f"{size:>12,}  {name}")
    say(f"{sum(pushed.files.values()):>12,}  bytes in all, for {pushed.repo_id}")
    say(pushed.commit_url or "nothing was sent")


@app.command()
def merge(
    run: RunName,
    output: Annotated[
        Path, typer.Option(help="The folder for the merged model. It must not exist.")
    ],
    base: BaseName = None,
) -> None:
    """Merge a run's adapter into its base.

    The result is one full-precision model, which llama.cpp, vLLM and other tools can load.
    """
    from llama_peft.run_folder.fetch import run_folder

    folder = run_folder(run)
    from llama_peft.export.merge import merge as merged

    difference = merged(folder, output, base)
    say(f"largest relative score difference after merging: {difference:.2g}")
    say(output)


def main() -> None:
    cli.run(app)


if __name__ == "__main__":
    main()
