"""From a recipe to a run folder: load, attach, train, save.

Heads train through `Trainer`, generative question answering through TRL's `SFTTrainer`. Running the same command again
continues from the newest sealed checkpoint, and does nothing where the run is finished.
"""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_peft import data
from llama_peft.errors import Stopped, UserError
from llama_peft.export import push as hub
from llama_peft.model import backbone, preflight
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.run_folder import weights as checkpoint
from llama_peft.run_folder.measured import HISTORY
from llama_peft.system.files import disk_trouble, sha256, write_durably
from llama_peft.system.lock import only_process
from llama_peft.system.memory import peak_memory
from llama_peft.tokens.prompts import PromptEncoder
from llama_peft.training.rows import ClassificationRow, collator, encode_part

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import Trainer

log = logging.getLogger(__name__)

# Keys of `train` that are ours, or that TrainingArguments gets in another form.
_NOT_ARGUMENTS = {
    "output_dir", "max_length", "doc_stride", "packing", "eval_steps", "save_total_limit",
    "early_stopping_patience",
}  # fmt: skip
_ASIDE, _MOVING = ".previous", ".previous.partial"
_RUN_FILES = (
    "recipe.yaml", "split.json", data.RECORD, HISTORY, "checkpoints", "adapter", "head.safetensors",
    "head.json", checkpoint.TRAINING, checkpoint.THRESHOLD, "tuned", "comparison.json", "report.html", "README.md",
)  # fmt: skip


def train(recipe: Recipe, fresh: bool = False) -> Path:
    """Train what the recipe says and return its run folder. Raises UserError before anything is trained on bad input.

    fresh: forget what the folder holds of an earlier run, what was measured of it included; zero-shot results stay right.
    """
    folder = Path(recipe.run_folder)
    with only_process(folder, "training", hold=_is_main()):
        if _is_main():
            _bring_back(folder)
        preflight.check(recipe, long=True)
        if recipe.hub.push_to_hub and _is_main():
            hub.check_before_training(recipe)
        dataset = data.load(recipe)
        recipe = _with_labels(recipe, dataset)
        finished = not fresh and _is_finished(folder, recipe, dataset)
        if not finished:
            preflight.room(recipe, folder)
        if fresh and _is_main():
            _set_aside(folder)
        if _is_main():
            checkpoint.write_recipe(recipe, folder)
        if finished:
            log.info("%s is finished; --fresh trains it again", folder)
            return folder
        if _is_main():
            _write_split(folder, dataset)
        try:
            _fit(recipe, dataset, folder)
        except BaseException as error:
            if fresh and _is_main():
                _bring_back(folder)
            reason = disk_trouble(error)
            if reason is None:
                raise
            raise UserError(
                f"{folder}: cannot be written: {reason}. Make room, or set train.output_dir; "
                "what is sealed is kept, and the same command goes on from it"
            ) from error
        if _is_main():
            shutil.rmtree(folder / _ASIDE, ignore_errors=True)
        return folder


def _is_finished(folder: Path, recipe: Recipe, dataset: data.Dataset) -> bool:
    """Whether all that a run exports is there and whole. What is damaged is written again, weights from the last checkpoint;
    raises UserError where none is left, or where several processes would have to agree on it.
    """
    if not (folder / checkpoint.TRAINING).is_file():
        return False
    try:
        checkpoint.read_facts(folder)
        return True
    except UserError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(f"{error}, in one process") from None
        texts = {
            "recipe.yaml": dump_recipe(recipe),
            "split.json": data.split_text(dataset),
            data.RECORD: data.record_text(dataset),
        }
        if checkpoint.write_again(folder, texts):
            log.warning("%s: done", error)
            return True
        if checkpoint.newest_sealed(folder / "checkpoints") is None:
            raise UserError(f"{error} (with --fresh: it has no checkpoint)") from None
        log.warning("%s: doing so, from its last checkpoint", error)
        return False


def _fit(recipe: Recipe, dataset: data.Dataset, folder: Path) -> Path:
    from llama_peft.training.callbacks import LogWhatIsSaved, SealCheckpoints, StopOnSignal
    from llama_peft.training.trainer import named_mistake

    started = time.monotonic()
    sums = (checkpoint.recipe_sum(recipe), data.content_sum(dataset))
    encoder = PromptEncoder(backbone.load_tokenizer(recipe.model), recipe.prompt)
    rows: dict[str, Any] = {
        part: encode_part(recipe, encoder, part, dataset.parts.get(part, []))
        for part in ("train", "validation")
    }
    base = backbone.load(recipe, recipe.task, len(dataset.labels))
    if recipe.head.layer == "auto":
        from llama_peft.training import features

        head = features.choose(recipe, base, rows, folder)
        recipe = recipe.model_copy(update={"head": head})
        base = backbone.load(recipe, recipe.task, len(dataset.labels))
    fingerprint = checkpoint.base_fingerprint(recipe)
    resumed = checkpoint.newest_sealed(folder / "checkpoints")
    if resumed is not None:
        its = checkpoint.read_origin(resumed)
        if its.base not in (None, fingerprint):
            raise UserError(
                f"{folder}: its checkpoints were trained on another {recipe.model.model_name_or_path} "
                f"({its.base}) than is there now ({fingerprint}); bring the old one back (from the Hub: "
                "set model.revision), or give --fresh to start again"
            )
        if its.recipe not in (None, sums[0]):
            raise UserError(
                f"{resumed}: is of another run; remove it, or give --fresh to start again"
            )
    model = attach(recipe, base)
    collate: Callable[..., object] = collator(recipe, encoder.tokenizer.pad_token_id)
    if _on_features(recipe):
        from llama_peft.training import features

        rows, model = _features(recipe, base, rows, folder)
        collate = features.collate
    counted = backbone.count_loaded(base, recipe.task)
    log.info(counted.describe())
    with named_mistake("train"):
        trainer = build_trainer(
            recipe, model, encoder, rows["train"], rows["validation"], collate, folder
        )
    if recipe.train.packing == "prefix_tree":
        _check_tree_rows(recipe, encoder, model, dataset.parts["train"])
    trainer.accelerator.wait_for_everyone()
    if _is_main():
        checkpoint.forget_newer(folder / "checkpoints", resumed)
    if resumed is not None:
        log.info("continuing from %s", resumed)
    earlier = checkpoint.read_spent(resumed)
    seals = SealCheckpoints(
        recipe.train.save_total_limit, started, earlier, checkpoint.Origin(fingerprint, *sums)
    )
    trainer.add_callback(seals)
    stop = StopOnSignal()
    trainer.add_callback(stop)
    trainer.add_callback(LogWhatIsSaved())
    try:
        with redirect_stdout(sys.stderr):  # where the loss goes, so that `| head` ends no training
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    finally:
        stop.restore()
    if stop.received is not None and trainer.state.global_step < trainer.state.max_steps:
        raise Stopped(stop.received)
    if trainer.is_world_process_zero():
        facts = {
            "parameters": {
                "total": counted.total,
                "trainable": counted.trainable,
                "base": counted.base,
            },
            "examples": {part: len(dataset.parts.get(part, [])) for part in rows},
            "rows": {part: len(its) for part, its in rows.items()},
            "head": recipe.head.model_dump(include={"layer", "pooling"}),
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "train_loss": _mean_loss(trainer.state.log_history),
            "history_sha256": sha256(folder / HISTORY),
            "best_validation_loss": trainer.state.best_metric,
            "best_step": trainer.state.best_global_step if trainer.state.best_metric else None,
            "resumed_from": None if resumed is None else resumed.name,
            "wall_seconds": time.monotonic() - started + earlier.seconds,
            "peak_memory_bytes": max(peak_memory(), earlier.peak_memory_bytes),
            "base_fingerprint": fingerprint,
        }
        trained = base if recipe.lora is None else trainer.accelerator.unwrap_model(trainer.model)
        checkpoint.save_run(trained, recipe, folder, recipe.task, facts)
        log.info("trained in %.0f s; the run is %s", facts["wall_seconds"], folder)
    return folder


def _mean_loss(history: Sequence[dict[str, float]]) -> float | None:
    """Of all logged steps, those before a resume included, which Trainer's own mean forgets."""
    total, last = 0.0, 0
    for entry in history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - last)
            last = int(entry["step"])
    return total / last if last else None


def _on_features(recipe: Recipe) -> bool:
    """Whether the head trains on states that are computed once; a span head's would be too large."""
    return recipe.kind.caches_features and recipe.lora is None and recipe.head.features != "none"


def _features(
    recipe: Recipe, base: Any, rows: dict[str, Sequence[ClassificationRow]], folder: Path
) -> "tuple[dict[str, Any], nn.Module]":
    """The parts as states, and the head that reads them. Of several processes the first computes."""
    from accelerate import PartialState

    from llama_peft.training import features

    cache = features.cache_folder(folder)
    with PartialState(cpu=recipe.train.use_cpu).main_process_first():
        found: dict[str, Any] = {
            part: features.states(recipe, base, part, its, cache) if its else []
            for part, its in rows.items()
        }
    return found, features.FeatureHead(base.score)


def _check_tree_rows(
    recipe: Recipe, encoder: PromptEncoder, model: Any, examples: Sequence[Any]
) -> None:
    """Hold tree rows against plain ones before the first step: a wrong mask would train, and say nothing."""
    from llama_peft.prefix_tree.loss import self_check

    # The first questions stand on the same few passages, so their row has branches.
    encoded = [encoder.encode(example, training=True) for example in examples[:6]]
    limit = recipe.train.max_length
    fitting = [one for one in encoded if len(one.prompt) + len(one.completion) <= limit]
    if fitting:
        found = self_check(model, fitting, limit)
        log.info("self-check: loss %.5f as a tree, %.5f one by one", *found)


def attach(recipe: Recipe, model: Any) -> "nn.Module":
    """What Trainer trains: the base with LoRA and a copy of its head, or the head alone."""
    if recipe.lora is not None:
        return backbone.add_lora(model, recipe.lora, recipe.task, recipe)
    return head_only(model, str(recipe.kind.head))


def head_only(model: Any, name: str) -> "nn.Module":
    """A module whose only parameters are the head's, with the frozen base behind it.

    Trainer refuses a quantised model without adapters, and would save the whole of it at each checkpoint. No input and no
    weight of the base needs a gradient, so its forward builds no graph and keeps no activations.
    """
    from torch import nn

    class HeadOnly(nn.Module):
        accepts_loss_kwargs = False

        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, getattr(model, name).requires_grad_(True))
            self._frozen = (model,)  # in a tuple, so that its weights are not this module's

        def forward(self, **batch: "Tensor") -> Any:
            return self._frozen[0](**batch)

    return HeadOnly()


def build_trainer(
    recipe: Recipe,
    model: "nn.Module",
    encoder: PromptEncoder,
    train_rows: Any,
    validation_rows: Any,
    collate: Callable[..., object],
    folder: Path,
) -> "Trainer":
    """A steady Trainer or SFTTrainer that writes history.jsonl and keeps the best checkpoint by validation loss."""
    from transformers import EarlyStoppingCallback, TrainingArguments

    from llama_peft.training.callbacks import History
    from llama_peft.training.trainer import Steady

    arguments = training_arguments(recipe, bool(validation_rows), folder)
    best = arguments["load_best_model_at_end"]
    callbacks: list[Any] = [History(folder / HISTORY)]
    if recipe.train.early_stopping_patience is not None and best:
        callbacks.append(EarlyStoppingCallback(recipe.train.early_stopping_patience))
    if recipe.kind.head is not None:
        return Steady(
            model=model,
            args=TrainingArguments(**arguments),
            data_collator=collate,
            train_dataset=train_rows,
            eval_dataset=validation_rows or None,
            callbacks=callbacks,
        )
    from datasets import Dataset
    from trl import SFTConfig

    from llama_peft.training.tree_trainer import TreeTrainer

    trainer = TreeTrainer(
        model=model,
        args=SFTConfig(
            **arguments,
            max_length=recipe.train.max_length,
            packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        data_collator=collate,
        train_dataset=Dataset.from_list(train_rows),
        eval_dataset=Dataset.from_list(validation_rows) if validation_rows else None,
        processing_class=encoder.tokenizer,
        callbacks=callbacks,
    )
    for parameter in trainer.model.parameters():
        # SFTTrainer has just cast the adapter to bfloat16, where small updates vanish.
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def training_arguments(recipe: Recipe, validates: bool, folder: Path) -> dict[str, Any]:
    """Keyword arguments of TrainingArguments; validation and saving happen at the same steps."""
    import torch

    given = recipe.train.model_dump(exclude=_NOT_ARGUMENTS)
    place = torch.device("cpu") if recipe.train.use_cpu else backbone.device()
    dtype = recipe.model.dtype or str(backbone.fast_dtype(place)).removeprefix("torch.")
    steps = recipe.train.eval_steps
    strategy = "epoch" if steps is None else "steps"
    return {
        **given,
        "output_dir": str(folder / "checkpoints"),
        "use_cpu": place.type == "cpu",
        "bf16": dtype == "bfloat16" and place.type == "cuda",
        "fp16": dtype == "float16" and place.type == "cuda",
        "eval_strategy": strategy if validates else "no",
        "save_strategy": strategy,
        "eval_steps": steps,
        "per_device_eval_batch_size": recipe.train.validation_batch_size,
        "save_steps": steps or 500,
        # A head alone keeps no activations of the backbone, so there is nothing to compute again.
        "activation_checkpointing": recipe.train.activation_checkpointing
        and recipe.lora is not None,
        "load_best_model_at_end": validates,
        "metric_for_best_model": "eval_loss" if validates else None,
        "greater_is_better": False if validates else None,
        "restore_callback_states_from_checkpoint": True,  # the patience of early stopping
        "save_total_limit": None,  # SealCheckpoints removes old ones, after the new one is sealed
        # States are all of one size, so their batches can be random.
        "train_sampling_strategy": "random" if _on_features(recipe) else "group_by_length",
        "label_names": list(recipe.kind.label_keys),
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,  # would log NaN as 0.0
        "logging_first_step": True,
        "ddp_find_unused_parameters": False,
        "project": recipe.name,
    }


def _with_labels(recipe: Recipe, dataset: data.Dataset) -> Recipe:
    """The recipe with the labels that the data turned out to have, so that the run folder names them."""
    if not dataset.labels:
        return recipe
    return recipe.model_copy(
        update={"dataset": recipe.dataset.model_copy(update={"labels": list(dataset.labels)})}
    )


def _write_split(folder: Path, dataset: data.Dataset) -> None:
    """Record the ids of each part. Refuses to go on with a run whose data have changed since its checkpoints."""
    path, text = folder / data.RECORD, data.record_text(dataset)
    newest = checkpoint.newest_sealed(folder / "checkpoints")
    if newest is not None:
        its = checkpoint.read_origin(newest).data
        if its is None and path.is_file():
            its = path.read_text("utf-8", "replace").partition("\n")[0]
        if its not in (None, data.content_sum(dataset)):
            raise UserError(
                f"{folder}: the data are not those that its checkpoints were trained on; bring the old ones back, or give "
                "--fresh to start again"
            )
    write_durably(path, text)
    write_durably(folder / "split.json", data.split_text(dataset))


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _set_aside(folder: Path) -> None:
    """Move a run's files out of the way, and nothing where there is no run."""
    begun = checkpoint.newest_sealed(folder / "checkpoints") is not None
    known = any((folder / name).is_file() for name in ("recipe.yaml", checkpoint.TRAINING))
    if not (begun or known):
        return
    measured = folder / "tuned"
    with only_process(measured, "evaluating") if measured.is_dir() else nullcontext():
        shutil.rmtree(folder / _ASIDE, ignore_errors=True)
        moving = folder / _MOVING
        moving.mkdir()
        for name in _files_of(folder):
            (folder / name).rename(moving / name)
        moving.rename(folder / _ASIDE)


def _files_of(folder: Path) -> list[str]:
    """The names of a run's own files, measurements of its weights under other names with them."""
    measured = sorted(path.name for path in folder.glob("tuned-*") if path.is_dir())
    return [name for name in (*_RUN_FILES, *measured) if (folder / name).exists()]


def _bring_back(folder: Path) -> None:
    """Put the earlier run back where the new one ended, by a mistake, a stop or a kill, before it had anything to keep."""
    _finish_move(folder)
    finished = (folder / checkpoint.TRAINING).is_file()
    if (
        finished
        or not (folder / _ASIDE).is_dir()
        or checkpoint.newest_sealed(folder / "checkpoints")
    ):
        return
    for name in _files_of(folder):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / _ASIDE).rename(folder / _MOVING)
    _finish_move(folder)


def _finish_move(folder: Path) -> None:
    """What lies here between two places, as a kill leaves it, belongs in the run folder."""
    moving = folder / _MOVING
    if moving.is_dir():
        for name in _files_of(moving):
            (moving / name).rename(folder / name)
        shutil.rmtree(moving)
