"""What a ladder has measured already, so that the same command continues and does nothing twice."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from llama_peft import __version__
from llama_peft.errors import UserError
from llama_peft.model.fingerprint import base_fingerprint
from llama_peft.recipe import Hub, Train, dump_recipe
from llama_peft.run_folder.ladder.rungs import SERVER, Measurement
from llama_peft.run_folder.ladder.whole import WholeRecord, read_whole
from llama_peft.run_folder.layout import BASELINES, FINISHED, LADDER, PREDICTIONS, RESULTS
from llama_peft.run_folder.ownership import check_evaluation_folder
from llama_peft.run_folder.record import Stored, TrainingRecord, read_record
from llama_peft.run_folder.results import read_results
from llama_peft.system import files
from llama_peft.system.lock import file_lock
from llama_peft.system.numbers import Count

if TYPE_CHECKING:
    from filelock import FileLock

_READ = ("max_length", "doc_stride", "per_device_eval_batch_size", "seed", "use_cpu")
"""What a measurement that trains nothing reads of `train`."""


class Proof(NamedTuple):
    """That results are of one measurement, and whole."""

    key: str
    """The sum of everything that they depend on."""
    results_sha256: str


class Finished(Stored):
    """The content of `finished.json`."""

    examples: Count
    """Those of the whole training part."""
    results: dict[str, Proof] = Field(default_factory=dict)
    """By the folder of the results, in the run folder."""


def key_of(one: Measurement, content: str) -> str:
    """Return a digest of everything that the results of a measurement depend on.

    content: the sum of the ladder's data, with all training examples. A measurement that is trained
    must be trained already.
    """
    recipe = one.recipe.changed(train={"output_dir": None}, hub=Hub())
    if not one.is_trained:
        read = Train(**{key: getattr(recipe.train, key) for key in _READ})
        recipe = recipe.changed(train=read, lora=None)
    facts = [__version__, one.rung, content, dump_recipe(recipe)]
    if one.rung not in BASELINES:
        facts.append(base_fingerprint(recipe))
    if one.is_trained:
        facts.append(record_of(one).weights_sha256)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def record_of(one: Measurement) -> TrainingRecord | WholeRecord:
    """Return the record of a trained measurement. Raises UserError if it is not trained yet."""
    folder = Path(one.recipe.run_folder)
    if not one.trains_all_weights:
        return read_record(folder)
    record = read_whole(folder)
    if record is None:
        raise UserError(f"{folder}: there is no finished model here")
    return record


def is_finished(one: Measurement, key: str) -> bool:
    """Return whether the results of exactly this measurement are there, and whole."""
    known = read_finished(Path(one.run))
    proof = None if known is None else known.results.get(one.results)
    whole = proof is not None and proof.key == key and is_whole(one, proof)
    return whole and not (one.rung == "hosted" and _is_of_other_server(Path(one.run, one.results)))


def _is_of_other_server(results: Path) -> bool:
    """Return whether other results than those of the server of the environment are in a folder.

    Another server may hold another model. Without an address, whatever is finished stays.
    """
    asked = os.environ.get(SERVER, "").rstrip("/")
    engine = read_results(results / RESULTS).config.engine
    return bool(asked) and engine is not None and engine.base_url != asked


def borrow(one: Measurement, key: str) -> Path | None:
    """Copy the results of exactly this measurement from another run beside this one. Returns their folder
    there; None if there are none.
    """
    return next((source for source in lenders(one, key) if _copied(source, one)), None)


def lenders(one: Measurement, key: str | None = None) -> Iterator[Path]:
    """Yield the folders of finished results of such a measurement in the runs beside this one.

    key: what they depend on. Without it that is not known yet: runs of other recipes may hold what a
    base says of the same examples.
    """
    run = Path(one.run)
    for other in sorted(run.parent.glob("*")):
        known = None if one.is_trained or other == run else read_finished(other)
        proof = None if known is None else known.results.get(one.results)
        if proof is None or key not in (None, proof.key):
            continue
        if _is_lendable(other / one.results, proof):
            yield other / one.results


def _copied(source: Path, one: Measurement) -> bool:
    """Copy results and predictions of a measurement, unless another server than today's gave them."""
    check_evaluation_folder(Path(one.run, one.results))
    if one.rung == "hosted" and _is_of_other_server(source):
        return False
    try:
        target = files.make_folder(Path(one.run), one.results)
        for name in (PREDICTIONS, RESULTS):
            with files.new_file(target, name) as place:
                files.copy(source, name, place)
        return True
    except (OSError, ValueError, UserError):
        return False


def _is_lendable(source: Path, proof: Proof) -> bool:
    """Return whether results, and their predictions too, are those that a proof is about."""
    try:
        if files.sum_of(source, RESULTS) != proof.results_sha256:
            return False
        sums = read_results(source / RESULTS).predictions_sha256
        return sums == files.sum_of(source, PREDICTIONS)
    except (OSError, ValueError, UserError):
        return False


def is_whole(one: Measurement, proof: Proof) -> bool:
    """Return whether the results that a proof is about are still there, and were not changed."""
    try:
        return files.sum_of(Path(one.run, one.results), RESULTS) == proof.results_sha256
    except (OSError, UserError):
        return False


def mark_finished(one: Measurement, key: str, examples: int) -> None:
    """Record that a measurement is finished. examples: those of the whole training part."""
    run = Path(one.run)
    proof = Proof(key, files.sum_of(run / one.results, RESULTS))
    with _changing(run):
        known = read_finished(run)
        proofs = {**(known.results if known else {}), one.results: proof}
        record = Finished(examples=examples, results=proofs)
        files.write_summed(run / LADDER, FINISHED, record.model_dump(mode="json"))


def forget(one: Measurement) -> None:
    """Remove a measurement from the record, so that no verdict shows results that are not of it."""
    run = Path(one.run)
    with _changing(run):
        known = read_finished(run)
        if known is None or one.results not in known.results:
            return
        kept = {name: proof for name, proof in known.results.items() if name != one.results}
        record = known.model_copy(update={"results": kept})
        files.write_summed(run / LADDER, FINISHED, record.model_dump(mode="json"))


def _changing(run: Path) -> "FileLock":
    """Hold the record: other processes of the same ladder may finish a measurement at this moment."""
    return file_lock(files.make_folder(run, LADDER) / f".{FINISHED}.lock")


def read_finished(run: Path) -> Finished | None:
    """Return what is recorded in a run folder; None if nothing is, or if the record is damaged, so that
    everything is measured again.
    """
    try:
        return Finished.model_validate(files.read_summed(run / LADDER, FINISHED))
    except (OSError, ValueError, UserError):
        return None
