"""The command `llama-peft predict`."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_peft import cli
from llama_peft.errors import UserError
from llama_peft.system.terminal import complain, one_line, say, say_json

if TYPE_CHECKING:
    from llama_peft.inference.ask import LoadedRun, Reply
    from llama_peft.run_folder.run import Run

_SHOWN = 5
"""Labels whose probabilities are shown."""
_LETTERS = 60
"""Letters of a text behind its prediction."""
_LINES = "-"
"""In place of a text: read standard input."""


def predict(
    run: cli.RunName,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="The texts to classify; - reads one from each line of standard input. With --file: settings in "
            "place of the recipe's, as dataset.key=value.",
            metavar="[TEXT]...",
        ),
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option(help="The question to answer. Give it again to ask more.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="The passage that holds the answers.")] = None,
    base: cli.BaseName = None,
    as_json: cli.AsJson = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--file",
            "--data",
            help="A file or Hub name to predict: one text a line (.txt), or a table with the columns of the run; - "
            "reads a table from standard input. Labels and answers may be missing.",
            callback=cli.name,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="With a Hub name in --file, one of its splits.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="With --file, the new file for the predictions: .csv or .jsonl. Default: JSON lines on standard "
            "output. In CSV, a text that a spreadsheet would run as a formula begins with an apostrophe."
        ),
    ] = None,
) -> None:
    """Classify texts or answer questions with a run.

    It takes texts or questions, or every row of a file, or on a terminal what you type. A prediction into a file that was interrupted
    continues with the same command.
    """
    if data is not None:
        if question or context is not None:
            raise UserError("--file names the questions; leave --question and --context out")
        _of_file(run, base, data, split, output, words or [])
        return
    if split is not None or output is not None:
        raise UserError("--split and --output belong to --file; name the file to predict")
    _check_files(words or (), "")
    _check_files(question or (), "--question ")
    _check_files([context or ""], "--context ")
    _of_words(run, base, words or [], question or [], context, as_json)


def _check_files(texts: Iterable[str], option: str) -> None:
    """Raise UserError if a text is the name of a file that is here: the file may be meant."""
    for text in texts:
        if os.path.isfile(text):
            lines = f'{option}"$(cat {text})"' if option else f"--file {text}"
            raise UserError(
                f"{option}{text}: a file has this name: write {lines} if you mean what it holds; a text that is "
                "a file name can only stand in a file"
            )


def _of_file(
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


def _of_words(
    run: str,
    base: str | None,
    words: list[str],
    questions: list[str],
    context: str | None,
    as_json: bool,
) -> None:
    """Print the predictions of texts or questions, of lines, or of what is typed."""
    from llama_peft.inference.ask import load
    from llama_peft.run_folder.fetch import run_folder
    from llama_peft.run_folder.run import open_run

    opened = open_run(run_folder(run), base)
    if words == [_LINES] and not questions and context is None:
        _of_lines(load(opened), as_json)
        return
    if not words and not questions and context is None and sys.stdin.isatty():
        _typed(load(opened), as_json)
        return
    labels = opened.recipe.kind.has_labels
    if labels and (not words or questions or context):
        raise UserError(
            f'{run} classifies texts: write llama-peft predict {run} "text", or --file FILE'
        )
    passage = bool(opened.recipe.dataset.columns.context)
    if not labels and (words or not questions or (context is None) == passage):
        ending = " --context PASSAGE" if passage else ""
        raise UserError(
            f"{run} answers questions: write llama-peft predict {run} --question Q{ending}, or "
            "--file FILE"
        )
    asked = [{"question": one, "context": context or ""} for one in questions]
    shown = words if labels else questions
    for text, reply in zip(shown, load(opened).predict(words if labels else asked), strict=True):
        _say(reply, as_json, text if len(shown) > 1 else "")


def _of_lines(loaded: "LoadedRun", as_json: bool) -> None:
    """Print the prediction of each line of standard input, a batch at a time.

    A line is a text, or the texts or the question with its passage as JSON.
    """
    from llama_peft.data import literal

    lines = (line.rstrip("\r\n") for line in sys.stdin if line.strip())
    size = loaded.run.recipe.train.per_device_eval_batch_size
    while portion := list(islice(lines, size)):
        inputs = portion if loaded.run.recipe.kind.has_labels else [*map(literal, portion)]
        for text, reply in zip(portion, loaded.predict(inputs), strict=True):
            _say(reply, as_json, text)


def _typed(loaded: "LoadedRun", as_json: bool) -> None:
    """Ask for texts or questions and print the prediction of each, until the end of input."""
    names = _asked(loaded.run)
    complain("Control-D ends.")
    while True:
        try:
            asked = {name: input(f"{one_line(name)}: ") for name in names}
            (reply,) = loaded.predict([asked])
        except EOFError:
            return
        except UserError as error:
            complain(error)
        else:
            _say(reply, as_json)


def _asked(run: "Run") -> Sequence[str]:
    """Return what a run must be told: the names of its texts, or passage and question."""
    recipe = run.recipe
    if recipe.kind.has_labels:
        return recipe.prompt.fields or ("text",)
    return ("context", "question") if recipe.dataset.columns.context else ("question",)


def _say(reply: "Reply", as_json: bool, text: str = "") -> None:
    """Print a reply. text: what was asked, if several were."""
    if as_json:
        say_json(reply.as_dict())
        return
    short = text if len(text) <= _LETTERS else f"{text[: _LETTERS - 3]}..."
    say("  ".join([*_parts(reply), *([f"| {short}"] if text else [])]))


def _parts(reply: "Reply") -> Iterator[str]:
    """Yield the prediction, and how probable it and its alternatives are, by their names."""
    said = reply.prediction
    if isinstance(said, tuple):
        yield ", ".join(said) or "(no label)"
    else:
        yield f"{said:.4f}" if isinstance(said, float) else said or "(no answer)"
    chances = sorted(reply.probabilities.items(), key=lambda item: -item[1])
    if chances:
        more = ["..."] if len(chances) > _SHOWN else []
        listed = ", ".join([*(f"{name} {p:.4f}" for name, p in chances[:_SHOWN]), *more])
        yield f"({listed})"
    if reply.no_answer_probability is not None:
        yield f"(no answer {reply.no_answer_probability:.4f})"
