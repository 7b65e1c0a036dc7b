"""Says what a model is, from its files. No weight is loaded, so what does not fit is refused in
seconds.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from llama_peft.errors import UserError
from llama_peft.model import backbone, preflight
from llama_peft.recipe import Head, Recipe, load_recipe
from llama_peft.run_folder.layout import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    ADAPTER_WEIGHTS,
    BASELINES,
    RECIPE,
    Baseline,
)
from llama_peft.run_folder.run import Run, is_run, open_run
from llama_peft.system.files import inside, parse_json, read_whole, sha256
from llama_peft.tasks import TASKS, TaskKind

from .kinds import KIND_NAMES, KINDS, Kind, baseline_of

log = logging.getLogger(__name__)

_SUFFIXES: dict[str, Kind] = {
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",  # GPT-2 and others of its time
    "ForConditionalGeneration": "causal",
    "ForSequenceClassification": "classifier",
    "ForQuestionAnswering": "reader",
}
_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
"""The last weight of a classification head: a causal model's, most encoders', RoBERTa's."""
_ONE_LABEL = "single_label_classification"
"""The problem_type of a checkpoint whose scores are shares of one label."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What the files of a PEFT adapter say."""

    folder: Path
    base: str
    revision: str
    """The revision of the base; `main` if the adapter names none."""
    kind: TaskKind
    num_labels: int
    whole: frozenset[str]
    """Names of the weights that it holds whole: those of its head."""
    is_librarys: bool
    """Whether it was made on transformers' own class for the task: an encoder's, or one whose
    backbone is not called `model`."""
    head: Head
    """What its head reads: as the run around it says, or as plain PEFT reads it."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to evaluate: its kind, and what its files say."""

    kind: Kind
    name: str
    """A folder, a name on the Hub, or a baseline."""
    run: Run | None = None
    """Only if it is a run."""
    adapter: Adapter | None = None
    """Only if it is an adapter."""
    baseline: Baseline | None = None
    """Only if it is a baseline."""

    @property
    def adapter_config(self) -> Path | None:
        """The settings of its adapter; None if it has none."""
        folder = self.run.adapter if self.run is not None else None
        if self.adapter is not None:
            folder = self.adapter.folder
        path = None if folder is None else folder / ADAPTER_CONFIG
        return path if path is not None and path.is_file() else None


def identify(
    model: str,
    recipe: Recipe,
    kind: Kind | None = None,
    base: str | None = None,
    is_served: bool = False,
) -> Subject:
    """Return what a model is. Raises UserError if it cannot be evaluated on the recipe's task.

    kind: what the user says that it is. base: what a run or an adapter stands on, if it names a
    folder of another machine. is_served: whether a server answers, so that no weights need room here,
    and a head could not be asked.
    """
    found = _identify(model, recipe, kind, base, is_served)
    heads = found.run.recipe.kind.head if found.run else found.adapter and found.adapter.kind.head
    if is_served and (heads or found.kind in ("baseline", "classifier", "reader")):
        raise UserError(
            f"{model}: a server of --engine only continues texts, and this is a "
            f"{KIND_NAMES[found.kind]}{' with a head' if heads else ''}: leave --engine out"
        )
    return found


def _identify(
    model: str, recipe: Recipe, kind: Kind | None, base: str | None, is_served: bool
) -> Subject:
    if kind == "baseline" or (kind is None and _is_baseline(model)):
        return Subject(kind="baseline", name=model, baseline=_open_baseline(model, recipe))
    if kind == "run" or (kind is None and is_run(model)):
        return Subject(kind="run", name=model, run=_open_run(Path(model), recipe, base))
    if not is_served:
        preflight.check(on_base(recipe, model), long=True)
    revision = recipe.model.revision
    kind = kind or recognise(model, revision)
    adapter = None
    if kind == "adapter":
        adapter = read_adapter(fetch_adapter(model, revision))
        adapter = replace(adapter, base=base or adapter.base)
        if adapter.kind.peft_task_type == recipe.kind.peft_task_type:
            adapter = replace(adapter, kind=recipe.kind)  # an adapter does not say which of them
        named = on_base(recipe, adapter.base, adapter.revision)
        if not is_served:
            preflight.check_named(named, True, adapter.folder)
        _check_adapter(adapter, recipe)
    elif kind != "causal" and (kind == "classifier") != recipe.kind.has_labels:
        raise UserError(f"{model}: this is a {KIND_NAMES[kind]}, but the task is {recipe.task}")
    elif kind == "classifier":
        _check_outputs(model, _read_json(model, "config.json", revision) or {}, recipe)
    return Subject(kind=kind, name=model, adapter=adapter)


def on_base(recipe: Recipe, model: str, revision: str | None = None) -> Recipe:
    """Return the recipe with another base.

    revision: of the new base, if it is not the recipe's revision.
    """
    named = {"model_name_or_path": model, "revision": revision or recipe.model.revision}
    return recipe.changed(model=named)


def _is_baseline(model: str) -> bool:
    """Whether a name means a baseline. A folder of that name is meant before it."""
    if baseline_of(model) is None:
        return False
    is_folder = Path(model).is_dir()
    if is_folder:
        log.warning(
            "%s: the folder of this name is evaluated; --kind baseline means the baseline", model
        )
    return not is_folder


def _open_baseline(model: str, recipe: Recipe) -> Baseline:
    """Return the baseline of a name. Raises UserError if there is none, or if it is for other tasks."""
    baseline = baseline_of(model)
    if baseline is None:
        raise UserError(f"{model}: there is no baseline of this name; use {', '.join(BASELINES)}")
    _check_no_shots(recipe, "a baseline reads no prompt")
    fitting: tuple[Baseline, ...] = ("no-answer", "bm25")
    if recipe.kind.has_labels:
        fitting = ("majority", "tf-idf")
    if baseline not in fitting:
        raise UserError(
            f"{model}: this baseline is not for {recipe.task}, and those of this task are "
            f"{' and '.join(fitting)}"
        )
    return baseline


def _check_no_shots(recipe: Recipe, why: str) -> None:
    if recipe.eval.num_fewshot:
        raise UserError(f"eval.num_fewshot is for models that are not fine-tuned, because {why}")


def _open_run(folder: Path, recipe: Recipe, base: str | None) -> Run:
    run = open_run(folder, base)
    _check_no_shots(recipe, "a run was trained without worked examples")
    if run.recipe.kind != recipe.kind:
        raise UserError(
            f"{folder}: this run was trained for {run.recipe.kind.name}, but the task is "
            f"{recipe.kind.name}"
        )
    return run


def _check_adapter(adapter: Adapter, recipe: Recipe) -> None:
    """Refuse an adapter for another task. A span head answers every question on a passage."""
    kind, both_ask = adapter.kind, not (adapter.kind.has_labels or recipe.kind.has_labels)
    if not (kind.head is None or kind is recipe.kind or both_ask):
        raise UserError(
            f"{adapter.folder}: this is an adapter for {kind.name}, but the task is {recipe.task}"
        )
    if kind.has_labels and not adapter.num_labels:
        raise UserError(
            f"{adapter.folder}: this adapter has no head named score or classifier, and a random "
            "head has no meaningful score"
        )


def _check_outputs(model: str, config: Mapping[str, JsonValue], recipe: Recipe) -> None:
    """Raise UserError if a classifier predicts something else than the task asks for.

    Older checkpoints do not say whether a text has one label or several.
    """
    names = config.get("id2label")
    is_one = isinstance(names, dict) and len(names) == 1
    theirs = config.get("problem_type") or ("regression" if is_one else None)
    ours = recipe.kind.problem_type or _ONE_LABEL
    if theirs != ours and (theirs is not None or ours == "regression"):
        said = f"problem_type {str(theirs)[:40]!r}" if theirs else "no problem_type"
        raise UserError(
            f"{model}: its config.json says {said}, but the task is {recipe.kind.name}: set task "
            "(classification or regression) and dataset.single_label to what it predicts"
        )


def recognise(model: str, revision: str) -> Kind:
    """Return the kind of a model from its files.

    Raises UserError, which names --kind, if they do not tell.
    """
    adapter = _read_json(model, ADAPTER_CONFIG, revision)
    config = _read_json(model, "config.json", revision)
    whole = {
        kind
        for suffix, kind in _SUFFIXES.items()
        for name in _architectures(config)
        if name.endswith(suffix)
    }
    if adapter is not None and not whole:
        return "adapter"
    found: set[Kind] = whole | ({"adapter"} if adapter is not None else set())
    if len(found) == 1:
        return found.pop()
    names = " and ".join(sorted(KIND_NAMES[kind] for kind in found))
    what = f"its files say both {names}" if found else "its files do not say what it is"
    raise UserError(f"{model}: {what}; name its kind with --kind {'|'.join(KINDS)}")


def _architectures(config: Mapping[str, JsonValue] | None) -> list[str]:
    names = (config or {}).get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _read_json(model: str, name: str, revision: str) -> dict[str, JsonValue] | None:
    """Return the object in a JSON file of a model; None if there is no such file."""
    path = _file(model, name, revision)
    if path is None:
        return None
    value = _json_of(path)
    return value if isinstance(value, dict) else None


def _json_of(path: Path) -> JsonValue:
    """Return the value of a JSON file, which may be a link: a base belongs to its user."""
    try:
        return parse_json(read_whole(path).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: this file cannot be read: {error}") from None


def _file(model: str, name: str, revision: str) -> Path | None:
    model = backbone.source_of(model)
    try:
        path = cached_file(
            model, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: {backbone.first_line(error)}") from None
    return None if path is None else Path(path)


def fetch_adapter(model: str, revision: str) -> Path:
    """Return the folder of an adapter. Of one on the Hub, only its two files are downloaded."""
    paths = {name: _file(model, name, revision) for name in ADAPTER_FILES}
    for name, path in paths.items():
        if path is None:
            raise UserError(
                f"{model}: {name} is missing, and adapters in other formats are not loaded"
            )
    return Path(str(paths[ADAPTER_CONFIG])).parent


def read_adapter(folder: Path) -> Adapter:
    """Read the files of an adapter. Raises UserError if they name no base or no task of ours."""
    for name in ADAPTER_FILES:
        inside(folder, name)
    path, weights = folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS
    found = _json_of(path)
    config = found if isinstance(found, dict) else {}
    kinds: dict[str, TaskKind] = {}
    for each in TASKS.values():
        kinds.setdefault(each.peft_task_type, each)
    base, task = config.get("base_model_name_or_path"), config.get("task_type")
    kind = kinds.get(task) if isinstance(task, str) else None
    if not base or not isinstance(base, str) or kind is None:
        raise UserError(
            f"{path}: base_model_name_or_path is {base!r} and task_type is {task!r}; it needs a "
            f"base and one of {', '.join(kinds)}"
        )
    try:
        with safe_open(weights, "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights}: this file cannot be read: {error}") from None
    names = {key.removeprefix("base_model.model."): shape for key, shape in shapes.items()}
    heads = [shape[0] for name, shape in names.items() if name in _HEADS and shape]
    return Adapter(
        folder=folder,
        base=base,
        revision=str(config.get("revision") or "main"),
        kind=kind,
        num_labels=heads[0] if heads else 0,
        whole=frozenset(name for name in names if ".lora_" not in name),
        is_librarys=any(".lora_" in name and not name.startswith("model.") for name in names),
        head=_head_of(folder),
        sha256=sha256(weights),
    )


def _head_of(folder: Path) -> Head:
    """Return the head of the run that an adapter belongs to; plain PEFT's if there is no run.

    Plain PEFT's heads read the state of the last token after the last block.
    """
    own = next((place for place in (folder, folder.parent) if is_run(place)), None)
    return Head() if own is None else load_recipe(own / RECIPE).head
