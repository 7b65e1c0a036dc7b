"""llama-peft: check a recipe, train it, count its parameters, and use the finished run.

Each command imports what it needs when it runs, so that `--help` answers at once. The help is plain
text, because rich alone takes three times as long to load as all the rest.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llama_peft import cli
from llama_peft.cli import AsJson, BaseName, Overrides, RecipeName, RunName
from llama_peft.commands.doctor import doctor
from llama_peft.commands.init import init
from llama_peft.commands.predict import predict
from llama_peft.commands.runs import runs
from llama_peft.commands.schema import schema
from llama_peft.commands.validate import validate
from llama_peft.ladder.command import push_trained, work
from llama_peft.ladder.command import run as run_ladder
from llama_peft.rehearsal.command import rehearse
from llama_peft.serving.command import serve
from llama_peft.system.processes import job
from llama_peft.system.terminal import say, say_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llama_peft.model.estimate import Estimate

app = typer.Typer(
    help="Fine-tune a small Llama or Gemma in 4-bit for classification or question answering.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

app.command("run")(run_ladder)
app.command("job", hidden=True)(work)
app.command()(doctor)


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option(help="Start from the beginning, even if the run folder holds a run.")
    ] = False,
    processes: cli.Processes = 1,
    share_base: Annotated[
        bool,
        typer.Option(
            "--share-base", help="Let each of several processes keep only its part of the base."
        ),
    ] = False,
) -> None:
    """Train a recipe, or resume an interrupted run of it."""
    from llama_peft.survey.own_folder import load_in_own_folder

    if share_base:
        job.share_base(processes)
    loaded = load_in_own_folder(recipe, overrides or [])
    from llama_peft.training.processes.start import train_in

    pushes = loaded.hub.push_to_hub and job.is_main() and not job.shares_work()
    if pushes:
        from llama_peft.export.access import check_before_training

        check_before_training(loaded)
    folder = train_in(processes, loaded, fresh=fresh)
    job.leave()
    if job.is_main() and not job.shares_work():
        say(folder)
    if pushes:
        push_trained(folder)


app.command()(init)
app.command()(validate)


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
    from llama_peft.survey.parts import labels_at_hand

    found = counting.report(recipe_or_model, overrides or [], labels_at_hand)
    if as_json:
        say_json(found, indent=1)
        return
    for name, value in found.items():
        say(f"{name:<20} {value:>15,}" if isinstance(value, int) else f"{name:<20} {value}")


@app.command()
def estimate(
    recipe: RecipeName,
    overrides: Overrides = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Also what so many rows take before the first step. None is read.",
            metavar="N",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate the memory, disk and download that training takes.

    Rows of a file and of the generator are encoded. Others are taken as full.
    """
    from llama_peft.recipe import load_recipe
    from llama_peft.survey.rows import rows_cost
    from llama_peft.training.fit import expected

    loaded = load_recipe(recipe, overrides or [])
    found = expected(loaded, reads=rows is None)
    many = None if rows is None else rows_cost(loaded, rows)
    if as_json:
        say_json(_as_json(found) | ({"rows": many._asdict()} if many else {}), indent=1)
        return
    say(*_lines(found), *(many.lines() if many else ()))


def _as_json(found: "Estimate") -> dict[str, object]:
    return {
        "memory": {term.name: term.bytes for term in found.memory},
        "memory_total": found.memory_total,
        "memory_smallest": found.smallest,
        "batches": found.batches,
        "disk": {term.name: term.bytes for term in found.disk},
        "disk_total": found.disk_total,
        "download": found.download,
    }


def _lines(found: "Estimate") -> "Iterator[str]":
    """Yield an estimate as a table: what, how much, why."""
    most = f"at most on {found.where}, for {found.batches}"
    rows = [
        *((term.name, term.bytes, term.why) for term in found.memory),
        ("memory", found.memory_total, most),
        ("", found.smallest, "if batches are split down to one row"),
        *((term.name, term.bytes, term.why) for term in found.disk),
        ("download", found.download, "unless it is already on this machine"),
    ]
    for name, size, why in rows:
        yield f"{name:<18} {size / 1e9:>8.3f} GB  {why}"


app.command()(rehearse)
app.command()(serve)


app.command()(predict)
app.command()(runs)
app.command()(schema)


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
def snippet(run: RunName, base: BaseName = None) -> None:
    """Print how transformers and PEFT alone load a run."""
    from llama_peft.run_folder.fetch import run_folder

    folder = run_folder(run)
    from llama_peft.export.load_snippet import of_folder
    from llama_peft.run_folder.run import open_run

    found = of_folder(open_run(folder, base))
    say(f"# {found.introduction}" if found.lines else found.introduction, *found.lines)


@app.command()
def merge(
    run: RunName,
    output: Annotated[
        Path, typer.Option(help="The folder for the merged model. It must not exist.")
    ],
    base: BaseName = None,
    precision: Annotated[
        Literal["auto", "f32", "f16", "bf16", "q8_0"] | None,
        typer.Option(
            "--gguf",
            help="Also write model.gguf for llama.cpp and a Modelfile for Ollama, with numbers of this kind.",
        ),
    ] = None,
) -> None:
    """Merge a run's adapter into its base.

    The result is one full-precision model, which vLLM and other tools can load.
    """
    from llama_peft.run_folder.fetch import run_folder

    folder = run_folder(run)
    from llama_peft.export.merged import gguf
    from llama_peft.export.merged.folder import merge as merged
    from llama_peft.run_folder.run import open_run

    opened = None if precision is None else open_run(folder, base)
    if opened is not None:
        gguf.check(opened)
    difference = merged(folder, output, base)
    say(f"largest relative score difference after merging: {difference:.2g}")
    say(output)
    if opened is not None and precision is not None:
        say(gguf.write(opened, output, precision))


def main() -> None:
    cli.run(app)


if __name__ == "__main__":
    main()
