"""What happens beside the steps of a training: the loss curve, the seals, and the stop at the first number that is none."""

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llama_peft import checkpoint
from llama_peft.files import write_durably
from llama_peft.recipe import UserError


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
    """Seals each checkpoint once all of it is written, and only then removes older ones."""

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            checkpoints = Path(args.output_dir)
            checkpoint.seal(checkpoints / f"checkpoint-{state.global_step}")
            checkpoint.rotate(checkpoints, self.keep, state.best_model_checkpoint)


class StopAtNonFinite(TrainerCallback):
    """Ends the run at the first loss or gradient norm that is not finite: the stock Trainer goes on and logs 0.0."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("loss", "grad_norm", "eval_loss"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(value):
                raise UserError(
                    f"step {state.global_step}: {name} is {value}. The sealed checkpoints are as they were; "
                    "lower train.learning_rate or train.max_grad_norm and train again"
                )
