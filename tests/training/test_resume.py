"""A run folder between commands: started again, damaged, or on another base; nothing is lost."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval import harness
from eval.job import make_job
from llama_peft.errors import Stopped, UserError
from llama_peft.recipe import Recipe, dump_recipe, load_recipe
from llama_peft.system.lock import only_process
from llama_peft.training import fit as training
from llama_peft.training import resume
from llama_peft.training.checkpoints import newest_sealed
from llama_peft.training.trainer import SteadyTrainer
from tests.support import forked, runs
from tests.support.trainings import recipe_of

STEPS = 6


@pytest.fixture
def base(make_base: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a base, which a test may change."""
    return Path(shutil.copytree(make_base(), tmp_path / "base"))


@pytest.fixture
def recipe_in(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> Callable[..., Recipe]:
    def make(name: str, **train: Any) -> Recipe:
        keys = {"output_dir": str(tmp_path / name), "max_steps": STEPS, "eval_steps": 2}
        return make_recipe("classification", base, train=keys | train)

    return make


def cut_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The training dies right after the checkpoint of a step is sealed; at 0, before it begins."""
    from llama_peft.training.callbacks import SealCheckpoints

    plain = SealCheckpoints.on_save

    def on_save(self: Any, args: Any, state: Any, *rest: Any, **keys: Any) -> None:
        plain(self, args, state, *rest, **keys)
        if state.global_step == step:
            raise Stopped(15)

    monkeypatch.setattr(SealCheckpoints, "on_save", on_save)


def head_of(run: Path) -> bytes:
    return (run / "head.safetensors").read_bytes()


def test_a_run_does_not_continue_on_another_base(
    recipe_in: Callable[..., Recipe], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_in("run")
    cut_after(monkeypatch, 2)
    with pytest.raises(Stopped):
        training.train(recipe)
    monkeypatch.undo()
    config = (base / "config.json").read_text()
    (base / "config.json").write_text(json.dumps(json.loads(config) | {"rms_norm_eps": 0.5}))
    with pytest.raises(UserError, match=r"its checkpoints were trained on another .*--fresh"):
        training.train(recipe)
    (base / "config.json").write_text(config)
    assert runs.record_of(training.train(recipe)).resumed_from == "checkpoint-2"


def test_another_tokenizer_is_another_base(
    recipe_in: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    run = training.train(recipe_in("run"))
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    first, last = list(words)[30], list(words)[-1]
    words[first], words[last] = words[last], words[first]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="was trained on another"):
        harness.run(make_job(model=str(run), output=tmp_path / "out"))


@pytest.mark.parametrize("killed", [False, True])
def test_fresh_that_is_cut_off_before_its_first_checkpoint_costs_no_finished_run(
    recipe_in: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """By Ctrl-C the finished run comes back at once; after a kill, when it is started again."""
    run = training.train(recipe_in("run"))
    before = head_of(run)

    def stop(*_: Any) -> None:
        raise Stopped(2)

    for dead in (killed, False):
        with monkeypatch.context() as context:
            context.setattr(training, "_fit", stop)
            if dead:  # nothing of ours runs any more
                context.setattr(resume, "bring_back", lambda folder: None)
            with pytest.raises(Stopped):
                training.train(recipe_in("run", seed=7), fresh=True)
        assert (run / "head.safetensors").exists() != dead
    assert head_of(run) == before and runs.record_of(run)
    assert load_recipe(run / "recipe.yaml").train.seed != 7
    assert head_of(training.train(recipe_in("run", seed=7), fresh=True)) != before


def test_a_kill_between_two_moves_of_fresh_loses_nothing(
    recipe_in: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the files are moved aside, and while they are moved back."""
    few = {"save_total_limit": 1}  # one checkpoint is moved as two are
    run = training.train(recipe_in("run", **few))
    harness.run(make_job(model=str(run)))

    def contents() -> dict[str, bytes]:
        return {
            str(path.relative_to(run)): path.read_bytes()
            for path in run.rglob("*")
            if path.is_file() and path.name not in (".lock", ".holder")
        }

    before, plain, moves = contents(), Path.rename, 0
    while True:
        moves += 1
        left = moves

        def rename(self: Path, target: Path) -> Path:
            nonlocal left
            if {".previous", ".previous.partial"} & {*self.parts, *Path(target).parts}:
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt  # and every later one: the process is dead
            return plain(self, target)

        with monkeypatch.context() as context:
            context.setattr(Path, "rename", rename)
            context.setattr(training, "_fit", lambda *_: 1 / 0)
            with pytest.raises((KeyboardInterrupt, ZeroDivisionError)) as error:
                training.train(recipe_in("run", seed=7, **few), fresh=True)
        training.train(recipe_in("run", **few))  # finds it finished
        assert contents() == before, moves
        if error.type is ZeroDivisionError:
            break
    assert moves > 15


def test_without_its_recipe_file_a_run_is_not_continued_with_another_recipe(
    recipe_in: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training.train(recipe_in("run"))
    right, before = (run / "recipe.yaml").read_bytes(), head_of(run)
    (run / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"recipe\.yaml: this file is missing.*--fresh"):
        training.train(recipe_in("run", learning_rate=1e-5))
    assert training.train(recipe_in("run")) == run and (run / "recipe.yaml").read_bytes() == right
    (run / "recipe.yaml").unlink()
    (run / "training.json").unlink()
    with pytest.raises(UserError, match=r"recipe\.yaml: this file is missing"):
        training.train(recipe_in("run", learning_rate=1e-5))
    facts = runs.record_of(training.train(recipe_in("run", learning_rate=1e-5, seed=3), fresh=True))
    assert facts.resumed_from is None and head_of(run) != before


def test_fresh_removes_every_evaluation_of_the_old_weights(
    recipe_in: Callable[..., Recipe],
) -> None:
    run = training.train(recipe_in("run"))
    for words in ((5, []), (None, ["dataset.max_eval_samples=3"]), (None, [])):
        harness.run(make_job(model=str(run), limit=words[0], overrides=words[1]))
    measured = {path.name for path in run.glob("tuned*")}
    assert measured == {"tuned", "tuned-limit-5", "tuned-max_eval_samples-3"}, "each its own"
    training.train(recipe_in("run", seed=7), fresh=True)
    assert not [*run.glob("tuned*")]


def test_fresh_is_refused_while_an_evaluation_runs(
    recipe_in: Callable[..., Recipe],
) -> None:
    run = training.train(recipe_in("run"))
    before = head_of(run)
    with (
        only_process(run / "tuned", "evaluating"),
        pytest.raises(UserError, match=f"tuned: process {os.getpid()} is evaluating here"),
    ):
        training.train(recipe_in("run", seed=7), fresh=True)
    assert head_of(run) == before


@pytest.mark.parametrize("often", [3, None], ids=["steps", "epochs"])
def test_a_resumed_run_logs_the_losses_of_one_that_was_not(
    recipe_in: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, often: int | None
) -> None:
    """Also those between the last log and the checkpoint, which Trainer does not save."""
    keys = {"logging_steps": 5, "max_steps": 9, "eval_steps": often}
    keys["per_device_train_batch_size"] = 8  # three steps an epoch
    whole = training.train(recipe_in("whole", **keys))
    cut_after(monkeypatch, 6)
    with pytest.raises(Stopped):
        training.train(recipe_in("cut", **keys))
    monkeypatch.undo()
    cut = training.train(recipe_in("cut", **keys))

    def losses(run: Path) -> list[tuple[int, float]]:
        lines = [json.loads(line) for line in (run / "history.jsonl").open()]
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]

    assert losses(cut) == losses(whole) and losses(whole)[-1][0] == 9
    one, other = (runs.record_of(run).train_loss for run in (whole, cut))
    assert one == pytest.approx(other, rel=1e-9)


def test_a_closed_stdout_does_not_end_a_training(
    recipe_in: Callable[..., Recipe], tmp_path: Path
) -> None:
    """As in `llama-peft train RECIPE | head`."""
    recipe = recipe_in("run", logging_steps=1)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    reading, writing = os.pipe()

    def leave() -> None:
        os.close(reading)
        sys.stdout = os.fdopen(writing, "w", buffering=1)

    child = forked.start(["train", str(tmp_path / "recipe.yaml")], tmp_path / "log", hook=leave)
    os.close(reading)
    os.close(writing)
    os.waitpid(child, 0)
    assert runs.record_of(tmp_path / "run").steps == STEPS, (tmp_path / "log").read_text()


@pytest.mark.parametrize("name", ["head.safetensors", "training.json"])
def test_a_damaged_export_is_made_again_from_the_last_checkpoint(
    recipe_in: Callable[..., Recipe], tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """It is bit-identical; without a checkpoint the user is told to train again."""
    recipe = recipe_in("run")
    run = training.train(recipe)
    weights = run / "head.safetensors"
    before = weights.read_bytes()
    raw = (run / name).read_bytes()
    damaged = raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]
    (run / name).write_bytes(damaged)
    training.train(recipe)
    assert "exported again from the last checkpoint" in caplog.text
    assert weights.read_bytes() == before and runs.record_of(run).steps == STEPS
    (run / name).write_bytes(damaged)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="with --fresh, because it has no checkpoint"):
        training.train(recipe)


def test_a_run_does_not_continue_from_a_checkpoint_of_another_run(
    recipe_in: Callable[..., Recipe], tmp_path: Path
) -> None:
    other, recipe = recipe_in("other", seed=7), recipe_in("run")
    run = training.train(recipe)
    shutil.rmtree(run / "checkpoints")
    (run / "training.json").unlink()
    shutil.copytree(training.train(other) / "checkpoints", run / "checkpoints")
    with pytest.raises(
        UserError,
        match=r"checkpoint-\d+: this checkpoint belongs to another run; remove it, or add --fresh",
    ):
        training.train(recipe)


@pytest.mark.parametrize("name", ["recipe.yaml", "split.json", "data.sha256"])
def test_a_damaged_record_is_written_again_without_a_checkpoint(
    recipe_in: Callable[..., Recipe], name: str
) -> None:
    """The weights are intact, so nothing is trained."""
    recipe = recipe_in("run")
    run = training.train(recipe)
    shutil.rmtree(run / "checkpoints")
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    for damaged in (b"", b"\xff" + before[run / name], None):
        if damaged is None:
            (run / name).unlink()
        else:
            (run / name).write_bytes(damaged)
        training.train(recipe)
        assert {path: path.read_bytes() for path in before} == before


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_fresh_with_a_mistake_costs_no_finished_run(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    run = training.train(recipe_of(make_recipe, base, "classification", tmp_path / "run"))
    before = contents(run)
    mistakes: list[dict[str, Any]] = [
        {"model": {"model_name_or_path": str(tmp_path / "typo")}},
        {"dataset": {"path": None, "name": None, "parts": {"train": "typo.csv"}}},
    ]
    for mistake in mistakes:
        keys = {"train": {"output_dir": str(run)}, "lora": {"r": 4}} | mistake
        with pytest.raises(UserError, match="typo"):
            training.train(make_recipe("classification", base, **keys), fresh=True)
        assert contents(run) == before
    training.train(recipe_of(make_recipe, base, "classification", run, seed=7), fresh=True)
    assert (
        contents(run)["adapter/adapter_model.safetensors"]
        != before["adapter/adapter_model.safetensors"]
    )


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_without_a_run_is_refused_before_any_work(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, fresh: bool
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints/checkpoint-500").mkdir(parents=True)
    (run / "checkpoints/checkpoint-500/optimizer.pt").write_text("mine")
    (run / "history.jsonl").write_text("mine")
    before = contents(run)
    with pytest.raises(UserError, match=r"something that no training of ours made.*output_dir"):
        training.train(recipe_of(make_recipe, base, "classification", run), fresh=fresh)
    assert contents(run) == before and not (run / ".lock").exists()


NOTES = (
    "notes.txt", "README.md", "report.md", "adapter/notes.txt", "adapter/README.md",
    "checkpoints/notes.txt", "checkpoints/README.md", "checkpoints/checkpoint-3/README.md",
    "checkpoints/checkpoint-3/notes.txt", "checkpoints/checkpoint-9/notes.txt",
    "tuned/notes.txt", "tuned-mine/notes.txt", "zero-shot/notes.txt",
)  # fmt: skip


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_fresh_leaves_every_note_of_the_user_in_its_place(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, task: str
) -> None:
    """Also when checkpoints are removed and written again; the folder may be a link."""
    keys = {"eval_steps": 1, "save_total_limit": 1}
    run = training.train(recipe_of(make_recipe, base, task, tmp_path / "run", **keys))
    harness.run(make_job(model=str(run), limit=4))
    for name in NOTES:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"my {name}")
    (tmp_path / "link").symlink_to(run)
    recipe = recipe_of(make_recipe, base, task, tmp_path / "link", seed=7, **keys)
    first = contents(run)
    training.train(recipe, fresh=True)
    after = contents(run)
    assert {name: after[name].decode() for name in NOTES} == {name: f"my {name}" for name in NOTES}
    weights = "adapter/adapter_model.safetensors"
    assert after[weights] != first[weights]
    assert not [name for name in after if "results.json" in name or ".previous" in name]
    (run / "checkpoints/checkpoint-3/notes.txt").write_text("changed")
    assert newest_sealed(run / "checkpoints") == run / "checkpoints/checkpoint-3"
    (run / "training.json").unlink()
    training.train(recipe)
    assert runs.record_of(run).resumed_from == "checkpoint-3"


@pytest.mark.parametrize(
    "name",
    [
        "recipe.yaml", "history.jsonl", "split.json", "head.safetensors", "checkpoints",
        "checkpoints/checkpoint-6", "checkpoints/checkpoint-6/optimizer.pt",
        "checkpoints/README.md", "tuned", ".previous",
    ],
)  # fmt: skip
@pytest.mark.parametrize("fresh", [False, True])
def test_a_link_in_a_run_is_not_followed(
    recipe_in: Callable[..., Recipe], tmp_path: Path, name: str, fresh: bool
) -> None:
    """A stranger's run that was not finished, with a link where training writes or removes."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(recipe_in("run")))
    (outside / "checkpoint-4").mkdir(parents=True)
    for file in ("mine", "recipe.yaml", "checkpoint-4/optimizer.pt"):
        (outside / file).write_text("mine")
    before = contents(outside)
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    is_folder = name in ("checkpoints", "checkpoints/checkpoint-6", "tuned", ".previous")
    (run / name).symlink_to(outside if is_folder else outside / "mine")
    with pytest.raises(UserError, match=f"{name}: this is a link"):
        training.train(recipe_in("run"), fresh=fresh)
    assert contents(outside) == before


def test_a_cut_off_run_does_not_continue_with_other_data(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids are the same, but the labels are different."""
    file = tmp_path / "x.csv"
    file.write_text("text,label\n" + "".join(f"text number {i},{i % 2}\n" for i in range(40)))
    dataset = {"path": str(file), "name": None, "parts": {}, "stratify": False}
    keys = {"output_dir": str(tmp_path / "run"), "eval_steps": 1, "max_steps": 3}
    recipe = make_recipe("classification", base, lora={"r": 2}, train=keys, dataset=dataset)
    right = SteadyTrainer.training_step

    def cut_off(self: Any, *args: Any) -> Any:
        if self.state.global_step == 2:
            raise RuntimeError("the power goes out")
        return right(self, *args)

    monkeypatch.setattr(SteadyTrainer, "training_step", cut_off)
    with pytest.raises(RuntimeError, match="power"):
        training.train(recipe)
    monkeypatch.undo()
    whole = file.read_text()
    file.write_text("text,label\n" + "".join(f"text number {i},{1 - i % 2}\n" for i in range(40)))
    with pytest.raises(UserError, match="the data are not those"):
        training.train(recipe)
    file.write_text(whole)
    training.train(recipe)


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_a_head_s_training_continues_with_or_without_packing(
    make_recipe: Callable[..., Recipe], task: str
) -> None:
    """Rows of answers decide how many examples a step has; a head's batches stay the same."""
    sums = {
        resume.recipe_sum(make_recipe(task, "tiny", lora={"r": 2}, train={"packing": packing}))
        for packing in ("none", "prefix_tree")
    }
    assert len(sums) == (1 if task == "classification" else 2)
