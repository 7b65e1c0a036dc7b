"""A training that continues with another number of processes takes the steps that it would have taken."""

import logging
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.system.processes import job
from llama_peft.training.checkpoints import read_sharing

log = logging.getLogger(__name__)


def same_step(recipe: Recipe, resumed: Path | None) -> dict[str, int]:
    """Return the values of `train` with which a step has as many rows as before the checkpoint.

    They are empty if the recipe's own values do that. A batch becomes no larger than the recipe
    says. Raises UserError if the processes cannot share the rows of a step evenly.
    """
    train, processes = recipe.train, job.count()
    before = None if resumed is None else read_sharing(resumed)
    if before is None or before.rows_per_step is None:
        return {}
    rows = before.rows_per_step
    # Not the number of processes: a run may have been continued by others before.
    if recipe.train_batch_size * train.gradient_accumulation_steps * processes == rows:
        return {}
    batches = [n for n in range(recipe.train_batch_size, 0, -1) if rows % (n * processes) == 0]
    if not batches:
        raise UserError(
            f"{resumed}: its steps have {rows} rows, which {processes} processes cannot share evenly: "
            f"continue with as many processes as divide {rows} (so far: {before.processes}), or add "
            "--fresh to train again"
        )
    batch, pieces = batches[0], rows // (batches[0] * processes)
    log.info(
        "%d processes continue what %s began: a step still has %d rows, now %d times %d in each "
        "process",
        *(processes, before.processes, rows, pieces, batch),
    )
    if recipe.lora is not None and recipe.lora.lora_dropout > 0:
        log.warning(
            "lora.lora_dropout draws other numbers than with %s processes", before.processes
        )
    assert train.per_device_train_batch_size != "auto"
    return {"per_device_train_batch_size": batch, "gradient_accumulation_steps": pieces}
