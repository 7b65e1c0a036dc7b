"""What happens beside the steps of a training: loss curve, seals, and the stop on a signal."""

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import cast

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from llama_peft.errors import stop_signals
from llama_peft.run_folder.ownership import checkpoint_files
from llama_peft.system.files import append, write_text
from llama_peft.system.memory import peak_memory
from llama_peft.system.processes import job
from llama_peft.system.progress import Phase
from llama_peft.system.seal import seal
from llama_peft.system.terminal import interrupt, leave_closed
from llama_peft.training.checkpoints import Origin, Sharing, Spent, rotate, write_spent

Handler = Callable[[int, FrameType | None], object] | int | None
"""What `signal.signal` returns."""


class History(TrainerCallback):
    """Writes every log line of the Trainer to `history.jsonl`.

    A resumed run removes the lines that its checkpoint does not have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        if state.is_world_process_zero:
            lines = "".join(json.dumps(entry) + "\n" for entry in state.log_history)
            write_text(self.path.parent, self.path.name, lines)

    def on_log(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        if state.is_world_process_zero and state.log_history:
            with append(self.path.parent, self.path.name) as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")


class FindBest(TrainerCallback):
    """Finds the best checkpoint in the run folder; Trainer loses it if the folder was moved."""

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        if step := state.best_global_step:
            best = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
            state.best_model_checkpoint = str(best)


class CheckOptimizer(TrainerCallback):
    """Refuses a resumed optimizer whose moments have other shapes than the weights.

    PyTorch takes such a state without an error, and would then make other steps.
    """

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        optimizer = cast(torch.optim.Optimizer, kwargs["optimizer"])
        for weight, moments in optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
                if getattr(moments.get(name), "shape", weight.shape) != weight.shape:
                    raise ValueError(f"the {name} of its optimizer fits no weight")


class SealCheckpoints(TrainerCallback):
    """Seals each checkpoint when it is completely written, and only then removes older ones.

    started: when the run was started, by `time.monotonic`.
    earlier: what the run had taken at the checkpoint that it continues from.
    origin: what the checkpoints are trained from.
    """

    def __init__(self, keep: int, started: float, earlier: Spent, origin: Origin) -> None:
        self.keep, self.started, self.earlier, self.origin = keep, started, earlier, origin

    def on_save(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        job.wait()  # each process has written its own random state
        if state.is_world_process_zero:
            checkpoints = Path(args.output_dir)
            folder = checkpoints / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            seconds = self.earlier.seconds + time.monotonic() - self.started
            peak = max(self.earlier.peak_memory_bytes, peak_memory())
            rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            sharing = Sharing(processes=args.world_size, rows_per_step=rows)
            write_spent(folder, Spent(seconds, peak, self.earlier.resumed_at), self.origin, sharing)
            seal(folder, checkpoint_files(folder))
            rotate(checkpoints, self.keep, state.best_model_checkpoint)


class ShowProgress(TrainerCallback):
    """Shows the steps, the newest losses, and each validation while it goes on."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        self._validation: Phase | None = None

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        self.phase.begin(state.max_steps, state.global_step)

    def on_step_end(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        self.phase.reach(state.global_step)

    def on_prediction_step(
        self, args: Args, state: State, control: Control, **kwargs: object
    ) -> None:
        if self._validation is None:
            batches = len(cast("DataLoader[object]", kwargs["eval_dataloader"]))
            self._validation = Phase("validation", "batch", batches).__enter__()
            self._validation.skip(1)  # nobody has seen when it began
        else:
            self._validation.advance()

    def on_log(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        """Show the loss, or after a validation the number that chooses checkpoints."""
        logs, chosen = cast("dict[str, float]", kwargs["logs"]), _chosen(args)
        for name in ("loss", *filter(None, [chosen])):
            if name in logs:
                self.phase.tell(_shown(name), logs[name])
        if self._validation is not None:
            self._validation.end()
            self._validation = None

    def on_train_end(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        """Show the number of the checkpoint that is kept."""
        if state.best_metric is not None and (name := _chosen(args)) is not None:
            self.phase.forget(_shown(name))
            self.phase.tell(f"best {_shown(name)}", state.best_metric)


def _chosen(args: Args) -> str | None:
    """Return the key of the number that chooses checkpoints, in the logs of a validation."""
    name = args.metric_for_best_model
    return name and f"eval_{name.removeprefix('eval_')}"


def _shown(key: str) -> str:
    return key.replace("eval_", "validation ")


def show_progress(trainer: Trainer, phase: Phase) -> None:
    """Show a training as a phase, in place of the lines that Trainer would print."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ShowProgress(phase))


class LogWhatIsSaved(TrainerCallback):
    """Logs at each checkpoint and at the last step.

    Trainer does not save, in a checkpoint, the losses since its last log. This callback is added
    last, so it sees what the others have decided.
    """

    def on_step_end(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        if control.should_save or control.should_training_stop:
            control.should_log = True

    on_epoch_end = on_step_end


class StopOnSignal(TrainerCallback):
    """Ends the training on Ctrl-C, SIGTERM or SIGHUP, with a checkpoint at the end of the step.

    A second signal ends it at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Handler] = {}

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in stop_signals()}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = number
        leave_closed()
        if not job.has_launcher():  # a system may stop its launcher too, which passes that on
            self.restore()
        interrupt("stopping at the end of this step; a second signal stops at once")

    def restore(self) -> None:
        """Give the signals back to their earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_step_end(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        if args.world_size > 1:  # one process may get the signal before the others
            number = torch.tensor(self.received or 0, device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.received = int(number) or None
        if self.received is not None:
            control.should_training_stop = True
            # At the end of an epoch Trainer evaluates and saves anyway, as in a run without a stop.
            by_epoch = args.save_strategy == SaveStrategy.EPOCH
            control.should_save = control.should_save or not (by_epoch and _ends_epoch(state))

    def on_epoch_end(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        """Skip the evaluation that Trainer would make at a stop in the middle of an epoch.

        Trainer treats every stop as the end of an epoch, and early stopping would count this
        evaluation.
        """
        if self.received is not None and not _ends_epoch(state):
            control.should_evaluate = control.should_save = False


def _ends_epoch(state: State) -> bool:
    """Return whether this step is the last one of its epoch or of the training."""
    return (state.epoch or 0) % 1 == 0 or state.global_step >= state.max_steps
