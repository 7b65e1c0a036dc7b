"""The part of a run that is pushed: a copy of the allowed files, in the layout that PEFT reads.

    adapter_config.json adapter_model.safetensors    at the top, for PEFT; or head.safetensors
    recipe.yaml training.json threshold.json          settings for inference, and sums of the files
    zero-shot/results.json  tuned/results.json  comparison.json  report.html  README.md  NOTICE
    charts/*.png                                      those that the card shows

No checkpoint, prediction, id of an example, tokenizer, pickle or path of this machine is pushed.
The base is named with the commit that the run was trained on.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from llama_peft.data import is_file_name
from llama_peft.errors import UserError
from llama_peft.export.report import check_markup, checked_report
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.run_folder.comparison import Comparison, write_comparison
from llama_peft.run_folder.evaluations import (
    Evaluations,
    checked_comparison,
    command,
    damaged,
    is_evaluated,
    read_evaluations,
    results_sums,
)
from llama_peft.run_folder.layout import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    BOTH_RESULTS,
    CARD_CHARTS,
    HEAD,
    RECIPE,
    REPORT,
    SPLIT,
    TUNED,
    ZERO_SHOT,
)
from llama_peft.run_folder.record import write_record
from llama_peft.run_folder.results import Results, write_results
from llama_peft.run_folder.run import Run
from llama_peft.run_folder.threshold import Threshold, run_threshold, write_threshold
from llama_peft.system.files import copy, read_bytes, read_json, sha256, write_text

log = logging.getLogger(__name__)
_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST_CHART = 1_000_000
"""Bytes; our figures are far smaller."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A staged run: its folder, and everything that its card and its push need to know."""

    run: Run
    """The staged copy: its recipe names no path of this machine, and names the commit of the base.
    """
    comparison: Comparison | None
    """None unless zero-shot and the tuned model were both evaluated."""
    tuned: Results | None
    threshold: Threshold | None
    hub_data: str | None
    """The data set's name on the Hub; None for files and generated data."""

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def files(self) -> list[Path]:
        """Every file of the bundle."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


def stage(run: Run, folder: Path) -> Bundle:
    """Copy the files of a finished run that are pushed into an empty folder. Raises UserError if
    nobody else could load it.
    """
    base = run.written.model.model_name_or_path
    if run.commit is None and base != "tiny":
        raise UserError(
            f"{run.folder}: this run was trained on {base}, a local folder, so nobody else could "
            "load it; train on a base by its Hub id (model.model_name_or_path) to push"
        )
    pushed = _portable_recipe(run.written, run.commit)
    write_text(folder, RECIPE, dump_recipe(pushed))
    if pushed.lora is None:
        copy(run.folder, HEAD, folder / HEAD)
    else:
        _stage_adapter(run, folder, pushed)
    threshold = run_threshold(run)
    if threshold is not None:
        write_threshold(folder, threshold)
    evaluations = read_evaluations(run.folder, run.record) if is_evaluated(run.folder) else None
    if evaluations is None:
        _tell_half(run.folder)
    comparison = None if evaluations is None else _stage_evaluations(run, folder, evaluations)
    names = [name for name in (*ADAPTER_FILES, HEAD, RECIPE) if (folder / name).is_file()]
    record = run.record.model_copy(
        update={
            "files": {name: sha256(folder / name) for name in names},
            "split_sha256": run.record.files.get(SPLIT) or run.record.split_sha256,
        }
    )
    write_record(folder, record)
    return Bundle(
        run=Run(folder=folder, record=record, written=pushed),
        comparison=comparison,
        tuned=None if evaluations is None else evaluations.tuned,
        threshold=threshold,
        hub_data=_hub_data(run.written),
    )


def _hub_data(recipe: Recipe) -> str | None:
    path = recipe.dataset.path
    local = path is None or path == "tiny" or is_file_name(path) or Path(path).exists()
    return None if local else path


def _stage_adapter(run: Run, folder: Path, pushed: Recipe) -> None:
    """Copy the adapter; its config names the base's commit."""
    inner = run.adapter.relative_to(run.folder)
    for name in ADAPTER_FILES:
        copy(run.folder, (inner / name).as_posix(), folder / name)
    try:
        config = read_json(folder, ADAPTER_CONFIG)
        if not isinstance(config, dict):
            raise ValueError("it does not hold a JSON object")
    except ValueError as error:
        raise UserError(f"{run.adapter / ADAPTER_CONFIG}: this file is damaged: {error}") from None
    config["revision"] = pushed.model.revision
    write_text(folder, ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True))


def _tell_half(run: Path) -> None:
    """Say why scores are not shown, if only one of the two systems was measured."""
    absent = [name for name in BOTH_RESULTS if not (run / name).is_file()]
    if len(absent) == 1:
        log.warning(
            "%s: the card shows no score, because %s is missing; make it with: %s",
            *(run, absent[0], command(run, absent[0])),
        )


def _stage_evaluations(run: Run, folder: Path, found: Evaluations) -> Comparison:
    """Copy the evaluations, and their report, without paths of this machine. Returns the comparison
    of the copies.
    """
    comparison = checked_comparison(run.folder)
    texts = [found.zero_shot.model_dump(mode="json"), found.tuned.model_dump(mode="json")]
    names = _quoted_paths(run, [text for value in texts for text in _strings(value)])
    replace = _replacement(names)
    for name, results in ((ZERO_SHOT, found.zero_shot), (TUNED, found.tuned)):
        (folder / name).mkdir()
        mapped = _mapped(results.model_dump(mode="json", by_alias=True), replace)
        write_results(folder / name, Results.model_validate(mapped))
    sums: dict[str, object] = {"results_sha256": results_sums(folder)}
    if os.path.lexists(run.folder / REPORT):
        write_text(folder, REPORT, _portable_report(run.folder, comparison, names))
        sums["report_sha256"] = sha256(folder / REPORT)
    if comparison.charts_sha256:
        sums["charts_sha256"] = _stage_charts(run.folder, folder, comparison)
    staged = comparison.model_copy(update=sums)
    write_comparison(folder, staged)
    return staged


def _stage_charts(run: Path, folder: Path, comparison: Comparison) -> dict[str, str]:
    """Copy the figures that the card shows. Returns their sums. Raises UserError if one is not the
    drawing that was written with the comparison.
    """
    known = {name: own for name, own in comparison.charts_sha256.items() if name in CARD_CHARTS}
    for name, own in known.items():
        try:
            content = read_bytes(run, name, largest=_LARGEST_CHART)
        except (OSError, ValueError) as error:
            raise damaged(run, name, error) from None
        if hashlib.sha256(content).hexdigest() != own or not content.startswith(_PNG):
            raise damaged(run, name, ValueError("it is not the drawing that was written"))
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return known


def _portable_report(run: Path, comparison: Comparison, names: Mapping[str, str]) -> str:
    """The report with names in place of the paths of this machine."""
    from markupsafe import escape

    quoted = {str(escape(path)): str(escape(name)) for path, name in names.items()}
    page = _replacement({**names, **quoted})(checked_report(run, comparison))
    try:
        check_markup(page)  # a stranger chose the names
    except ValueError as error:
        raise damaged(run, REPORT, error) from None
    return page


def _portable_recipe(recipe: Recipe, commit: str | None) -> Recipe:
    """The recipe with the commit of its base, files by name alone, and no run folder."""
    data, parts = recipe.dataset, recipe.dataset.parts
    named = {part: Path(value).name for part, value in parts.given().items() if _is_path(value)}
    dataset = data.model_copy(
        update={
            "path": Path(data.path).name if data.path and _is_path(data.path) else data.path,
            "parts": parts.model_copy(update=named),
        }
    )
    named = {"revision": commit} if commit else {}
    return recipe.changed(model=named, dataset=dataset, train={"output_dir": None})


def _is_path(name: str) -> bool:
    return name.startswith("~/") or Path(name).is_absolute()


def _quoted_paths(run: Run, texts: list[str]) -> dict[str, str]:
    """The paths that results and report may quote, each with the name that replaces it."""
    recipe, folder = run.written, run.folder
    given = [recipe.dataset.path, *recipe.dataset.parts.given().values(), recipe.train.output_dir]
    quoted = [str(folder), str(folder.resolve()), *filter(None, given), *texts]
    paths = {path.rstrip("/") for path in quoted if _is_path(path)}
    return {path: Path(path).name for path in paths if path}


def _strings(value: JsonValue) -> Iterator[str]:
    """Every string in JSON values, except prompts and labels: these may begin with a slash and are
    not paths.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("prompt", "labels"):
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _replacement(names: Mapping[str, str]) -> Callable[[str], str]:
    """A function that replaces whole paths by names, the longest first: /td is not a path in
    `</td>` or in `/a/td`.
    """

    def pattern(path: str) -> str:
        return r"\s+".join(map(re.escape, path.split()))  # YAML folds long lines

    known = {" ".join(path.split()): name for path, name in names.items()}
    longest = sorted(known, key=len, reverse=True)
    paths = re.compile(rf"(?<![\w<.~])(?:{'|'.join(map(pattern, longest))})(?![\w-]|\.\w)")
    return lambda text: paths.sub(lambda found: known[" ".join(found[0].split())], text)


def _mapped(value: JsonValue, change: Callable[[str], str]) -> JsonValue:
    """JSON values with every string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in value]
    return value
