"""Reads everything that Trainer would read from a checkpoint, before a training continues from it.

A seal proves that a checkpoint is whole, and not who made it: sums have no key. Trainer would end
in the middle of loading a damaged one, or take a step number that no training reaches for the end.
"""

import json
import random
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from llama_peft.errors import UserError
from llama_peft.model.backbone import first_line
from llama_peft.run_folder.layout import ADAPTER_WEIGHTS, SPENT
from llama_peft.system.files import inside, read_json, read_text
from llama_peft.system.memory import is_out_of_memory
from llama_peft.system.numbers import (
    Count,
    Finite,
    NotNegative,
    Step,
    first_fault,
    first_not_finite,
    is_finite,
)
from llama_peft.system.seal import SEAL

if TYPE_CHECKING:
    from transformers import Trainer

STATE, OPTIMIZER, SCHEDULER, SCALER = (
    "trainer_state.json",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
)
HEAD_WEIGHTS = "model.safetensors"
_NEEDED = {STATE, SPENT, OPTIMIZER, SCHEDULER}
_RNG = re.compile(r"rng_state(_[0-9]+)?\.pth")
_LOADED = (".bin", ".pt", ".pth", ".safetensors", ".pkl", ".index.json")
"""Endings of files that a library would load."""
_NEVER_LOADED = "training_args.bin"
_MOST_VALUES = 1_000_000
"""More values than any state holds beside its tensors: lists of one another could hold billions."""


class Fit(NamedTuple):
    """What a checkpoint must have in common with the training that continues from it."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of every trained tensor, by its name."""
    max_steps: int


class _Typed(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class _LogEntry(_Typed):
    __pydantic_extra__: dict[str, Finite]
    step: Step
    grad_norm: float | None = None
    """In float16 it may be infinite: a scaler leaves such a step out."""


class _Control(_Typed):
    model_config = ConfigDict(extra="forbid")
    should_training_stop: bool = False
    should_epoch_stop: bool = False
    should_save: bool = False
    should_evaluate: bool = False
    should_log: bool = False


class _ControlState(_Typed):
    model_config = ConfigDict(extra="forbid")
    args: _Control
    attributes: dict[str, None] = Field({}, max_length=0)


class _Patience(_Typed):
    model_config = ConfigDict(extra="forbid")
    early_stopping_patience: Annotated[int, Field(ge=1)]
    early_stopping_threshold: Finite | None = None


class _Counter(_Typed):
    model_config = ConfigDict(extra="forbid")
    early_stopping_patience_counter: Step = 0


class _PatienceState(_Typed):
    model_config = ConfigDict(extra="forbid")
    args: _Patience
    attributes: _Counter


class _Callbacks(_Typed):
    model_config = ConfigDict(extra="forbid")
    control: _ControlState | None = Field(None, alias="TrainerControl")
    patience: _PatienceState | None = Field(None, alias="EarlyStoppingCallback")


_Size = Annotated[Finite, Field(ge=0)]
"""A number of the recipe's, which may be as large as its user likes."""
_Interval = Annotated[Finite, Field(ge=1)]


class TrainerRecord(_Typed):
    """trainer_state.json: where a training is, and what it has logged."""

    global_step: Step
    max_steps: Annotated[int, Field(ge=0)]
    epoch: NotNegative = 0
    logging_steps: _Interval = 500
    eval_steps: _Interval = 500
    save_steps: _Interval = 500
    train_batch_size: Count | None = None
    num_train_epochs: _Size = 0
    num_input_tokens_seen: Count = 0
    total_flos: _Size = 0
    log_history: list[_LogEntry] = []
    best_metric: Finite | None = None
    best_global_step: Annotated[Step, Field(ge=1)] | None = None
    best_model_checkpoint: str | None = None
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    is_hyper_param_search: Literal[False] = False
    trial_name: str | None = None
    trial_params: None = None
    stateful_callbacks: _Callbacks | None = None


class _Group(_Typed):
    params: list[Count]
    lr: NotNegative
    betas: Annotated[list[Finite] | tuple[Finite, ...], Field(min_length=2)] | None = None
    eps: Finite | tuple[Finite, ...] | list[Finite] | None = None
    weight_decay: Finite = 0
    momentum: Finite = 0


class _Optimizer(_Typed):
    state: dict[Count, dict[str, object]]
    param_groups: Annotated[list[_Group], Field(min_length=1)]


class _Scheduler(_Typed):
    last_epoch: Step
    step_count: Step | None = Field(None, alias="_step_count")
    base_lrs: list[NotNegative] = []
    last_lr: list[NotNegative] = Field([], alias="_last_lr")


class _Scaler(_Typed):
    scale: Annotated[Finite, Field(gt=0)]
    growth_factor: Annotated[Finite, Field(gt=1)]
    backoff_factor: Annotated[Finite, Field(gt=0, lt=1)]
    growth_interval: Annotated[int, Field(ge=1)]
    growth_tracker: Count = Field(alias="_growth_tracker")


_RngState = TypeAdapter(dict[str, object])


def fit_of(trainer: "Trainer") -> Fit:
    """What a checkpoint must have in common with the training of a Trainer."""
    from peft import PeftModel, get_peft_model_state_dict

    model, args = trainer.model, trainer.args
    adapted = isinstance(model, PeftModel)
    state = (
        get_peft_model_state_dict(model, save_embedding_layers=False)
        if adapted
        else model.state_dict()
    )
    shapes = {name: tuple(one.shape) for name, one in state.items()}
    steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
    return Fit(shapes, steps)


@contextmanager
def naming(resumed: Path | None, trainer: "Trainer") -> Iterator[None]:
    """Turn an error before the first step after a checkpoint into one line that names it.

    The states of an optimizer and a scheduler have as many forms as there are of these, so some
    that do not fit are found only by the library that takes them.
    """
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        begun = resumed is None or trainer.state.global_step > int(resumed.name[11:])
        if begun or is_out_of_memory(error):
            raise
        raise UserError(
            f"{resumed}: the training cannot continue from this checkpoint ({first_line(error)}); "
            "remove its folder and give the same command again, which continues from an older one"
        ) from error


def trouble(folder: Path, fit: Fit | None = None) -> str | None:
    """Why no training can continue from a sealed checkpoint; None if one can.

    fit: the training that would continue from it; without it only the records are read, which needs
        no torch.
    """
    name = STATE
    try:
        names = _names(folder)
        _check_state(read_state(folder), folder, fit)
        if fit is not None:
            for name in sorted(names):
                _check_file(folder, name, fit)
    except Exception as error:  # whatever the bytes of a stranger raise in the libraries
        return f"{name}: {reason(error)}"
    return None


def reason(error: Exception) -> str:
    """An error about the content of a file, in one line."""
    if isinstance(error, ValidationError):
        return first_fault(error)
    return first_line(error)


def best_of(folder: Path) -> str | None:
    """The name of the checkpoint that a checkpoint names as the best one."""
    step = read_state(folder).best_global_step
    return f"checkpoint-{step}" if step else None


def read_state(folder: Path) -> TrainerRecord:
    """The trainer_state.json of a checkpoint. Raises OSError, ValueError or UserError."""
    try:
        values = json.loads(read_text(folder, STATE))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return TrainerRecord.model_validate(values)


def _names(folder: Path) -> set[str]:
    """The files that Trainer reads. Raises ValueError if one is missing, not sealed or foreign."""
    sealed = read_json(folder, SEAL)
    found = {path.name for path in folder.iterdir()}
    weights = {ADAPTER_WEIGHTS, HEAD_WEIGHTS} & found
    read = found & {*_NEEDED, *weights, SCALER} | {name for name in found if _RNG.fullmatch(name)}
    loaded = {name for name in found if name.endswith(_LOADED) or (folder / name).is_dir()}
    foreign = (loaded | found & {"config.json"}) - read - {_NEVER_LOADED}
    if foreign:
        raise ValueError(f"{min(foreign)} is not part of a checkpoint")
    if len(weights) != 1 or not read >= _NEEDED or not any(map(_RNG.fullmatch, read)):
        raise ValueError("a file is missing")
    if not isinstance(sealed, dict) or not read <= sealed.keys():
        raise ValueError("its seal does not name every file")
    return read


def _check_state(state: TrainerRecord, folder: Path, fit: Fit | None) -> None:
    step, best = state.global_step, state.best_global_step
    if folder.name != f"checkpoint-{step}":
        raise ValueError(f"global_step is {step}")
    if step > state.max_steps or (fit is not None and step > fit.max_steps):
        raise ValueError(f"global_step is {step}, which is beyond the end of the training")
    if any(entry.step > step for entry in state.log_history) or (best or 0) > step:
        raise ValueError("it names steps that it has not reached")
    kept = state.best_model_checkpoint
    if kept is not None and Path(kept).name != f"checkpoint-{best}":
        raise ValueError("best_model_checkpoint is not the one of best_global_step")


def _check_file(folder: Path, name: str, fit: Fit) -> None:
    if name == STATE:
        _check_keys(read_state(folder))
    elif name in (ADAPTER_WEIGHTS, HEAD_WEIGHTS):
        _check_weights(inside(folder, name), fit)
    elif name == OPTIMIZER:
        _check_optimizer(_Optimizer.model_validate(_loaded(folder, name)))
    elif name == SCHEDULER:
        _check_scheduler(_Scheduler.model_validate(_loaded(folder, name)))
    elif name == SCALER:
        _Scaler.model_validate(_loaded(folder, name))
    elif _RNG.fullmatch(name):
        _check_rng(_RngState.validate_python(_loaded(folder, name)))


def _check_keys(state: TrainerRecord) -> None:
    from transformers import TrainerState

    unknown = (state.model_extra or {}).keys() - {field.name for field in fields(TrainerState)}
    if unknown:
        raise ValueError(f"the key {min(unknown)} is unknown")


def _check_weights(path: Path, fit: Fit) -> None:
    from safetensors.torch import load_file

    tensors = load_file(path)
    odd = first_not_finite(tensors)
    if odd is not None:
        raise ValueError(f"the weights in {odd} are not numbers")
    for name, shape in fit.shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            raise ValueError(f"its {name} is missing or has another shape than the training's")


def _check_optimizer(found: _Optimizer) -> None:
    numbers = [number for group in found.param_groups for number in group.params]
    if numbers != list(range(len(numbers))) or not found.state.keys() <= set(numbers):
        raise ValueError("its parameters are not numbered")


def _check_scheduler(found: _Scheduler) -> None:
    """Refuse values that would take the place of a scheduler's methods."""
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    for name in found.model_extra or {}:
        if name == "optimizer" or callable(getattr(ReduceLROnPlateau, name, None)):
            raise ValueError(f"the key {name} is unknown")


def _check_rng(state: Mapping[str, object]) -> None:
    """Set generators of our own to the state; they refuse what is none."""
    import numpy
    import torch

    random.Random().setstate(state["python"])  # type: ignore[arg-type]
    numpy.random.RandomState().set_state(state["numpy"])  # type: ignore[arg-type]
    torch.Generator().set_state(state["cpu"])


def _loaded(folder: Path, name: str) -> object:
    """The content of a file of torch.save, which holds numbers and texts only."""
    import torch
    from transformers.trainer_pt_utils import safe_globals

    path = inside(folder, name)
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > size:
            raise ValueError("it unpacks to more than its size")
    with safe_globals():
        found: object = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    _check_values(found, size)
    return found


def _check_values(value: object, size: int) -> None:
    """Raise ValueError for NaN, for tensors without numbers of their own, and for too many values."""
    import torch

    waiting, seen = [value], 0
    while waiting:
        one = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise ValueError("it holds too many values")
        if isinstance(one, torch.Tensor):
            if one.layout != torch.strided or one.device.type != "cpu":
                raise ValueError("it holds a tensor of another kind")
            if one.nbytes > min(size, one.untyped_storage().nbytes()):
                raise ValueError("it holds a tensor that is larger than the file")
            if not is_finite(one):
                raise ValueError("it holds numbers that are not finite")
        elif isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, float) and one != one:
            raise ValueError("it holds a number that is not one")
