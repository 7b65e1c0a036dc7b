"""From the command line's words to what is measured, checked before anything heavy is imported."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, load_recipe

from .kinds import Kind

MEASURED = ("eval.", "dataset.", "train.per_device_eval_batch_size")
"""Keys that a measurement of a run may choose, by their beginnings."""
_CHOOSING = ("eval.splits", "eval.limit", "eval.num_fewshot")
"""Keys that a folder's name tells in words of their own."""
_CHANGING = (
    "model.", "quantization.", "prompt.", "eval.", "dataset.", "train.max_length", "train.doc_stride",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is measured: the recipe's parts, or one file."""

    recipe: Recipe
    model: str
    output: Path
    kind: Kind | None = None
    """None: seen from the model's files."""
    data_file: str | None = None
    """A file or a Hub data set's name."""
    data_split: str | None = None
    """The split of that data set; None takes its test split."""
    limit: int | None = None
    fetched: bool = False
    """Whether `model` is the Hub cache's copy of a pushed run, into which nothing is written."""

    @property
    def sample_size(self) -> int | None:
        """The limit, or the recipe's; None for all."""
        return self.limit or self.recipe.eval.limit


def make_job(
    task: str | None,
    model: str | None,
    data_file: str | None,
    splits: list[str] | None,
    limit: int | None,
    output: Path | None,
    overrides: list[str],
    kind: Kind | None = None,
) -> Job:
    """Fill in what was not said: a run folder brings its own recipe, a recipe its own base and output folder."""
    if task is None and model is None:
        raise UserError("say what to measure: --task sst2|squad|RECIPE, or --model RUN_FOLDER")
    if data_file is not None and not data_file.strip():
        raise UserError("--data is empty: name a file, or a data set on the Hub")
    name, model = model, _folder_of(model, task)
    fetched = name != model
    own = Path(model, "recipe.yaml") if model is not None else None
    if task is None:
        if own is None or not own.is_file():
            raise UserError(f"{model} is no run folder, so --task must say what to measure it on")
        task = str(own)
        _check_fixed(str(name), overrides)
    data_split = _data_split(data_file, splits) if data_file and splits else None
    if splits and not data_file:
        overrides = [*overrides, f"eval.splits=[{', '.join(splits)}]"]
    recipe = load_recipe(task, overrides)
    if output is None:
        folder = Path("runs", slug(str(name)), "tuned") if fetched else _folder(recipe, model)
        plain = [text for text in overrides if not text.strip().startswith(_CHOOSING)]
        data_words = [Path(data_file).stem, *filter(None, [data_split])] if data_file else []
        words = _what_differs(recipe, load_recipe(task, plain), own, data_words, limit, overrides)
        output = folder.with_name("-".join([folder.name, *words]))
    return Job(
        recipe=recipe,
        model=model or recipe.model.model_name_or_path,
        output=output,
        kind=kind,
        data_file=data_file,
        data_split=data_split,
        limit=limit,
        fetched=fetched,
    )


def _data_split(data_file: str, splits: list[str]) -> str:
    """The split of a Hub data set that --data names."""
    from llama_peft.data import is_file_name

    if is_file_name(data_file):
        raise UserError("--split is of the recipe's data and --data another file: give one of them")
    if len(splits) > 1:
        raise UserError(f"{data_file} is measured on one split: give one --split")
    return splits[0]


def _check_fixed(run: str, overrides: list[str]) -> None:
    """Refuse overrides that would be written into the results and change nothing: what training fixed stays."""
    fixed = [text for text in overrides if not text.strip().startswith(MEASURED)]
    if fixed:
        raise UserError(
            f"override {fixed[0]}: {run} was trained otherwise; a measurement takes {', '.join(MEASURED)}"
        )


def _folder_of(model: str | None, task: str | None) -> str | None:
    """A pushed run's name as the folder that it was fetched to; every other name as it is.

    With a task the name may be any model's, and what is wrong with it is said when it is opened.
    """
    if model is None or Path(model).exists():
        return model
    from llama_peft.run_folder import fetch

    if not fetch.is_hub_name(model):
        return model
    try:
        return str(fetch.run_folder(model) if task is None else fetch.fetch(model) or model)
    except UserError:
        if task is None:
            raise
        return model


def _folder(recipe: Recipe, model: str | None) -> Path:
    """A run's own `tuned`, or a folder in the recipe's run named after what is measured."""
    if model is not None and Path(model, "recipe.yaml").is_file():
        return Path(model) / "tuned"
    shots = recipe.eval.num_fewshot
    name = f"{shots}-shot" if shots else "zero-shot"
    if model not in (None, recipe.model.model_name_or_path):
        name += f"-{slug(str(model))}"
    return Path(recipe.run_folder) / name


def _what_differs(
    recipe: Recipe,
    plain: Recipe,
    own: Path | None,
    data_words: list[str],
    limit: int | None,
    overrides: list[str],
) -> Iterator[str]:
    """What tells a measurement from the plain one of its model, in whose folder it must not lie.

    plain: the recipe without such choices. own: where a run's own recipe would be. data_words: what names
    the data of --data.
    """
    if own is not None and own.is_file() and load_recipe(own).name != recipe.name:
        yield recipe.name
    yield from data_words
    if recipe.eval.splits != plain.eval.splits:
        yield "-".join(recipe.eval.splits)
    limit = limit or recipe.eval.limit
    if limit != plain.eval.limit:
        yield f"limit-{limit}" if limit else "no-limit"
    others = [text for text in map(str.strip, overrides) if not text.startswith(_CHOOSING)]
    if own is not None and own.is_file():  # what else a measurement of the run chose
        others = [text for text in others if text.startswith(("eval.", "dataset."))]
    else:  # what another training than the one that the folder holds would choose
        its = _trained(Path(recipe.run_folder)) or recipe
        others = [text for text in others if text.startswith(_CHANGING)]
        others = [text for text in others if _value(text, recipe) != _value(text, its)]
    yield from (slug(text.partition(".")[2] or text)[:60] for text in others)


def _trained(run: Path) -> Recipe | None:
    """The recipe of a run, where there is one that can be read."""
    try:
        return load_recipe(run / "recipe.yaml") if (run / "recipe.yaml").is_file() else None
    except UserError:
        return None


def _value(override: str, recipe: Recipe) -> Any:
    """What a recipe holds at the key of an override."""
    found: Any = recipe
    for key in override.partition("=")[0].split("."):
        found = getattr(found, key.strip(), None)
    return found


def slug(model: str) -> str:
    """A model's name as a folder's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model"
