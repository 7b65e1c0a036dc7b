"""From the command line's words to what is measured, checked before anything heavy is imported."""

from dataclasses import dataclass
from pathlib import Path

from llama_peft.recipe import Recipe, UserError, load_recipe


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is measured: the recipe's parts, or one file."""

    recipe: Recipe
    model: str
    output: Path
    data_file: str | None = None
    limit: int | None = None


def make_job(
    task: str | None,
    model: str | None,
    data_file: str | None,
    splits: list[str] | None,
    limit: int | None,
    output: Path | None,
    overrides: list[str],
) -> Job:
    """Fill in what was not said: a run folder brings its own recipe, a recipe its own base and output folder."""
    if task is None and model is None:
        raise UserError("say what to measure: --task sst2|squad|RECIPE, or --model RUN_FOLDER")
    own = Path(model, "recipe.yaml") if model is not None else None
    if task is None:
        if own is None or not own.is_file():
            raise UserError(f"{model} is no run folder, so --task must say what to measure it on")
        task = str(own)
    if splits and data_file:
        raise UserError("--split is of the recipe's data and --data another file: give one of them")
    if splits:
        overrides = [*overrides, f"eval.splits=[{', '.join(splits)}]"]
    recipe = load_recipe(task, overrides)
    if output is None:
        is_run = own is not None and own.is_file()
        folder = Path(str(model)) / "tuned" if is_run else Path(recipe.run_folder) / "zero-shot"
        output = (
            folder
            if data_file is None
            else folder.with_name(f"{folder.name}-{Path(data_file).stem}")
        )
    return Job(
        recipe=recipe,
        model=model or recipe.model.model_name_or_path,
        output=output,
        data_file=data_file,
        limit=limit,
    )
