"""Losses that are not numbers, memory that runs out, two processes at once, and the same run twice."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.support import forked

from .shop import KINDS, STEPS, Fault, Seen, Shop, Stays, exported, killed, newest_step

LORA = "classification + LoRA"


def faults(full: bool) -> Iterator[Fault]:
    for kind in KINDS:
        for value in ("nan", "inf", "-inf"):
            yield _number(kind, "loss", value, full or kind == LORA)
        yield _number(kind, "gradient", "inf", full or kind == LORA)
    for kind in ("classification + LoRA", "span + LoRA", "generative + LoRA"):
        for rows in (0, 1) if kind.startswith("generative") else (0, 1, 3):
            yield _memory(kind, rows, full or kind == LORA)
        yield _evaluation_memory(kind)
    yield _no_room()
    yield from _concurrency(full)
    for kind in KINDS:
        yield _same_twice(kind, full or kind == LORA)
    yield _accumulated(2)
    yield _accumulated(4)
    yield _two_processes()


def _in_training(change: Callable[[Any, dict[str, Any], Any], Any]) -> Callable[[], None]:
    """A hook that replaces every loss of the training by `change(trainer, inputs, loss)`."""

    def hook() -> None:
        from llama_peft.training.trainer import SteadyTrainer
        from llama_peft.training.tree_trainer import TreeTrainer

        def changed(original: Callable[..., Any]) -> Callable[..., Any]:
            def compute(self: Any, model: Any, inputs: Any, *rest: Any, **keys: Any) -> Any:
                found = original(self, model, inputs, *rest, **keys)
                return change(self, inputs, found) if model.training else found

            return compute

        for trainer in (SteadyTrainer, TreeTrainer):
            trainer.compute_loss = changed(trainer.__dict__["compute_loss"])  # type: ignore[method-assign]

    return hook


def _number(kind: str, where: str, value: str, cheap: bool) -> Fault:
    def change(trainer: Any, inputs: Any, loss: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step == 3:
            if where == "loss":
                return loss * 0 + float(value)
            loss.register_hook(lambda gradient: gradient * float(value))
        return loss

    def inflict(shop: Shop, folder: Path) -> Seen:
        shop.reference(kind)
        words = shop.write(shop.recipe(kind, folder), folder)
        done = shop.run(words, hook=_in_training(change))
        if "Traceback" in done.text or done.code not in (0, 2):
            return Seen("traceback", done.text[-400:])
        if done.code == 0 or "step 4" not in done.last_line or "batch: " not in done.last_line:
            return Seen("wrong", done.last_line)
        run = folder / "runs/run"
        if newest_step(run) != 2 or (run / "training.json").exists():
            return Seen("lost", f"step {newest_step(run)} is sealed")
        return shop.undone(kind, words, folder, done.last_line)

    return Fault("numbers", f"{where} is {value}: {kind}", inflict, cheap)


def _memory(kind: str, rows: int, cheap: bool) -> Fault:
    """From step 3 on, at most `rows` rows fit into memory at once."""

    def change(trainer: Any, inputs: Any, loss: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step >= 3 and len(next(iter(inputs.values()))) > rows:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return loss

    def inflict(shop: Shop, folder: Path) -> Seen:
        reference = shop.reference(kind)
        words = shop.write(shop.recipe(kind, folder), folder)
        done = shop.run(words, hook=_in_training(change))
        if "Traceback" in done.text or done.code not in (0, 2):
            return Seen("traceback", done.text[-400:])
        if rows == 0:
            if done.code != 2 or "memory" not in done.last_line:
                return Seen("wrong", done.last_line)
            return shop.undone(kind, words, folder, done.last_line)
        if done.code != 0:
            return Seen("lost", done.last_line)
        if "memory ran out" not in done.text:
            return Seen("wrong", "memory never ran out")
        far = max(_distance(a, b) for a, b in _pairs(folder / "runs/run", reference))
        return Seen("right" if far < 1e-4 else "wrong", f"weights differ by {far:.1e}")

    return Fault("memory", f"room for {rows} rows: {kind}", inflict, cheap)


def _pairs(one: Path, other: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    name = f"checkpoints/checkpoint-{STEPS}/adapter_model.safetensors"
    first, second = load_file(one / name), load_file(other / name)
    return ((first[key], second[key]) for key in second)


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def _evaluation_memory(kind: str) -> Fault:
    def hook() -> None:
        import eval.harness

        original = eval.harness.open_predictor

        def narrow(*words: Any, **keys: Any) -> Any:
            predictor = original(*words, **keys)
            predict = predictor.predict

            def few(examples: Any, size: int) -> Any:
                if size > 2:
                    raise MemoryError
                return predict(examples, size)

            return (
                predictor._replace(predict=few)
                if hasattr(predictor, "_replace")
                else _set(predictor, few)
            )

        eval.harness.open_predictor = narrow  # type: ignore[assignment]

    def inflict(shop: Shop, folder: Path) -> Seen:
        expected = shop.tuned(kind)
        words = ["run", "--model", str(expected.parent), "--output", str(folder / "out")]
        done = shop.run(words, program="eval", hook=hook)
        if done.code != 0:
            return Seen("traceback" if "Traceback" in done.text else "lost", done.last_line)
        both = [
            [json.loads(line)["prediction"] for line in (f / "predictions.jsonl").open()]
            for f in (folder / "out", expected)
        ]
        told = "memory ran out" in done.text
        return Seen("right" if both[0] == both[1] and told else "wrong", "halved the batch")

    return Fault("memory", f"evaluation with room for 2: {kind}", inflict)


def _set(predictor: Any, predict: Any) -> Any:
    object.__setattr__(predictor, "predict", predict)
    return predictor


def _no_room() -> Fault:
    def hook() -> None:
        from llama_peft.model import room

        room._host_memory = lambda: 10_000_000

    def inflict(shop: Shop, folder: Path) -> Seen:
        words = shop.write(shop.recipe(LORA, folder), folder)
        return shop.refused(shop.run(words, hook=hook), folder)

    return Fault("memory", "a machine with 10 MB", inflict)


def _concurrency(full: bool) -> Iterator[Fault]:
    def same_run(shop: Shop, folder: Path) -> Seen:
        """The second process on a run folder ends, and names the first."""
        shop.reference(LORA)
        words = shop.write(shop.recipe(LORA, folder), folder)
        stay = Stays(folder)
        first = shop.start(words, folder / "log", hook=stay)
        forked.until(stay.is_there)
        second = shop.run(words)
        stay.go_on()
        done = shop.wait(first, folder / "log")
        seen = shop.refused(second)
        if seen.verdict == "right" and str(first) not in seen.message:
            return Seen("wrong", seen.message)
        if done.code != 0 or not shop.same(LORA, folder):
            return Seen("wrong", done.last_line)
        return seen

    yield Fault("concurrency", "two trainings in one run folder", same_run)

    def left_lock(shop: Shop, folder: Path) -> Seen:
        """A killed process holds no lock."""
        shop.reference(LORA)
        words = shop.write(shop.recipe(LORA, folder), folder)
        stay = Stays(folder)
        child = shop.start(words, folder / "log", hook=stay)
        forked.until(stay.is_there)
        killed(child)
        return shop.undone(LORA, words, folder)

    yield Fault("concurrency", "the lock of a killed process", left_lock)

    def same_features(shop: Shop, folder: Path) -> Seen:
        """Two runs need the same features at once: one computes them, and both are right."""
        kind = "classification head"
        shop.reference(kind)
        commands = []
        for name in ("run", "other"):
            recipe = shop.recipe(kind, folder, train={"output_dir": str(folder / "runs" / name)})
            commands.append(shop.write(recipe, folder / name))
        children = [shop.start(w, folder / f"log{i}") for i, w in enumerate(commands)]
        done = [shop.wait(child, folder / f"log{i}") for i, child in enumerate(children)]
        if any(each.code for each in done):
            return Seen("traceback", " / ".join(each.last_line for each in done))
        right = all(
            exported(folder / "runs" / name) == exported(shop.reference(kind))
            for name in ("run", "other")
        )
        return Seen("right" if right else "wrong", "one computes, the other finds them")

    yield Fault("concurrency", "two runs on the same features", same_features)

    def same_output(shop: Shop, folder: Path) -> Seen:
        """Two evaluations write into one folder: the second one ends or comes later, and the
        results are right.
        """
        expected = shop.tuned("generative + LoRA")
        folder.mkdir(parents=True, exist_ok=True)
        words = ["run", "--model", str(expected.parent), "--output", str(folder / "out")]
        children = [shop.start(words, folder / f"log{i}", "eval") for i in range(2)]
        done = [shop.wait(child, folder / f"log{i}") for i, child in enumerate(children)]
        if any("Traceback" in each.text for each in done):
            return Seen("traceback", " / ".join(each.last_line for each in done))
        both = [(f / "predictions.jsonl").read_bytes() for f in (folder / "out", expected)]
        if both[0] != both[1] or all(each.code for each in done):
            return Seen("wrong", " / ".join(each.last_line for each in done))
        return Seen("right", next((d.last_line for d in done if d.code), "one after the other"))

    yield Fault("concurrency", "two evaluations into one folder", same_output)

    def evaluated_while_training(shop: Shop, folder: Path) -> Seen:
        shop.reference(LORA)
        words = shop.write(shop.recipe(LORA, folder), folder)
        stay = Stays(folder)
        child = shop.start(words, folder / "log", hook=stay)
        forked.until(stay.is_there)
        seen = shop.refused(shop.run(["run", "--model", str(folder / "runs/run")], "eval"))
        stay.go_on()
        done = shop.wait(child, folder / "log")
        if done.code != 0 or not shop.same(LORA, folder):
            return Seen("wrong", done.last_line)
        return seen

    yield Fault(
        "concurrency", "an evaluation of a run that is still trained", evaluated_while_training
    )


def _same_twice(kind: str, cheap: bool) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        words = shop.write(shop.recipe(kind, folder), folder)
        shop.reference(kind)
        return shop.undone(kind, words, folder, "the same bits")

    return Fault("determinism", f"the same run twice: {kind}", inflict, cheap)


def _accumulated(steps: int) -> Fault:
    """A batch in pieces takes the same step in float32, except for the order of additions."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        reference = shop.reference(LORA)
        train = {
            "per_device_train_batch_size": 8 // steps,
            "gradient_accumulation_steps": steps,
        }
        words = shop.write(shop.recipe(LORA, folder, train=train), folder)
        done = shop.run(words)
        if done.code != 0:
            return Seen("traceback", done.last_line)
        return _as_close(folder / "runs/run", reference)

    return Fault("determinism", f"a batch of 8 in {steps} pieces", inflict)


def _two_processes() -> Fault:
    """Two processes with half a batch each take the step of one process."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        reference = shop.reference(LORA)
        recipe = shop.recipe(LORA, folder, train={"per_device_train_batch_size": 4})
        words = shop.write(recipe, folder)
        port = forked.free_port()

        def rank(number: int) -> Callable[[], None]:
            """Sets the variables that torchrun sets."""
            return lambda: os.environ.update(
                RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            )  # fmt: skip

        logs = [folder / f"log{number}" for number in range(2)]
        children = [shop.start(words, log, hook=rank(n)) for n, log in enumerate(logs)]
        done = [shop.wait(child, log) for child, log in zip(children, logs, strict=True)]
        if any(each.code for each in done):
            return Seen("traceback", " / ".join(each.last_line for each in done))
        return _as_close(folder / "runs/run", reference)

    return Fault("determinism", "1 and 2 processes", inflict)


def _as_close(run: Path, reference: Path) -> Seen:
    """Right if two runs have the same validation losses, except for the order of additions."""
    losses = [
        [json.loads(line).get("eval_loss") for line in (folder / "history.jsonl").open()]
        for folder in (run, reference)
    ]
    first, second = ([x for x in each if x is not None] for each in losses)
    close = all(abs(a - b) < 1e-6 for a, b in zip(first, second, strict=True))
    return Seen(
        "right" if close else "wrong", f"validation losses {first[-1]:.5f} {second[-1]:.5f}"
    )
