"""An evaluation in several processes gives the bytes of one, and goes on in any number of them after a death."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from eval import harness
from eval.job import Job, make_job
from eval.predictors.kinds import EngineChoice
from llama_peft import data
from llama_peft.data import Example
from llama_peft.errors import UserError
from llama_peft.inference import unfinished
from llama_peft.inference.predict import Prediction
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.run_folder import layout
from llama_peft.system.lock import only_process
from llama_peft.system.processes import job, launch
from tests.support import forked
from tests.support.eval.jobs import job_for

SMALL = "train.per_device_eval_batch_size=1"
TIMES = {"date", "wall_seconds", "peak_memory_bytes", "sum"}


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """Processes are forked. Returns how many predictions each file of each evaluation held at its end."""
    forked.import_libraries()
    monkeypatch.setattr(launch, "_start", forked.Rank)
    found: list[dict[str, int]] = []

    right = harness.remove_unfinished

    def remove(output: Path) -> None:
        found.append(held(output))
        right(output)

    monkeypatch.setattr(harness, "remove_unfinished", remove)
    return found


def held(output: Path) -> dict[str, int]:
    """How many predictions lie in each unfinished file."""
    files = sorted(output.glob("*.partial*.jsonl"))
    return {path.name: forked.num_lines(path) - 1 for path in files}


def written(output: Path) -> tuple[bytes, dict[str, Any]]:
    """What an evaluation has written, without what says time and memory."""
    results = json.loads((output / layout.RESULTS).read_text())
    results["costs"].pop("seconds_per_1000")
    kept = {key: value for key, value in results.items() if key not in TIMES}
    return (output / layout.PREDICTIONS).read_bytes(), kept


def in_two(one: Job, words: list[str]) -> tuple[bytes, dict[str, Any]]:
    output = one.output.with_name("two")
    two = job_for(one.recipe, one.model, output)
    harness.run_in(2, [two], ["run", *words, "--output", str(output)])
    return written(output)


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_a_base_in_two_processes(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    left: list[dict[str, int]],
    task: str,
) -> None:
    recipe = make_recipe(task, make_base(), lora={"r": 2}, eval={"max_new_tokens": 6})
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    one = make_job(str(file), output=tmp_path / "one", overrides=[SMALL])
    found = in_two(one, ["--task", str(file), SMALL])
    assert found == (harness.run(one), written(one.output))[1]
    shares = left[0]
    assert [*shares] == ["predictions.partial.1.jsonl", "predictions.partial.jsonl"]
    assert min(shares.values()) >= 4 and sum(shares.values()) == 16
    assert not held(one.output) and not held(one.output.with_name("two"))


@pytest.mark.parametrize("kind", ["class_run", "span_run"])
def test_a_run_in_two_processes(
    request: pytest.FixtureRequest, tmp_path: Path, left: list[dict[str, int]], kind: str
) -> None:
    """A threshold is fitted by both, on what both have predicted."""
    _, run = request.getfixturevalue(kind)
    (run / layout.THRESHOLD).unlink(missing_ok=True)
    one = make_job(model=str(run), output=tmp_path / "one", overrides=[SMALL])
    found = in_two(one, ["--model", str(run), SMALL])
    (run / layout.THRESHOLD).unlink(missing_ok=True)
    harness.run(one)
    assert found == written(one.output)
    names = ["predictions.partial.1.jsonl", "predictions.partial.jsonl"]
    if kind == "span_run":
        names += ["validation.partial.1.jsonl", "validation.partial.jsonl"]
    assert [*left[0]] == names and min(left[0].values()) >= 3


def second_dies(output: Path, further: int) -> None:
    """In a command: its processes are forked, and the second is killed after some predictions, when the
    first one has made all of its own.
    """
    plain, done = unfinished._stored, count()

    def deadly(*of: Any) -> Any:
        if job.rank() == 1 and next(done) == further:
            forked.until(lambda: held(output).get(layout.UNFINISHED_PREDICTIONS) == 7, 20)
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*of)

    unfinished._stored = deadly
    launch._start = forked.Rank  # type: ignore[assignment]


@pytest.fixture(scope="module")
def killed(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Job, tuple[bytes, dict[str, Any]]]:
    """An evaluation of which one of two processes was killed, and what it should give."""
    folder = tmp_path_factory.mktemp("killed")
    recipe = make_recipe("generative_qa", make_base(), lora={"r": 2}, eval={"max_new_tokens": 6})
    file, output = folder / "recipe.yaml", folder / "out"
    file.write_text(dump_recipe(recipe))
    one = make_job(str(file), output=folder / "one", overrides=[SMALL])
    harness.run(one)
    words = ["run", "--task", str(file), SMALL, "--output", str(output), "--processes", "2"]
    code, text = forked.run(words, folder / "log", "eval", lambda: second_dies(output, 5))
    assert code == 1, text
    assert "process 1 of the 2" in text and "killed by signal 9 (SIGKILL)" in text
    assert text.count("\n") == 1, "one line"
    return make_job(str(file), output=output, overrides=[SMALL]), written(one.output)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_number_of_processes_goes_on_after_a_death(
    killed: tuple[Job, tuple[bytes, dict[str, Any]]],
    tmp_path: Path,
    left: list[dict[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """The first process had made its 7 predictions, and of 9 the second one a batch of 4 and a line of the next."""
    one, expected = killed
    one = replace(one, output=tmp_path / "out")
    shutil.copytree(killed[0].output, one.output)
    assert [*held(one.output).values()] == [5, 7]
    if number == 1:
        computed: list[str] = []
        plain = unfinished._stored
        monkeypatch.setattr(
            unfinished, "_stored", lambda one, more: (computed.append(one.id), plain(one, more))[1]
        )
        harness.run(one)
        assert len(computed) == 5, "nothing whole is computed again"
    else:
        file = one.output.with_name("recipe.yaml")
        file.write_text(dump_recipe(one.recipe))
        words = ["run", "--task", str(file), "--output", str(one.output)]
        harness.run_in(number, [one], words)
        torn = number == 3  # the second one has nothing to write then, so its line stays
        assert sum(left[0].values()) == 16 + torn
    assert written(one.output) == expected
    assert not held(one.output)


def test_what_is_refused_in_several_processes(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe("generative_qa", "tiny", lora={"r": 2})
    served = job_for(recipe, "tiny", tmp_path, engine=EngineChoice(name="openai"))
    with pytest.raises(UserError, match=r"--processes 2: --engine answers in place of processes"):
        harness.run_in(2, [served], [])
    two = job_for(recipe, "tiny", tmp_path / "out")
    with only_process(two.output, "evaluating"), pytest.raises(UserError, match="evaluating here"):
        harness.run_in(2, [two], [])


@pytest.mark.parametrize(("task", "size"), [("extractive_qa", 3), ("classification", 5)])
def test_pieces_hold_whole_passages_long_ones_first(
    make_recipe: Callable[..., Recipe], task: str, size: int
) -> None:
    examples = data.load(make_recipe(task, "tiny")).parts["test"]
    cut = unfinished.pieces(examples[::-1], size)
    assert sorted(one.id for piece in cut for one in piece) == [one.id for one in examples]
    texts = [[unfinished._family(one) for one in piece] for piece in cut]
    assert all(len(piece) <= size or len(set(piece)) == 1 for piece in texts)
    every = [text for piece in texts for text in piece]
    assert [len(text) for text in every] == sorted(map(len, every), reverse=True)
    for text in set(every):
        assert sum(text in piece for piece in texts) == 1


def test_a_file_that_another_process_may_wait_for_serves_one_key(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The other one would wait for ever for what stood under the key before."""
    examples = data.load(make_recipe("classification", "tiny")).parts["test"][:4]

    def work(key: str, share: unfinished.Share) -> list[list[Prediction]]:
        place = tmp_path / "work.partial.jsonl"
        return [*unfinished.predictions(answer, examples, place, key, 1, "work", share)]

    def answer(asked: Sequence[Example], size: int) -> Iterator[list[Prediction]]:
        for one in asked:
            yield [Prediction(id=one.id, prediction="positive")]

    first = unfinished.Share(0, 2)  # one piece, so the other process has nothing to predict
    assert work("one", first) == work("one", first)
    with pytest.raises(AssertionError, match="serves one key"):
        work("two", first)
    assert work("two", unfinished.ALONE) == work("one", first), "nobody waits for one that is alone"
