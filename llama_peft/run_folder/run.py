"""A finished run, opened once and passed along: its files are verified, and no model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.model.fingerprint import is_commit
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.run_folder.layout import ADAPTER, ADAPTER_FILES, HEAD, RECIPE, TRAINING
from llama_peft.run_folder.record import TrainingRecord, read_record, verify_exports
from llama_peft.system.files import inside

OWN_KEYS = ("eval.", "dataset.", "train.per_device_eval_batch_size")
"""The beginnings of the keys that may be set when a run is used. Training fixed the others."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of a finished run's folder."""

    folder: Path
    record: TrainingRecord
    written: Recipe
    """The recipe as recipe.yaml holds it, and as `recipe_of` reads it."""
    base: str | None = None
    """Another name of the base, if the recipe's is a folder of another machine."""

    @property
    def recipe(self) -> Recipe:
        """The recipe as it was trained: with the layer that `auto` chose, and the commit of a base
        on the Hub.
        """
        model: dict[str, object] = {}
        if (commit := self.commit) is not None:  # the branch may have moved on since
            model["revision"] = commit
        if self.base is not None:
            model["model_name_or_path"] = self.base
        return self.written.changed(head=self.record.head.model_dump(), model=model)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of labels 0, 1, ...; empty for questions."""
        return tuple(self.written.dataset.labels or ())

    @property
    def commit(self) -> str | None:
        """The base's commit on the Hub; None if the base is a folder."""
        found = self.record.base_fingerprint
        return found if is_commit(found) else None

    @property
    def adapter(self) -> Path:
        """The folder of the adapter: `adapter/`, or in a pushed run its top, where PEFT looks."""
        inner = self.folder / ADAPTER
        return inner if inside(self.folder, ADAPTER).is_dir() else self.folder

    @property
    def weights(self) -> list[Path]:
        """The files that are put on the base: those of the adapter, or the head's."""
        if self.written.lora is None:
            return [self.folder / HEAD]
        return [self.adapter / name for name in ADAPTER_FILES]


def open_run(folder: Path, base: str | None = None) -> Run:
    """Open a finished run and verify what it exported. Raises UserError if it is unfinished or
    damaged.

    base: another name of its base. Loading compares its files with those of the training.
    """
    record = read_record(folder)
    verify_exports(folder, record)
    inside(folder, RECIPE)  # the record of a stranger need not name it
    run = Run(folder=folder, record=record, written=recipe_of(folder), base=base)
    for path in run.weights:
        if path.relative_to(folder).as_posix() not in record.files:
            raise UserError(
                f"{path}: {TRAINING} has no sum of this file, so it is not known to be the run's; "
                "run the command that trained it again"
            )
    return run


def recipe_of(run: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a run, to read data with.

    A run of version 0.1.0 does not say whether its labels were named by its recipe or found in the
    data. So no number means one of them by their order, unless an override says that it does.
    """
    recipe = load_recipe(run / RECIPE, overrides)
    if recipe.dataset.labels is None or recipe.dataset.label_positions is not None:
        return recipe
    return recipe.changed(dataset={"label_positions": False})


def is_run(folder: str | Path) -> bool:
    """Whether a folder belongs to a run, finished or not."""
    return Path(folder, RECIPE).is_file()


def check_fixed(run: str | Path, overrides: Sequence[str]) -> None:
    """Raise UserError for an override that would have no effect, because training fixed its key."""
    fixed = [text for text in overrides if not text.strip().startswith(OWN_KEYS)]
    if fixed:
        raise UserError(
            f"override {fixed[0]}: the training of {run} fixed this key; only these can be set now: "
            f"{', '.join(OWN_KEYS)}"
        )
