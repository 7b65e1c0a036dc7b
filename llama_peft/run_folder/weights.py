"""What a run leaves on disk: sealed checkpoints while it trains, adapter and head when it is done, and how they load back.

A seal is a manifest of sha256 sums, written and renamed into place after everything it names has reached the disk. A folder
without a seal that verifies is as good as absent, so a kill at any moment loses at most the steps since the last seal.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llama_peft.data import RECORD
from llama_peft.errors import UserError
from llama_peft.model import backbone, preflight
from llama_peft.recipe import Recipe, dump_recipe, load_recipe
from llama_peft.system.files import check_sum, fsync, sha256, with_sum, write_durably
from llama_peft.tasks import TASKS, Task
from llama_peft.tokens.prompts import PromptEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
"""The fingerprint of a base from the Hub; a folder's begins with sha256: instead."""
_STEP = re.compile(r"checkpoint-[0-9]+")
SEAL = "manifest.json"
SPENT = "spent.json"
TRAINING = "training.json"
"""The run's own seal: facts of the training and the sums of what it exported."""
_KINDS = {"files": dict, "base_fingerprint": str, "parameters": dict, "head": dict}


def _sums(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    sums = {}
    for file in sorted(files):
        fsync(file)
        sums[file.relative_to(folder).as_posix()] = sha256(file)
    return sums


def seal(folder: Path) -> None:
    """Write the folder's manifest, last."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != SEAL]
    write_durably(folder / SEAL, json.dumps(_sums(folder, files), indent=1))
    fsync(folder.parent)


def is_sealed(folder: Path) -> bool:
    """Whether every file that the manifest names is there and whole."""
    try:
        sums = json.loads((folder / SEAL).read_text("utf-8"))
        return bool(sums) and all(sha256(_inside(folder, name)) == sums[name] for name in sums)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _inside(folder: Path, name: str) -> Path:
    """A file of a folder; ValueError where its name or a symbolic link leads out of it.

    A snapshot in the Hub's cache is a folder of links to the blobs beside it.
    """
    path, home = folder / name, folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if ".." in Path(name).parts or not any(path.resolve().is_relative_to(each) for each in homes):
        raise ValueError(f"{name} leads out of the folder")
    return path


def newest_sealed(checkpoints: Path) -> Path | None:
    """The latest `checkpoint-<step>` whose seal verifies; says which ones it passes over."""
    for folder in _newest_first(checkpoints):
        if is_sealed(folder) and _has_its_best(folder):
            return folder
        log.warning("%s is incomplete or damaged; passing it over", folder)
    return None


def _newest_first(checkpoints: Path) -> list[Path]:
    numbered = [path for path in checkpoints.glob("checkpoint-*") if _STEP.fullmatch(path.name)]
    return sorted(numbered, key=lambda path: -int(path.name[11:]))


def _remove(folder: Path) -> None:
    """A checkpoint; of one that somebody moved elsewhere, the link to it."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def _has_its_best(folder: Path) -> bool:
    """Whether the checkpoint that it names as the best so far, which the training ends with, is whole too."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text("utf-8"))
    except FileNotFoundError:
        return True
    best = state.get("best_model_checkpoint")
    return (
        best is None or Path(best).name == folder.name or is_sealed(folder.parent / Path(best).name)
    )


def forget_newer(checkpoints: Path, than: Path | None) -> None:
    """Remove what `newest_sealed` passed over: left there, it would count as the newest when old ones are removed."""
    for folder in _newest_first(checkpoints):
        if folder == than:
            return
        _remove(folder)


class Spent(NamedTuple):
    """What a run has taken up to a checkpoint, over all its starts."""

    seconds: float = 0.0
    peak_memory_bytes: int = 0


class Origin(NamedTuple):
    """What a checkpoint was trained from: the base's fingerprint, the sums of recipe and data; None where it does not say."""

    base: str | None
    recipe: str | None
    data: str | None


def write_spent(folder: Path, spent: Spent, origin: Origin) -> None:
    write_durably(folder / SPENT, json.dumps({**spent._asdict(), **origin._asdict()}))


def read_spent(folder: Path | None) -> Spent:
    """Of a checkpoint that is gone on from; nothing at the start."""
    if folder is None:
        return Spent()
    found = json.loads((folder / SPENT).read_text("utf-8"))
    return Spent(**{name: found[name] for name in Spent._fields})


def read_origin(folder: Path) -> Origin:
    found = json.loads((folder / SPENT).read_text("utf-8"))
    return Origin(*map(found.get, Origin._fields))


def rotate(checkpoints: Path, keep: int, best: str | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one. Call it after sealing the newest."""
    for folder in _newest_first(checkpoints)[keep:]:
        if best is None or folder.name != Path(best).name:
            _remove(folder)


def save_run(model: Any, recipe: Recipe, folder: Path, task: Task, facts: dict[str, Any]) -> None:
    """Export a trained model: `adapter/` in PEFT's layout or `head.safetensors`, sealed by `training.json`."""
    from safetensors.torch import save_file

    if recipe.lora is not None:
        partial = folder / ".adapter.partial"
        shutil.rmtree(partial, ignore_errors=True)
        # Saving embedding layers "auto" would ask the Hub for the base's vocabulary.
        model.save_pretrained(partial, safe_serialization=True, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)  # a card of PEFT's, without our numbers
        _name_base(partial / "adapter_config.json", recipe)
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        partial.rename(folder / "adapter")
        files = list((folder / "adapter").iterdir())
    else:
        name = str(TASKS[task].head)
        state = getattr(model, name).state_dict()
        path = folder / "head.safetensors"
        tensors = {
            f"{name}.{key}": value.detach().cpu().contiguous() for key, value in state.items()
        }
        save_file(tensors, path, metadata={"format": "pt"})
        files = [path]
    sums = _sums(
        folder, [*files, *(folder / name for name in ("recipe.yaml", "split.json", RECORD))]
    )
    write_facts(folder, {**facts, "files": sums})


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write `training.json`, which ends with the sum of all that it says."""
    write_durably(folder / TRAINING, json.dumps(with_sum(facts), indent=1))


def _name_base(path: Path, recipe: Recipe) -> None:
    """Write the base as the recipe names it: PEFT writes the folder that it happened to load from."""
    config = json.loads(path.read_text("utf-8"))
    config["base_model_name_or_path"] = recipe.model.model_name_or_path
    path.write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")


THRESHOLD = "threshold.json"
"""Written by a span run's evaluation: the no-answer threshold fitted on its validation part."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained model, ready to predict."""

    folder: Path
    recipe: Recipe
    labels: tuple[str, ...]
    model: "PreTrainedModel"
    encoder: PromptEncoder
    facts: dict[str, Any]


def read_facts(folder: Path) -> dict[str, Any]:
    """`training.json` of a finished run, its exports verified. Raises UserError on anything else."""
    path = folder / TRAINING
    try:
        facts = json.loads(path.read_text("utf-8"))
        check_sum(facts)
        del facts["sum"]
        sums = facts["files"]
        for key, kind in _KINDS.items():
            if not isinstance(facts[key], kind):
                raise ValueError(f"its {key} is {facts[key]!r}")
        damaged = [name for name, digest in sums.items() if sha256(_inside(folder, name)) != digest]
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no finished run here ({Path(error.filename).name} is missing); "
            "`llama-peft train RECIPE` makes one, or continues it"
        ) from None
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        raise UserError(
            f"{path}: not readable as a run's record ({error}); give the command that trained it again"
        ) from None
    if damaged:
        raise UserError(
            f"{folder / damaged[0]}: changed since the training sealed it; give the command that trained it again"
        )
    return facts


def load_run(folder: Path, full_precision: bool = False) -> Run:
    """Load a finished run: its base as the recipe says, or in float32, with the adapter and head that were exported."""
    facts = read_facts(folder)
    recipe = load_recipe(folder / "recipe.yaml")
    head = recipe.head.model_copy(update=facts.get("head", {}))  # where `layer: auto` led
    model = recipe.model
    if COMMIT.fullmatch(facts["base_fingerprint"]):  # the branch may have moved on since
        model = model.model_copy(update={"revision": facts["base_fingerprint"]})
    recipe = recipe.model_copy(update={"head": head, "model": model})
    if full_precision:
        recipe = _in_float32(recipe)
    labels = tuple(recipe.dataset.labels or ())
    preflight.check(recipe, long=False)
    found = base_fingerprint(recipe)
    if found != facts["base_fingerprint"]:
        raise UserError(
            f"{folder}: was trained on another {recipe.model.model_name_or_path} "
            f"({facts['base_fingerprint']}) than the one at hand ({found})"
        )
    loaded = backbone.load(recipe, recipe.task, len(labels))
    if recipe.lora is not None:
        loaded = attach_adapter(loaded, adapter_folder(folder))
    else:
        _attach_head(loaded, folder / "head.safetensors", str(recipe.kind.head))
    tokenizer = backbone.load_tokenizer(recipe.model)
    encoder = PromptEncoder(tokenizer, recipe.prompt)
    return Run(
        folder=folder,
        recipe=recipe,
        labels=labels,
        model=loaded.eval(),
        encoder=encoder,
        facts=facts,
    )


def _in_float32(recipe: Recipe) -> Recipe:
    unquantized = recipe.quantization.model_copy(
        update={"load_in_4bit": False, "load_in_8bit": False}
    )
    model = recipe.model.model_copy(update={"dtype": "float32"})
    return recipe.model_copy(update={"quantization": unquantized, "model": model})


def adapter_folder(run: Path) -> Path:
    """Where a run's adapter is: in `adapter/`, or at the top of a pushed run, where PEFT looks for it."""
    return run / "adapter" if (run / "adapter").is_dir() else run


def attach_adapter(model: "PreTrainedModel", folder: Path) -> Any:
    """The base with the adapter. Every tensor of the file must find its place, and every place its tensor:
    PEFT loads an adapter of another depth without a word.
    """
    from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder}: holds no {weights.name}; pickled adapters are not loaded")
    try:
        if type(PeftConfig.from_pretrained(str(folder))) is not LoraConfig:
            raise UserError(f"{folder}: is no LoRA adapter")
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    except (
        RuntimeError,
        KeyError,
        AttributeError,
        TypeError,
        ValueError,
        SafetensorError,
    ) as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else "damaged"
        raise UserError(f"{folder}: does not fit this base: {reason}") from None
    wanted = {
        key: tuple(value.shape)
        for key, value in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()
    }
    with safe_open(weights, "pt") as file:
        held = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    if wanted != held:
        odd = sorted(set(wanted.items()) ^ set(held.items()))[0][0]
        raise UserError(f"{folder}: does not fit this base, first at {odd}")
    return adapted


def _attach_head(model: "PreTrainedModel", path: Path, name: str) -> None:
    from safetensors.torch import load_file

    state = {key.removeprefix(f"{name}."): value for key, value in load_file(path).items()}
    try:
        getattr(model, name).load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{path}: does not fit this base: {str(error).splitlines()[-1].strip()}"
        ) from None


def base_fingerprint(recipe: Recipe) -> str:
    """What tells one base from another of the same name: the Hub's commit, or a digest of a folder's files.

    A folder's digest takes the config, the tokenizer and all weights: a fine-tuned checkpoint may differ from another in
    its middle alone.
    """
    folder = Path(backbone.source(recipe.model))
    if not folder.is_dir():
        return backbone.commit(recipe.model)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    tokenizer = [folder / name for name in _TOKENIZER if (folder / name).is_file()]
    for path in [*sorted(folder.glob("*.safetensors")), *tokenizer]:
        found = path.stat()
        digest.update(f"{path.name} {_sum_of(path, found.st_size, found.st_mtime_ns)}".encode())
    return f"sha256:{digest.hexdigest()[:16]}"


_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


@cache
def _sum_of(path: Path, size: int, mtime_ns: int) -> str:
    """A file's sum, read once as long as its size and time stay: gigabytes take seconds."""
    return sha256(path)


def no_answer_threshold(folder: Path) -> float:
    """Above this no-answer probability a span run abstains: as fitted on validation when it was evaluated, else 0.5."""
    path = folder / THRESHOLD
    if not path.is_file():
        return 0.5
    try:
        record = json.loads(path.read_text("utf-8"))
        if "sum" in record:
            check_sum(record)
            weights = json.loads((folder / TRAINING).read_text("utf-8"))["files"].values()
            if record["adapter_sha256"] not in weights:
                raise ValueError("of other weights")
        found = float(record["no_answer_threshold"])
        if not -1 <= found <= 1:  # below every probability where answering nothing is best
            raise ValueError(found)
        return found
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ):
        raise UserError(
            f"{path}: damaged, or of other weights than the run's; fit it with: llama-eval run --model {folder}"
        ) from None


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Record the resolved recipe. Refuses a folder that holds what was trained by another; where nothing was, or the record is
    lost or damaged, the recipe takes its place.
    """
    path = folder / "recipe.yaml"
    text = dump_recipe(recipe)
    kept = path.read_text("utf-8", "replace") if path.is_file() else None
    begun = (folder / TRAINING).is_file() or any((folder / "checkpoints").glob("checkpoint-*"))
    if begun and kept is not None and _without_place(kept) == _without_place(text):
        return
    if begun and not _is_its(recipe, folder):
        if kept is not None:
            old = set(kept.splitlines())
            changed = [line.strip() for line in text.splitlines() if line not in old]
            raise UserError(
                f"{folder} holds a run of another recipe (now different: {'; '.join(changed[:3]) or 'a line less'}); "
                "choose another train.output_dir, or give --fresh to start it again"
            )
        if newest_sealed(folder / "checkpoints") is not None:
            raise UserError(
                f"{path} is missing, and without it nothing tells whether what is here was trained so; bring it back, or "
                "give --fresh to start again"
            )
    write_durably(path, text)


def _is_its(recipe: Recipe, folder: Path) -> bool:
    """Whether what is here says by itself that it was trained by this recipe: its newest checkpoint, or its end."""
    newest = newest_sealed(folder / "checkpoints")
    if newest is not None and read_origin(newest).recipe == recipe_sum(recipe):
        return True
    try:
        sums = json.loads((folder / TRAINING).read_text("utf-8"))["files"]
        return bool(sums["recipe.yaml"] == hashlib.sha256(dump_recipe(recipe).encode()).hexdigest())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def write_again(folder: Path, texts: dict[str, str]) -> bool:
    """Write those of a finished run's texts anew that are lost or damaged; whether all that it exported is whole then."""
    try:
        sums = json.loads((folder / TRAINING).read_text("utf-8"))["files"]
        for name, text in texts.items():
            if sums[name] == hashlib.sha256(text.encode()).hexdigest():
                write_durably(folder / name, text)
        read_facts(folder)
        return True
    except (UserError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def recipe_sum(recipe: Recipe) -> str:
    """What tells one training from another on the same base."""
    return hashlib.sha256(_without_place(dump_recipe(recipe)).encode()).hexdigest()


def _without_place(text: str) -> str:
    """A recipe less its run folder, which may be named in several ways."""
    return re.sub(r"^  output_dir: .*\n", "", text, flags=re.MULTILINE)
