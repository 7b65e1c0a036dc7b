"""What happens beside the steps of a training: the loss curve, the seals, and the stop when the user says so."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from llama_peft.system.files import write_durably
from llama_peft.system.memory import peak_memory
from llama_peft.system.seal import seal
from llama_peft.training.checkpoints import Origin, Spent, rotate, write_spent


class History(TrainerCallback):
    """Writes every log line of the Trainer to `history.jsonl`; a resumed run drops what its checkpoint had not seen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            lines = "".join(json.dumps(entry) + "\n" for entry in state.log_history)
            write_durably(self.path, lines)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and state.log_history:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")


class SealCheckpoints(TrainerCallback):
    """Seals each checkpoint once all of it is written, and only then removes older ones.

    started: of `time.monotonic`; earlier: what the run had taken when it went on from a checkpoint; origin: what tells it from
    others.
    """

    def __init__(self, keep: int, started: float, earlier: Spent, origin: Origin) -> None:
        self.keep, self.started, self.earlier, self.origin = keep, started, earlier, origin

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            checkpoints = Path(args.output_dir)
            folder = checkpoints / f"checkpoint-{state.global_step}"
            seconds = self.earlier.seconds + time.monotonic() - self.started
            peak = max(self.earlier.peak_memory_bytes, peak_memory())
            write_spent(folder, Spent(seconds, peak), self.origin)
            seal(folder)
            rotate(checkpoints, self.keep, state.best_model_checkpoint)


class LogWhatIsSaved(TrainerCallback):
    """Logs at each checkpoint and at the last step: Trainer forgets, in a checkpoint, the losses since its last log.

    Added last, it sees what the others have decided.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save or control.should_training_stop:
            control.should_log = True

    on_epoch_end = on_step_end


class StopOnSignal(TrainerCallback):
    """Ctrl-C and SIGTERM end the training after a checkpoint at the end of the step; a second one ends it at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._note)
                for number in (signal.SIGINT, signal.SIGTERM)
            }

    def _note(self, number: int, frame: Any) -> None:
        self.received = number
        self.restore()
        # Not through logging or print: the signal may have come in the middle of a line of theirs.
        os.write(2, b"stopping at the end of this step; a second signal stops at once\n")

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1:  # one process may get the signal before the others
            import torch

            number = torch.tensor(self.received or 0, device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.received = int(number) or None
        if self.received is not None:
            control.should_training_stop = True
            # What is saved at the end of an epoch has been evaluated there, and is no other than where nobody stops.
            by_epoch = args.save_strategy == SaveStrategy.EPOCH
            control.should_save = control.should_save or not (by_epoch and _ends(state))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Trainer takes every stop for the end of an epoch, and would count an evaluation that nobody else makes."""
        if self.received is not None and not _ends(state):
            control.should_evaluate = control.should_save = False


def _ends(state: TrainerState) -> bool:
    """Whether this step is the last of its epoch, or of all."""
    return (state.epoch or 0) % 1 == 0 or state.global_step >= state.max_steps
