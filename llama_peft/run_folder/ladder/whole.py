"""encoder.json: the record of a model that a ladder fine-tuned whole, and where its checkpoint lies.

The file is named after the first kind of these models.
"""

from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.run_folder.record import Stored
from llama_peft.system.files import read_summed, write_summed
from llama_peft.system.numbers import Count, NotNegative, Sha256, Step
from llama_peft.system.seal import damaged

MODEL_FOLDER = "model"
"""The folder of the checkpoint, beside the record."""
_RECORD = "encoder.json"


class WholeRecord(Stored):
    """What a finished training of all weights left."""

    origin: list[str | None]
    """The sums of its base, its recipe and its data."""
    files: dict[str, Sha256]
    """The sum of every file of the checkpoint."""
    bytes: Count
    examples: Count
    steps: Step
    wall_seconds: NotNegative
    peak_memory_bytes: Count

    @property
    def weights_sha256(self) -> str:
        """The sum of all its files together stands for its weights."""
        return " ".join(self.files.values())


def write_whole(folder: Path, record: WholeRecord) -> None:
    """Write the record, last of all."""
    write_summed(folder, _RECORD, record.model_dump(mode="json"))


def read_whole(folder: Path) -> WholeRecord | None:
    """Return the record of a finished training; None if there is none, or if its files are not whole."""
    try:
        record = WholeRecord.model_validate(read_summed(folder, _RECORD))
        return None if damaged(folder / MODEL_FOLDER, record.files) else record
    except (OSError, ValueError, UserError):
        return None
