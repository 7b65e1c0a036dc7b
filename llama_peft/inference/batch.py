"""Batch prediction: every row of a file gets a reply, in the order of the file.

The replies go to standard output, or to a file that appears when it is whole. Until then the work is
kept in a hidden folder beside it, `.NAME.predict/`, from which an interrupted prediction continues.
Afterwards this folder says what the file was made of. No file is ever replaced.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from llama_peft.data import Inputs, is_file_name, load_inputs
from llama_peft.errors import UserError
from llama_peft.inference import rows
from llama_peft.inference.ask import load
from llama_peft.inference.predict import predict
from llama_peft.inference.rows import Row
from llama_peft.inference.unfinished import predictions
from llama_peft.model import backbone
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.run_folder.layout import RECIPE
from llama_peft.run_folder.run import Run, check_fixed
from llama_peft.run_folder.threshold import read_threshold
from llama_peft.system import files
from llama_peft.system.lock import HOLDER, LOCK, only_process

log = logging.getLogger(__name__)

UNFINISHED, WHOLE, MADE = "unfinished.jsonl", "whole", "made.json"
"""The predictions that are made so far, the file before it gets its name, and what it is made of."""
FORMATS: dict[str, Callable[[Row], str]] = {
    ".csv": rows.as_csv,
    ".jsonl": rows.as_json,
    ".ndjson": rows.as_json,
}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows to predict with a finished run."""

    run: Run
    recipe: Recipe
    """The run's recipe with what the user has set."""
    inputs: Inputs

    @property
    def key(self) -> str:
        """A digest of everything that the rows of the result depend on."""
        recipe = self.recipe
        threshold = read_threshold(self.run.folder, self.run.record)
        settings = {
            "run": self.run.record.model_dump(mode="json"),
            "recipe": recipe.model_dump(mode="json", exclude={"dataset", "hub"}),
            "threshold": None if threshold is None else threshold.model_dump(mode="json"),
            "dtype": backbone.dtype_name(recipe),
            "id": self.inputs.id_column,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for example, own in zip(self.inputs.examples, self.inputs.own_ids, strict=True):
            digest.update(json.dumps([asdict(example), own], sort_keys=True).encode())
        return digest.hexdigest()


def open_batch(run: Run, data: str, split: str | None, overrides: Sequence[str]) -> Batch:
    """Return the rows of a file, of a Hub data set or of standard input ("-"), checked.

    split: the split of a Hub data set. overrides: as in `llama-eval run`. Raises UserError with
    everything that is wrong with the data.
    """
    check_fixed(run.folder, overrides)
    if split is not None and (data == "-" or is_file_name(data)):
        raise UserError(f"--split {split}: {data} is not a data set on the Hub; leave --split out")
    recipe = load_recipe(run.folder / RECIPE, overrides)
    inputs = load_inputs(recipe, data, split)
    recipe = recipe.changed(model=run.recipe.model, head=run.recipe.head)
    return Batch(run=run, recipe=recipe, inputs=inputs)


def replies(batch: Batch, place: Path | None = None) -> Iterator[Row]:
    """Yield one row for each input, in their order.

    place: a file that keeps the predictions which are made so far.
    """
    if place is not None:
        yield from _replies(batch, place, batch.key)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield from _replies(batch, Path(folder, UNFINISHED), "")


def _replies(batch: Batch, place: Path, key: str) -> Iterator[Row]:
    loaded, recipe, inputs = load(batch.run), batch.recipe, batch.inputs
    tuned = replace(loaded.tuned, recipe=loaded.tuned.recipe.changed(eval=recipe.eval))
    size = recipe.train.per_device_eval_batch_size
    fields = rows.FIELDS[batch.run.recipe.kind.name]
    every = predictions(partial(predict, tuned), inputs.examples, place, key, size, "predictions")
    own = iter(inputs.own_ids)
    for portion in every:
        for one in portion:
            row, its = dict[str, object](id=one.id), next(own)
            if inputs.id_column is not None:
                row.setdefault(inputs.id_column, its)
            yield {**row, **fields(loaded.reply(one))}


def write(batch: Batch, output: Path) -> None:
    """Write the replies into a new file. The same call continues what was interrupted.

    Raises UserError if something else has the file's name.
    """
    as_line = FORMATS[output.suffix.lower()]
    folder, state = output.parent, output.parent / f".{output.name}.predict"
    _check_state(state)
    with only_process(state, "predicting"):
        key = batch.key
        if os.path.lexists(output):
            if not _is_made(output, state, key):
                raise _taken(output)
            log.info("%s: this prediction is finished already", output)
        else:
            _write_whole(batch, state, as_line)
            made = {"key": key, "sha256": files.sum_of(state, WHOLE)}
            files.write_summed(state, MADE, made)
            try:
                files.publish(folder, f"{state.name}/{WHOLE}", output.name)
            except FileExistsError:
                raise _taken(output) from None
        files.remove_file(state, UNFINISHED)


def check_output(output: Path) -> None:
    """Raise UserError if the name of a file to write does not say its format."""
    if output.suffix.lower() not in FORMATS:
        raise UserError(
            f"--output {output}: the name does not say the format: let it end in "
            f"{', '.join(FORMATS)}"
        )


def _write_whole(batch: Batch, state: Path, as_line: Callable[[Row], str]) -> None:
    files.remove_file(state, WHOLE)
    with files.append(state, WHOLE) as file:
        for number, row in enumerate(replies(batch, state / UNFINISHED)):
            if number == 0 and as_line is rows.as_csv:
                file.write(rows.header(row))
            file.write(as_line(row))
    files.fsync(state / WHOLE)


def _check_state(state: Path) -> None:
    """Raise UserError if something else than a prediction made the folder that keeps the work."""
    if not os.path.lexists(state):
        return
    ours = {UNFINISHED, WHOLE, MADE, LOCK, HOLDER}
    foreign = state.is_symlink() or not state.is_dir()
    if foreign or any(
        path.name not in ours and not files.is_unfinished(path.name) for path in state.iterdir()
    ):
        raise UserError(
            f"{state}: no prediction of ours made this; move it away, because unfinished "
            "predictions are kept there, or choose another --output"
        )


def _is_made(output: Path, state: Path, key: str) -> bool:
    """Whether a file is whole and was made of the same run and rows."""
    if output.is_symlink() or not output.is_file():
        return False
    try:
        made = files.read_summed(state, MADE)
    except (OSError, ValueError):
        return False
    return made == {"key": key, "sha256": files.sum_of(output.parent, output.name)}


def _taken(output: Path) -> UserError:
    return UserError(
        f"{output}: this exists, and it is not what these rows give with this run, so it is not "
        "replaced; move it away, or choose another --output"
    )
