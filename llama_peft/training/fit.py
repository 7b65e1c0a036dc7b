"""From a recipe to a run folder: load, attach, train, save.

Heads train through `Trainer`, generative question answering through TRL's `SFTTrainer`. The same
command, given again, continues from the newest sealed checkpoint, and does nothing if the run is
finished.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from llama_peft import data
from llama_peft.errors import Stopped, UserError
from llama_peft.model import preflight, room
from llama_peft.model.estimate import Estimate
from llama_peft.recipe import Ladder, Recipe, schedule
from llama_peft.run_folder.layout import CHECKPOINTS, HISTORY
from llama_peft.run_folder.ownership import check_run_folder
from llama_peft.run_folder.record import HeadChoice, Parameters, TrainingRecord
from llama_peft.run_folder.weights import TunedModel, save_weights
from llama_peft.system.disk import disk_trouble
from llama_peft.system.files import sum_of
from llama_peft.system.lock import only_process
from llama_peft.system.memory import peak_memory
from llama_peft.system.processes import job
from llama_peft.system.progress import Phase
from llama_peft.training import resume, setup
from llama_peft.training.checkpoint_state import fit_of, naming
from llama_peft.training.checkpoints import Spent, newest_sealed, read_spent, remove_newer, step_of
from llama_peft.training.processes.resumed import same_step

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, TrainerState

    from llama_peft.training.trainer import SteadyTrainer

log = logging.getLogger(__name__)


def train(
    recipe: Recipe, fresh: bool = False, given: Mapping[str, data.Rows] | None = None
) -> Path:
    """Train a recipe and return its run folder. Raises UserError on bad input, before it trains.

    fresh: remove an earlier run in the folder, with every evaluation of its weights. Zero-shot
        results are kept, because they stay right, and so is every file that is not of the run.
    given: rows from Python by part, as in `data.load`. The run folder records which parts.
    """
    # What a run is compared with is no part of it.
    recipe = data.mark_given(recipe.model_copy(update={"ladder": Ladder()}), given or {})
    folder = Path(recipe.run_folder)
    if job.is_main():
        check_run_folder(folder)
    with only_process(folder, "training", hold=job.is_main()), job.faults_held_back():
        if job.is_main():
            resume.bring_back(folder)
        job.join(use_cpu=not room.has_gpu(recipe))
        _check_shared(recipe)
        preflight.check(recipe, long=True)
        dataset = data.load(recipe, given)
        recipe = data.settled(recipe, dataset)
        if fresh:
            chosen, finished = {}, False
        else:
            chosen = job.decided(lambda: resume.chosen_before(recipe, folder))
            recipe = recipe.with_train(chosen)
            finished = job.decided(lambda: resume.is_finished(folder, recipe, dataset))
        if finished:
            if job.is_main():
                resume.write_recipe(recipe, folder)
            log.info("%s: this run is finished; add --fresh to train it again", folder)
            return folder
        encoded = setup.encode(recipe, dataset)
        scheduled = _scheduled(recipe, encoded)
        recipe, fitted = room.fit(recipe.with_train(scheduled), encoded.widest)
        room.check_room(recipe, folder, encoded.widest(recipe))
        if job.is_main():
            if fresh:
                resume.put_aside(folder)
            resume.write_recipe(recipe, folder)
            resume.write_split(folder, dataset)
        try:
            _fit(recipe, encoded, dataset, folder, {**chosen, **scheduled, **fitted})
        except BaseException as error:
            if fresh and job.is_main():
                resume.bring_back(folder)
            reason = disk_trouble(error)
            if reason is None:
                raise
            raise UserError(
                f"{folder}: this folder cannot be written: {reason}. Make room, or set "
                "train.output_dir; the sealed checkpoints are kept, and the same command continues "
                "from them"
            ) from error
        if job.is_main():
            resume.forget_aside(folder)
        return folder


def is_finished(recipe: Recipe) -> bool:
    """Return whether the run folder of a recipe holds its finished run, intact."""
    folder = Path(recipe.run_folder)
    dataset = data.load(recipe)
    recipe = data.settled(recipe, dataset)
    recipe = recipe.with_train(resume.chosen_before(recipe, folder))
    return resume.is_finished(folder, recipe, dataset)


def _scheduled(recipe: Recipe, encoded: setup.Encoded) -> dict[str, float]:
    """Return the learning rate and the epochs in place of auto, and log them."""
    if "auto" not in (recipe.train.learning_rate, recipe.train.num_train_epochs):
        return {}
    rows, weights = encoded.rows, room.base_weights(recipe)
    found = schedule.choose(
        recipe,
        len(rows["train"]),
        weights,
        validates=bool(rows["validation"]),
        processes=job.count(),
    )
    named = ", ".join(f"{key} {value:g}" for key, value in found.items())
    log.info("chosen for this base and these rows: %s", named)
    return found


def check_room(recipe: Recipe, dataset: data.Dataset, fresh: bool) -> None:
    """Raise UserError if the training cannot fit, before the base is downloaded.

    Data are encoded only if rows of `max_length` tokens would not fit. A finished run needs no room.
    """
    recipe = data.settled(recipe, dataset)
    folder = Path(recipe.run_folder)
    most = room.for_machine(recipe.with_train(room.smallest(recipe)))
    if most is None or most.least <= room.free_memory(recipe):
        return
    if not fresh and resume.is_finished(folder, recipe, dataset):
        return
    encoded = setup.encode(recipe, dataset)
    fitted = room.fit(recipe, encoded.widest).recipe
    room.check_room(fitted, folder, encoded.widest(fitted))


def expected(recipe: Recipe, reads: bool = True) -> Estimate:
    """Return what the training of a recipe will take here, and log what is chosen for auto.

    Rows of a file or of the generator are encoded; those of the Hub and behind URLs are taken as full,
    and so are all if `reads` is False. Raises UserError if there is no formula for the family of the base.
    """
    widest = room.full_rows(recipe)
    place = str(recipe.dataset.path or recipe.dataset.parts.train)
    is_here = place == "tiny" or (data.is_file_name(place) and not data.is_url(place))
    if reads and is_here:
        dataset = data.load(recipe)
        recipe = data.settled(recipe, dataset)
        widest = setup.encode(recipe, dataset).widest
    recipe = room.fit(recipe, widest).recipe
    found = room.for_machine(recipe, widest(recipe))
    if found is None:
        raise UserError(
            f"{recipe.name}: there is no memory formula for the model family of its base"
        )
    return found


def _check_shared(recipe: Recipe) -> None:
    """Raise UserError for what a process would compute alone on a base of which it has a part."""
    if not job.shares_base() or recipe.on_states:
        return
    if recipe.train.torch_compile:
        raise UserError(
            "train.torch_compile: blocks that --share-base cuts are not compiled: leave one of them away"
        )
    if recipe.train.reuse_frozen_blocks:
        raise UserError(
            "train.reuse_frozen_blocks: no process has the whole blocks with --share-base: leave one of "
            "them away"
        )
    if recipe.train.metric_for_best_model != "loss":
        raise UserError(
            "train.metric_for_best_model: with --share-base the first process cannot predict alone: set it "
            "to loss, or leave --share-base away"
        )


def _fit(
    recipe: Recipe,
    encoded: setup.Encoded,
    dataset: data.Dataset,
    folder: Path,
    chosen: Mapping[str, float | bool],
) -> None:
    from llama_peft.training.trainer import named_mistake

    started = time.monotonic()
    loaded = setup.load(recipe, encoded, dataset, folder)
    resumed = job.decided(lambda: newest_sealed(folder / CHECKPOINTS))
    resume.check_origin(folder, resumed, loaded.origin, recipe.model.model_name_or_path)
    attached = setup.attach(loaded, folder)
    if job.shares_base() and not recipe.on_states:
        from llama_peft.training.processes.shared_base import share_base

        share_base(loaded.base, attached.model)
    rows = attached.rows["train"], attached.rows["validation"]
    step = same_step(recipe, resumed)
    with named_mistake("train"):
        trainer = setup.build_trainer(
            *(loaded.recipe, attached.model, loaded.encoder, *rows, attached.collate, folder),
            step=step,
            weights=attached.weights,
        )
    if resumed is not None:  # only now it is known what a checkpoint must fit
        fit = fit_of(trainer)
        resumed = job.decided(lambda: newest_sealed(folder / CHECKPOINTS, fit))
        resume.check_origin(folder, resumed, loaded.origin, recipe.model.model_name_or_path)
    trainer.frozen = attached.frozen
    _choose_by_score(trainer, loaded, attached, dataset)
    setup.compile_and_check(loaded, attached, dataset, trainer)
    earlier = read_spent(resumed)
    if resumed is not None:
        earlier = earlier._replace(resumed_at=(*earlier.resumed_at, step_of(resumed)))
    _run(trainer, loaded, folder, resumed, started, earlier)
    if trainer.is_world_process_zero():
        _save(trainer, loaded, attached, dataset, folder, resumed, started, earlier, chosen)


def _choose_by_score(
    trainer: "SteadyTrainer", loaded: setup.Loaded, attached: setup.Attached, dataset: data.Dataset
) -> None:
    """Make the Trainer choose checkpoints by a score of what the model predicts, if it is asked to."""
    from llama_peft.inference.validation import validation_score

    recipe, examples = loaded.recipe, dataset.parts.get("validation", [])
    name = recipe.train.metric_for_best_model
    if name == "loss" or not examples:
        return
    states = None
    if recipe.on_states:
        states = attached.collate(attached.rows["validation"])["features"]

    def score() -> float:
        model = cast("PreTrainedModel", _trained(trainer, loaded))
        tuned = TunedModel(
            recipe=recipe, labels=dataset.labels, model=model, encoder=loaded.encoder
        )
        return validation_score(tuned, examples, cast("Tensor | None", states))

    trainer.choose_by(name, score)


def _trained(trainer: "SteadyTrainer", loaded: setup.Loaded) -> "nn.Module":
    """Return the model with what was trained: the base itself holds a head without LoRA."""
    if loaded.recipe.lora is None:
        return loaded.base
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
    return model


def _run(
    trainer: "SteadyTrainer",
    loaded: setup.Loaded,
    folder: Path,
    resumed: Path | None,
    started: float,
    earlier: Spent,
) -> None:
    """Train to the end, with sealed checkpoints. Raises Stopped if a signal ends the training."""
    from llama_peft.training.callbacks import (
        LogWhatIsSaved,
        SealCheckpoints,
        StopOnSignal,
        show_progress,
    )

    job.wait()
    if job.is_main():
        remove_newer(folder / CHECKPOINTS, resumed)
    if resumed is not None:
        log.info("continuing from %s", resumed)
    keep = loaded.recipe.train.save_total_limit
    trainer.add_callback(SealCheckpoints(keep, started, earlier, loaded.origin))
    stop = StopOnSignal()
    trainer.add_callback(stop)
    trainer.add_callback(LogWhatIsSaved())
    try:
        with Phase("training", "step") as phase, naming(resumed, trainer):
            show_progress(trainer, phase)
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    finally:
        stop.restore()
    if stop.received is not None and trainer.state.global_step < trainer.state.max_steps:
        raise Stopped(stop.received)
    trainer.check_learnt()


def _save(
    trainer: "SteadyTrainer",
    loaded: setup.Loaded,
    attached: setup.Attached,
    dataset: data.Dataset,
    folder: Path,
    resumed: Path | None,
    started: float,
    earlier: Spent,
    chosen: Mapping[str, float | bool],
) -> None:
    """Export the trained weights, sealed by the record of the training."""
    recipe, counted, state = loaded.recipe, attached.counted, trainer.state

    def record(files: dict[str, str]) -> TrainingRecord:
        return TrainingRecord(
            files=files,
            base_fingerprint=str(loaded.origin.base),
            parameters=Parameters(
                total=counted.total, trainable=counted.trainable, base=counted.base
            ),
            head=HeadChoice(layer=recipe.head.layer, pooling=recipe.head.pooling),
            chosen=dict(chosen),
            loss_weights=attached.weights.by_label if attached.weights else {},
            examples={part: len(dataset.parts.get(part, [])) for part in loaded.rows},
            dropped=dataset.dropped,
            rows={part: len(rows) for part, rows in loaded.rows.items()},
            processes=job.count(),
            jobs=job.sharers(),
            steps=state.global_step,
            epochs=state.epoch,
            train_loss=_mean_loss(state.log_history),
            history_sha256=sum_of(folder, HISTORY),
            **_best(recipe, state),
            resumed_from=None if resumed is None else resumed.name,
            resumed_at=[*earlier.resumed_at],
            wall_seconds=time.monotonic() - started + earlier.seconds,
            peak_memory_bytes=max(peak_memory(), earlier.peak_memory_bytes),
        )

    written = save_weights(_trained(trainer, loaded), recipe, folder, record)
    log.info("trained in %.0f s; the run is %s", written.wall_seconds, folder)


class _Best(TypedDict):
    best_validation_loss: float | None
    best_score: dict[str, float]
    best_step: int | None


def _best(recipe: Recipe, state: "TrainerState") -> _Best:
    """Return what is recorded of the best checkpoint; of none if nothing was validated."""
    step, name = state.best_global_step or None, recipe.train.metric_for_best_model
    validated = {e["step"]: e["eval_loss"] for e in state.log_history if "eval_loss" in e}
    chosen: dict[str, float] = {} if name == "loss" or step is None else {name: state.best_metric}
    return _Best(best_validation_loss=validated.get(step), best_score=chosen, best_step=step)


def _mean_loss(history: Sequence[dict[str, float]]) -> float | None:
    """Return the mean over all logged steps; Trainer's own mean misses those before a resume."""
    total, last = 0.0, 0
    for entry in history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - last)
            last = int(entry["step"])
    return total / last if last else None
