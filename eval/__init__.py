"""Evaluates any checkpoint: predictions go to a file, and numbers and tables come from the file.

    from llama_peft_eval import compare, evaluate

    evaluate(task="tiny-sst2")               # the untouched base: zero-shot
    evaluate("runs/tiny-sst2")               # a run, on the data of its own recipe
    print(compare(["runs/tiny-sst2"]))

It reads what training wrote into a run folder, and shares prompts, splits and the meaning of "no
answer" with it. It never imports what only training does, so nothing of training can reach a score.
Nothing heavy is imported before a function is called.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from llama_peft.data import Rows
    from llama_peft.recipe import Source
    from llama_peft.run_folder.results import Results

    from .predictors.kinds import EngineName, Kind

__all__ = ["compare", "evaluate", "load_predictions", "plot", "score", "verdict"]


def evaluate(
    model: str | Path | None = None,
    *,
    task: "Source | None" = None,
    data: "str | Path | Rows | None" = None,
    splits: Sequence[str] = (),
    limit: int | None = None,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    kind: "Kind | None" = None,
    base: str | None = None,
    engine: "EngineName | None" = None,
    base_url: str | None = None,
    served_model: str | None = None,
    concurrency: int = 8,
    prices: tuple[float, float] | None = None,
) -> "Results":
    """Evaluate a model on a task, and return its results.

    predictions.jsonl and results.json are written into `output`.

    model: a base, a run, an adapter or a whole checkpoint, by folder or Hub id; a baseline: majority,
    tf-idf, no-answer or bm25; None is the base of the task's recipe.
    task: a recipe, its name, its file or a dict; None is the recipe of the run that `model` names.
    data: a file, a Hub name or rows to evaluate on as a whole, in place of the recipe's parts.
    splits: parts of the recipe's data, or one split of a Hub name in `data`; empty is the recipe's
    `eval.splits`.
    limit: evaluate on a random sample of this size.
    kind: what the model is, if its files do not tell.
    base: what a run or an adapter stands on, if it names a folder of another machine.
    engine: who answers in place of this process: "openai", a server of that API, or "vllm", which is
    started for this.
    base_url, served_model: the address of the server, by default that of OPENAI_BASE_URL, and what it
    calls the model.
    concurrency: how many requests it gets at the same time.
    prices: of a million tokens that are read, and that are written; the results then hold the cost.

    Raises UserError, in one line, on any mistake.
    """
    from llama_peft.system.quiet import python_face

    with python_face():
        from . import harness
        from .job import make_job
        from .predictors.kinds import chosen_engine

        file = str(data) if isinstance(data, str | Path) else None
        job = make_job(
            task,
            model=None if model is None else str(model),
            data_file=file,
            splits=splits,
            limit=limit,
            output=None if output is None else Path(output),
            overrides=overrides,
            kind=kind,
            base=base,
            engine=chosen_engine(engine, base_url, served_model, concurrency, prices),
        )
        if data is not None and file is None:
            folder = job.output if output else job.output.with_name(f"{job.output.name}-rows")
            job = replace(job, data_file=data, output=folder)
        found = harness.run(job)
        assert found is not None, "this is the only process"
        return found


def score(
    predictions: str | Path,
    *,
    task: "Source",
    data: str | Path | None = None,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> "Results":
    """Score predictions that were made elsewhere. No model is loaded.

    predictions: our predictions.jsonl, or the official {id: text}.
    """
    from llama_peft.system.quiet import python_face

    with python_face():
        from .job import make_job
        from .predictions_file import score_file, scores_folder

        file = Path(predictions)
        folder = Path(output) if output else scores_folder(file)
        truth = None if data is None else str(data)
        job = make_job(task, data_file=truth, output=folder, overrides=overrides)
        return score_file(job, file, None)


def compare(
    folders: Sequence[str | Path], form: Literal["rich", "markdown", "latex"] = "markdown"
) -> str:
    """Results side by side as a table; a run folder stands for its zero-shot and its tuned results.

    Differences are to the first one, paired by example.
    """
    from llama_peft.system.quiet import python_face

    with python_face():
        from . import report

        return report.render(report.compare([Path(folder) for folder in folders]), form)


def verdict(run: str | Path) -> list[str]:
    """Return the lines of a ladder's table and verdict. run: what `llama_peft.run` returned.

    Raises UserError, in one line, if the folder holds no ladder.
    """
    from llama_peft.system.quiet import python_face

    with python_face():
        from .ladder.steps import lines_of
        from .ladder.verdict import judge

        return lines_of(judge(Path(run)))


def load_predictions(results: str | Path) -> "pandas.DataFrame":
    """Return the predictions behind results, one row for each example, in the order of the data.

    results: a folder of an evaluation, such as runs/tiny-sst2/tuned. The columns are those of
    predictions.jsonl: id, split, text, gold, prediction, probabilities and others.

    Raises UserError, in one line, if the files are missing or not what was written.
    """
    from llama_peft.system.quiet import python_face

    with python_face():
        import pandas

        from .results import read_systems

        lines = [line for system in read_systems(Path(results)) for line in system.lines]
        return pandas.DataFrame([line.model_dump() for line in lines])


def plot(run: str | Path) -> "dict[str, Figure]":
    """Return the charts of a run's report by name, as figures of matplotlib; a notebook shows them.

    Raises UserError, in one line, if the run has no zero-shot and tuned results.
    """
    from llama_peft.system.quiet import python_face

    with python_face():
        from .report import charts_of

        return {chart.name: chart.figure for chart in charts_of(Path(run))}
