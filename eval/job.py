"""What is evaluated, from the words of the command line, and where its results go."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_peft.data import Rows, is_file_name
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, Source, load_recipe
from llama_peft.run_folder.layout import RECIPE, TRAINING, TUNED, ZERO_SHOT
from llama_peft.run_folder.run import check_fixed, is_run, recipe_of
from llama_peft.system import files

from .predictors.engines.client import checked_url
from .predictors.kinds import EngineChoice, Kind, baseline_of

_NAMED = ("eval.splits", "eval.limit", "eval.num_fewshot")
"""Keys that have words of their own in the name of a folder."""
_CHANGING = (
    "model.", "quantization.", "prompt.", "eval.", "dataset.", "train.max_length", "train.doc_stride",
)  # fmt: skip
"""The beginnings of the keys that change the results of a model that is not fine-tuned."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model to evaluate on the parts of a recipe, or on one file."""

    recipe: Recipe
    model: str
    output: Path
    kind: Kind | None = None
    """What the model is; None if its files tell."""
    base: str | None = None
    """What a run or an adapter stands on; None if it is the base that it names."""
    given: Mapping[str, Rows] | None = None
    """Rows from Python by part. They replace what the recipe says about that part."""
    data_file: "str | Rows | None" = None
    """A file, the name of a Hub data set, or rows from Python, in place of the recipe's parts."""
    data_split: str | None = None
    """The split of that data set; None takes its test split."""
    limit: int | None = None
    engine: EngineChoice | None = None
    """The server that answers; None if this process does."""
    fetched: bool = False
    """Whether `model` is the Hub cache's copy of a pushed run, into which nothing is written."""

    @property
    def sample_size(self) -> int | None:
        """The limit, or that of the recipe; None for all examples."""
        return self.limit or self.recipe.eval.limit


def make_job(
    task: Source | None = None,
    model: str | None = None,
    data_file: str | None = None,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    kind: Kind | None = None,
    base: str | None = None,
    engine: EngineChoice | None = None,
) -> Job:
    """Return the job that a command asks for.

    A run has its own recipe, and a recipe its own base. Without `output`, the folder is named by
    `folder_words`.
    """
    if task is None and model is None:
        raise UserError(
            "nothing says what to evaluate; name a recipe with --task, or a run with --model"
        )
    if data_file is not None and not data_file.strip():
        raise UserError("--data is empty; name a file, or a data set on the Hub")
    name, model = model, _local(model, task)
    if task is None:
        if model is None or not is_run(model):
            raise UserError(f"{model}: this is not a run folder; name the recipe with --task")
        task = str(Path(model, RECIPE))
        check_fixed(str(name), overrides)
    data_split = _data_split(data_file, splits) if data_file and splits else None
    if splits and not data_file:
        overrides = [*overrides, f"eval.splits=[{', '.join(splits)}]"]
    recipe = _recipe(task, overrides)
    if output is None:
        own = Path("runs", slug(str(name)), TUNED) if name != model else _folder(recipe, model)
        data_words = [Path(data_file).stem, *filter(None, [data_split])] if data_file else []
        words = [*folder_words(recipe, task, model, data_words, limit, overrides)]
        if engine is not None:
            words += _engine_words(engine)
        output = unnamed_folder(own.with_name("-".join([own.name, *words])))
    return Job(
        recipe=recipe,
        model=model or recipe.model.model_name_or_path,
        output=output,
        kind=kind,
        base=base,
        data_file=data_file,
        data_split=data_split,
        limit=limit,
        engine=engine,
        fetched=name != model,
    )


def _recipe(task: Source, overrides: Sequence[str]) -> Recipe:
    """Return a recipe; that of a finished run as runs read their own."""
    own = Path(task) if isinstance(task, str | Path) else Path()
    if own.name == RECIPE and own.with_name(TRAINING).is_file():
        return recipe_of(own.parent, overrides)
    return load_recipe(task, overrides)


def unnamed_folder(folder: Path) -> Path:
    """Return a folder for results that the user did not name. Raises UserError if a link in its
    place leads elsewhere.
    """
    files.inside(folder.parent, folder.name)
    return folder


def _data_split(data_file: str, splits: Sequence[str]) -> str:
    """Return the split of a Hub data set that --data names."""
    if is_file_name(data_file):
        raise UserError(
            f"--split {splits[0]} names a part of the recipe's data, but --data names another "
            "file; give one of them"
        )
    if len(splits) > 1:
        raise UserError(
            f"--split: {data_file} can be evaluated on one split only; give one --split"
        )
    return splits[0]


def _local(model: str | None, task: Source | None) -> str | None:
    """Return the folder that a pushed run is downloaded to. Every other name stays as it is.

    With a task, the name may be that of any model, so what is wrong with it is said when it is
    opened.
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
    """Return the folder of results before `folder_words` are added to its name.

    It is `tuned` in a run. For another model it is in the run folder of the recipe, and its name
    tells the worked examples and the model, or it is that of the baseline.
    """
    if model is not None and is_run(model):
        return Path(model) / TUNED
    if model is not None and baseline_of(model) and not Path(model).is_dir():
        return Path(recipe.run_folder) / model
    shots = recipe.eval.num_fewshot
    name = f"{shots}-shot" if shots else ZERO_SHOT
    if model not in (None, recipe.model.model_name_or_path):
        name += f"-{slug(str(model))}"
    return Path(recipe.run_folder) / name


def folder_words(
    recipe: Recipe,
    task: Source,
    model: str | None,
    data_words: Sequence[str],
    limit: int | None,
    overrides: Sequence[str],
) -> Iterator[str]:
    """Yield the words that a default folder's name gets, so that no evaluation replaces another.

    `zero-shot` and `tuned` are the plain evaluations of a recipe. What differs from them is added,
    joined by hyphens, in this order:

    - the name of the recipe, if it is not the run's own
    - the file or the data set, and its split: `data_words`
    - the parts, if they are not those of the recipe: `validation`, `test-validation`
    - the limit: `limit-5`, or `no-limit` if the recipe has one
    - each override that changes the results, by its key and value: `max_length-200`

    `_engine_words` stand behind these.
    """
    run = Path(model) if model is not None and is_run(model) else None
    plain = load_recipe(task, [text for text in overrides if not _starts(text, _NAMED)])
    if run is not None and load_recipe(run / RECIPE).name != recipe.name:
        yield recipe.name
    yield from data_words
    if recipe.eval.splits != plain.eval.splits:
        yield "-".join(recipe.eval.splits)
    limit = limit or recipe.eval.limit
    if limit != plain.eval.limit:
        yield f"limit-{limit}" if limit else "no-limit"
    for text in map(str.strip, overrides):
        if not _starts(text, _NAMED) and _changes(text, recipe, run):
            yield slug(text.partition(".")[2] or text)[:60]


def _engine_words(engine: EngineChoice) -> Iterator[str]:
    """Yield the words for who answers. Two servers, or two models of one, get different ones: what no
    folder's name can hold is told apart by the sum at the end.
    """
    yield engine.name
    if engine.name == "openai":
        who = [checked_url(engine.base_url), engine.served_model]
        yield slug(str(who[0]).partition("://")[2].removesuffix("/v1"))
        yield from map(slug, filter(None, who[1:]))
        yield hashlib.sha256(json.dumps(who).encode()).hexdigest()[:6]


def _changes(override: str, recipe: Recipe, run: Path | None) -> bool:
    """Whether an override makes other results than those that its folder would hold without it."""
    if run is not None:
        return _starts(override, ("eval.", "dataset."))
    trained = _trained(Path(recipe.run_folder)) or recipe
    return _starts(override, _CHANGING) and _value(override, recipe) != _value(override, trained)


def _starts(override: str, keys: tuple[str, ...]) -> bool:
    return override.strip().startswith(keys)


def _trained(run: Path) -> Recipe | None:
    """Return the recipe of a run; None if there is none that can be read."""
    try:
        return load_recipe(run / RECIPE) if is_run(run) else None
    except UserError:
        return None


def _value(override: str, recipe: Recipe) -> object:
    """Return the value of a recipe at the key of an override."""
    found: object = recipe
    for key in override.partition("=")[0].split("."):
        found = getattr(found, key.strip(), None)
    return found


def slug(name: str) -> str:
    """Return a name as it can be used for a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
