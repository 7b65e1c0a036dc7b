"""What of a run is pushed: an allow-listed copy in the layout that plain PEFT reads, and proof that it answers as the run does.

    adapter_config.json  adapter_model.safetensors    at the top, where PEFT looks; or head.safetensors
    recipe.yaml  training.json  threshold.json         what inference needs, and the sums that seal it
    zero-shot/results.json  tuned/results.json  comparison.json  report.html  README.md  NOTICE

No checkpoints, predictions, ids of examples, tokenizer, pickle, or path of this machine. The base is named with the commit that
the run was trained on.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_peft.data import SPLIT_SUM, Example, QuestionExample, TextExample
from llama_peft.data.sources import is_file_name
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, dump_recipe, load_recipe
from llama_peft.run_folder import weights as checkpoint
from llama_peft.run_folder.measured import (
    COMPARISON,
    REPORT,
    RESULTS,
    damaged,
    is_measured,
    text,
    values,
)
from llama_peft.run_folder.weights import COMMIT
from llama_peft.system.files import sha256, with_sum

if TYPE_CHECKING:
    from llama_peft.tokens.prompts import PromptEncoder

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
HEAD = "head.safetensors"
CARD, NOTICE = "README.md", "NOTICE"
EVAL_RESULTS = ".eval_results/results.yaml"
NEEDED = ("recipe.yaml", checkpoint.TRAINING)
FILES = (
    *ADAPTER, HEAD, *NEEDED, checkpoint.THRESHOLD, *RESULTS, COMPARISON, REPORT, CARD, NOTICE,
    EVAL_RESULTS,
)  # fmt: skip
"""Every file that a pushed run may hold."""

TEXT = "A warm and funny film."
QUESTION = "What does the shop sell?"
CONTEXT = "The shop on the corner sells bread. It opens at seven."


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A staged run: its folder, and what its card and its push need to know."""

    folder: Path
    recipe: Recipe
    """As pushed: the base pinned, the head's layer settled, no path of this machine."""
    facts: dict[str, Any]
    hub_data: str | None
    """The data set's name on the Hub; None for files and generated data."""

    @property
    def commit(self) -> str | None:
        """The base's commit on the Hub; None for the embedded model."""
        found = str(self.facts["base_fingerprint"])
        return found if COMMIT.fullmatch(found) else None

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


def stage(run: Path, folder: Path) -> Bundle:
    """Copy what is pushed of a finished run into an empty folder. Raises UserError where nobody else could load it."""
    facts = checkpoint.read_facts(run)
    recipe = load_recipe(run / "recipe.yaml")
    commit = str(facts["base_fingerprint"])
    base = recipe.model.model_name_or_path
    if not COMMIT.fullmatch(commit) and base != "tiny":
        raise UserError(
            f"{run}: was trained on {base}, a folder of this machine, which nobody else can load; "
            "train on a base by its Hub id (model.model_name_or_path) to push"
        )
    pushed = _portable_recipe(recipe, commit if COMMIT.fullmatch(commit) else None)
    (folder / "recipe.yaml").write_text(dump_recipe(pushed), "utf-8")
    if recipe.lora is not None:
        source = checkpoint.adapter_folder(run)
        shutil.copyfile(source / ADAPTER[1], folder / ADAPTER[1])
        config = json.loads((source / ADAPTER[0]).read_text("utf-8"))
        config["revision"] = pushed.model.revision
        (folder / ADAPTER[0]).write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
    else:
        shutil.copyfile(run / HEAD, folder / HEAD)
    if (run / checkpoint.THRESHOLD).is_file():
        checkpoint.no_answer_threshold(run)
        shutil.copyfile(run / checkpoint.THRESHOLD, folder / checkpoint.THRESHOLD)
    if is_measured(run):
        _stage_measured(run, folder, recipe)
    sealed = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    kept = {name: sealed[name] for name in (*ADAPTER, HEAD, "recipe.yaml") if name in sealed}
    split = facts["files"].get("split.json") or facts.get(SPLIT_SUM)
    facts = {**facts, "files": kept, SPLIT_SUM: split}
    checkpoint.write_facts(folder, facts)
    head = recipe.head.model_copy(update=facts.get("head", {}))
    path = recipe.dataset.path
    local = path is None or path == "tiny" or is_file_name(path) or Path(path).exists()
    return Bundle(
        folder=folder,
        recipe=pushed.model_copy(update={"head": head}),
        facts=facts,
        hub_data=None if local else path,
    )


def _stage_measured(run: Path, folder: Path, recipe: Recipe) -> None:
    """Copy what was measured without paths of this machine; the comparison names the sums of the results as they are pushed."""
    results = {name: values(run, name) for name in RESULTS}
    names = _machine_names(run, recipe, results)
    replace = _replacement(names)
    for name, content in results.items():
        (folder / name).parent.mkdir()
        shown = json.dumps(with_sum(_mapped(content, replace)), indent=1, ensure_ascii=False)
        (folder / name).write_text(shown, "utf-8")
    if (run / REPORT).is_file():
        from markupsafe import escape

        quoted = {str(escape(path)): str(escape(name)) for path, name in names.items()}
        page = _replacement(names | quoted)(_checked_report(run))
        (folder / REPORT).write_text(page, "utf-8")
    if (run / COMPARISON).is_file():
        sums = {Path(name).parent.name: sha256(folder / name) for name in RESULTS}
        comparison = values(run, COMPARISON) | {"results_sha256": sums}
        if (folder / REPORT).is_file():
            comparison["report_sha256"] = sha256(folder / REPORT)
        (folder / COMPARISON).write_text(json.dumps(with_sum(comparison), indent=1), "utf-8")


def _checked_report(run: Path) -> str:
    """The page, where it is the one that was written with the comparison."""
    page = text(run, REPORT)
    if (run / COMPARISON).is_file():
        made = values(run, COMPARISON).get("report_sha256")
        if made not in (None, sha256(run / REPORT)):
            raise damaged(run, REPORT, ValueError("it is not what was written"))
    return page


def _portable_recipe(recipe: Recipe, commit: str | None) -> Recipe:
    """The recipe with its base pinned and files by name alone; a run folder is wherever it is loaded to."""
    data, parts = recipe.dataset, recipe.dataset.parts
    named = {part: Path(value).name for part, value in parts.given().items() if _is_path(value)}
    dataset = data.model_copy(
        update={
            "path": Path(data.path).name if data.path and _is_path(data.path) else data.path,
            "parts": parts.model_copy(update=named),
        }
    )
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"revision": commit} if commit else {}),
            "dataset": dataset,
            "train": recipe.train.model_copy(update={"output_dir": None}),
        }
    )


def _is_path(name: str) -> bool:
    return name.startswith("~/") or Path(name).is_absolute()


def _machine_names(run: Path, recipe: Recipe, results: dict[str, Any]) -> dict[str, str]:
    """Paths that results and report may quote, and what stands for each."""
    given = [recipe.dataset.path, *recipe.dataset.parts.given().values(), recipe.train.output_dir]
    quoted = [str(run), str(run.resolve()), *filter(None, given), *_strings(results)]
    paths = {path.rstrip("/") for path in quoted if _is_path(path)}
    return {path: Path(path).name for path in paths if path}


def _strings(value: Any) -> Iterator[str]:
    """Every string in JSON values but those of a prompt and the labels, which may begin with a slash and are no paths."""
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
    """Writes names for paths, the longest first, where a path begins and ends: /td is none in `</td>` and in `/a/td`."""

    def pattern(path: str) -> str:
        return r"\s+".join(re.escape(word) for word in path.split(" "))  # YAML folds long lines

    longest = sorted(names, key=len, reverse=True)
    paths = re.compile(rf"(?<![\w<.~])(?:{'|'.join(map(pattern, longest))})(?![\w-]|\.\w)")
    return lambda text: paths.sub(lambda found: names[" ".join(found[0].split())], text)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """JSON values with every string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in value]
    return value


def check_reload(run: Path, bundle: Bundle) -> None:
    """Law 12: the bundle's files, loaded alone, give what the run gives, as exactly as the run itself does it twice.

    Raises UserError where they do not.
    """
    loaded = checkpoint.load_run(run)
    expected = outputs(loaded)
    noise = _apart(
        outputs(loaded), expected
    )  # 0 wherever the same sums are added in the same order
    del loaded
    apart = _apart(outputs(checkpoint.load_run(bundle.folder)), expected)
    if not (math.isfinite(apart) and apart <= 2 * noise):
        raise UserError(
            f"{run}: loaded back from the files to be pushed it answers otherwise (by {apart:.3g}); "
            "nothing is pushed. Please report this with the recipe"
        )


def _apart(found: list[list[float]], expected: list[list[float]]) -> float:
    """The largest difference of two scores; infinite where there are more of the one."""
    if [len(row) for row in found] != [len(row) for row in expected]:
        return math.inf
    pairs = [pair for rows in zip(found, expected, strict=True) for pair in zip(*rows, strict=True)]
    if any(math.isnan(score) for pair in pairs for score in pair):
        return math.inf
    return max((abs(a - b) for a, b in pairs if a != b), default=0.0)


def sample(recipe: Recipe) -> list[Example]:
    """A few made-up inputs of the task: the first stands in the card."""
    if recipe.task == "classification":
        texts = (TEXT, "Not worth the time.", "It begins well, and then nothing follows.")
        return [TextExample(id=str(i), text=text, label=0) for i, text in enumerate(texts)]
    questions = (QUESTION, "When does it open?", "Who owns the shop?")
    return [
        QuestionExample(id=str(i), context=CONTEXT, question=question, answers=())
        for i, question in enumerate(questions)
    ]


def read_ids(encoder: "PromptEncoder", recipe: Recipe, example: Example) -> tuple[int, ...]:
    """What the model reads of an example."""
    from llama_peft.tokens import spans

    if isinstance(example, TextExample):
        return encoder.head_input(example.text, recipe.train.max_length)
    if recipe.task == "extractive_qa":
        return next(
            spans.windows(encoder, example, recipe.train.max_length, recipe.train.doc_stride)
        ).input_ids
    return encoder.question(example)


def outputs(run: checkpoint.Run) -> list[list[float]]:
    """The scores of each sample: its classes, its starts and ends, or the next token's."""
    import torch

    rows = []
    for example in sample(run.recipe):
        ids = torch.tensor([read_ids(run.encoder, run.recipe, example)], device=run.model.device)
        with torch.inference_mode():
            output = run.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        if run.recipe.task == "extractive_qa":
            scores = torch.cat([output.start_logits[0], output.end_logits[0]])
        else:
            scores = (
                output.logits[0] if run.recipe.task == "classification" else output.logits[0, -1]
            )
        rows.append(scores.float().tolist())
    return rows
