"""training.json: the record of a finished training, which also seals what the run exported."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from llama_peft.errors import UserError
from llama_peft.recipe.fields import later
from llama_peft.run_folder.layout import (
    ADAPTER,
    ADAPTER_FILES,
    HEAD,
    RECIPE,
    TRAINING,
    WEIGHTS_SUFFIX,
)
from llama_peft.system.files import read_summed, write_summed
from llama_peft.system.numbers import (
    Count,
    Finite,
    NotNegative,
    Positive,
    Sha256,
    Step,
    Version,
    first_fault,
)
from llama_peft.system.seal import damaged

VERSION = 1
"""The newest form of the record that this package reads."""


class Stored(BaseModel):
    """A typed object of a JSON file. Keys that this version does not know are kept."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="allow", protected_namespaces=(), populate_by_name=True
    )


class Parameters(Stored):
    """Numbers of parameters."""

    total: Count
    trainable: Count
    base: Count


class HeadChoice(Stored):
    """The layer and the pooling that the head reads; for `head.layer: auto`, the chosen ones."""

    layer: Annotated[int, Field(ge=-1, le=10_000)] | Literal["auto"] = -1
    pooling: Literal["last", "mean"] = "last"


def _complete(files: dict[str, str]) -> dict[str, str]:
    """Refuse sums that leave out what a run is made of: what has no sum would not be verified."""
    weights = [(HEAD,), ADAPTER_FILES, tuple(f"{ADAPTER}/{name}" for name in ADAPTER_FILES)]
    if "" in files:
        raise ValueError("a sum has no file name")
    if RECIPE not in files:
        raise ValueError(f"there is no sum of {RECIPE}")
    if not any(set(names) <= files.keys() for names in weights):
        raise ValueError(f"there are no sums of {HEAD}, or of {' and '.join(ADAPTER_FILES)}")
    return files


Dropped = dict[str, dict[str, Count]]
"""By part of the data as it was read: bad rows that were dropped, by what was wrong with them."""


class TrainingRecord(Stored):
    """The record of a finished training."""

    version: Version = VERSION
    files: Annotated[dict[str, Sha256], AfterValidator(_complete)]
    """The sum of every exported file, by its name in the run folder."""
    base_fingerprint: str
    """The Hub's commit of the base, or `sha256:` and a digest of its folder."""
    parameters: Parameters
    head: HeadChoice
    loss_weights: dict[str, Finite] = later({})
    """The weight of each label in the loss: `train.class_weights` or `pos_weight` as numbers."""
    chosen: dict[str, bool | Count | NotNegative] = later({})
    """The values of `train` in place of auto."""
    examples: dict[str, Count] = {}
    """Examples of the train and the validation part."""
    dropped: Dropped = later({})
    rows: dict[str, Count] = {}
    processes: Positive = later(1)
    """How many took the last steps."""
    jobs: Positive = later(1)
    """How many measurements shared the device in the last steps, this one included."""
    steps: Step = 0
    epochs: NotNegative | None = None
    train_loss: Finite | None = None
    """Mean over all steps, those before a resume included."""
    history_sha256: Sha256 | None = None
    best_validation_loss: Finite | None = None
    """Of the best checkpoint."""
    best_score: dict[str, Finite] = later({})
    """Its score by `train.metric_for_best_model`, unless the loss chose it."""
    best_step: Step | None = None
    resumed_from: str | None = None
    resumed_at: list[Step] = later([])
    """The steps of all checkpoints from which it was continued."""
    wall_seconds: NotNegative = 0.0
    """Over all starts of the run."""
    peak_memory_bytes: Count | None = None
    split_sha256: Sha256 | None = None
    """In a pushed run only: the sum of split.json, whose ids stay private. The same data give the
    same split again.
    """

    @property
    def weights_sha256(self) -> str:
        """The sum of the adapter's or the head's weights."""
        return next(self.files[name] for name in self.files if name.endswith(WEIGHTS_SUFFIX))


def write_record(folder: Path, record: TrainingRecord) -> None:
    """Write `training.json`, last of all."""
    write_summed(folder, TRAINING, record.model_dump(mode="json"))


def read_record(folder: Path) -> TrainingRecord:
    """The record of a finished run. Its exports are not verified. Raises UserError if there is none
    that can be read.
    """
    path = folder / TRAINING
    try:
        record = TrainingRecord.model_validate(read_summed(path.parent, path.name))
        if record.version > VERSION:
            raise ValueError(f"version {record.version} is newer than this package reads")
    except FileNotFoundError:
        raise _unfinished(folder, TRAINING) from None
    except ValidationError as error:
        raise _unreadable(path, first_fault(error)) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from None
    return record


def verify_exports(folder: Path, record: TrainingRecord) -> None:
    """Raise UserError unless every file that the record names is there and whole."""
    try:
        names = damaged(folder, record.files)
    except FileNotFoundError as error:
        raise _unfinished(folder, Path(error.filename).name) from None
    except (OSError, ValueError) as error:
        raise _unreadable(folder / TRAINING, str(error)) from None
    if names:
        raise UserError(
            f"{folder / names[0]}: this file was changed after the training; run the command that "
            "trained it again"
        )


def _unfinished(folder: Path, missing: str) -> UserError:
    return UserError(
        f"{folder}: there is no finished run here ({missing} is missing); `llama-peft train "
        "RECIPE` makes one, or continues it"
    )


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: this record of a run cannot be read ({reason}); run the command that trained it "
        "again"
    )
