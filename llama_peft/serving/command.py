"""The command `llama-peft serve`."""

from pathlib import Path
from typing import Annotated

import typer

from llama_peft import cli
from llama_peft.errors import UserError
from llama_peft.system.terminal import say

ADDRESS = "127.0.0.1"
"""Nobody but this machine is answered: a run's replies may hold what it was trained on."""


def serve(
    run: Annotated[
        str, typer.Argument(help="A run folder or a Hub name.", metavar="RUN", callback=cli.name)
    ],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port on 127.0.0.1.")] = 8000,
    base: Annotated[
        str | None, typer.Option(help="Another name of its base, if that is elsewhere here.")
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Leave the untouched base out, which saves its memory.")
    ] = False,
    feedback: Annotated[
        Path | None,
        typer.Option(help="The JSONL file for corrections. Default: feedback.jsonl in the run."),
    ] = None,
) -> None:
    """Try a run on a page of this machine, beside its untouched base.

    What you correct there is kept as rows that a recipe can train on. POST /api/predict is the same
    as JSON.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError:
        raise UserError(
            "the page needs two more packages: pip install 'llama-peft[demo]'"
        ) from None
    from llama_peft.inference.ask import load
    from llama_peft.ladder.evaluation import find_evaluation
    from llama_peft.run_folder.fetch import run_folder
    from llama_peft.run_folder.run import open_run
    from llama_peft.serving.app import make_app
    from llama_peft.serving.feedback import FEEDBACK, Feedback

    opened = open_run(run_folder(run), base)
    place = feedback or (opened.folder if Path(run).is_dir() else Path()) / FEEDBACK
    if place.suffix != ".jsonl" or place.is_dir():
        raise UserError(f"{place}: corrections are JSON lines: name a file that ends in .jsonl")
    kept = Feedback(run=opened, place=place)
    tuned = load(opened)
    untouched = None if alone else find_evaluation().untouched(opened)
    say(f"http://{ADDRESS}:{port} answers for {run}; Ctrl-C ends it")
    say(f"corrections go to {kept.place}")
    uvicorn.run(make_app(tuned, untouched, kept), host=ADDRESS, port=port, log_level="warning")
