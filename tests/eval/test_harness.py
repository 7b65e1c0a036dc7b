"""Evaluation end to end: same examples, honest zero-shot, and every run opened once."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from eval import harness
from eval.job import make_job
from llama_peft.errors import UserError
from llama_peft.inference.predict import Prediction
from llama_peft.model import backbone
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.run_folder import layout
from llama_peft.run_folder.record import read_record
from llama_peft.run_folder.run import open_run
from tests.support.eval.jobs import job_for, lines_of


def test_zero_shot_and_tuned_answer_the_same_examples(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = class_run
    base = recipe.model.model_name_or_path
    zero = harness.run(job_for(recipe, base, tmp_path / "zero"))
    tuned = harness.run(job_for(recipe, folder, tmp_path / "tuned"))
    assert zero.config.model_kind == "zero-shot verbalizer", "law 9: never an untrained head"
    assert tuned.config.model_kind == "classification head"
    assert zero.adapter_sha256 is None and tuned.adapter_sha256
    lines = [lines_of(tmp_path / name) for name in ("zero", "tuned")]
    pairs = [[(line["id"], line["gold"]) for line in its] for its in lines]
    assert pairs[0] == pairs[1] == sorted(pairs[0]) and len(pairs[0]) == 16
    for line in lines[0] + lines[1]:
        assert sum(line["probabilities"]) == pytest.approx(1.0)
        best = max(range(2), key=line["probabilities"].__getitem__)
        assert line["prediction"] == ("negative", "positive")[best]
    scores = tuned.results["small"]
    right = sum(line["prediction"] == line["gold"] for line in lines[1]) / 16
    assert scores["accuracy"] == pytest.approx(right)
    assert scores["accuracy_ci95"][0] <= right <= scores["accuracy_ci95"][1]


def test_a_file_of_the_user_s_is_evaluated_whole(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    _, folder = class_run
    file = tmp_path / "mine.csv"
    file.write_text('text,label\n"A fine, warm film",positive\nDull,negative\nGood,1\n')
    order = ["dataset.label_positions=true"]
    job = make_job(model=str(folder), data_file=str(file), output=tmp_path / "out", overrides=order)
    results = harness.run(job)
    assert results.n_samples["small"].effective == results.n_samples["small"].original == 3
    golds = [line["gold"] for line in lines_of(tmp_path / "out")]
    assert golds == ["positive", "negative", "positive"]


def test_limit_takes_the_same_sample_for_every_system(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = class_run
    ids = []
    for name, model in (("zero", recipe.model.model_name_or_path), ("tuned", folder)):
        results = harness.run(job_for(recipe, model, tmp_path / name, limit=5))
        assert results.n_samples["small"].original == 16
        assert results.n_samples["small"].effective == 5
        assert results.configs["small"].eval["limit"] == 5
        ids.append([line["id"] for line in lines_of(tmp_path / name)])
    assert ids[0] == ids[1]


def test_a_run_takes_only_overrides_of_the_evaluation(
    span_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    _, folder = span_run
    words = {"model": str(folder), "output": tmp_path / "short"}
    for fixed in ("prompt.template=x {text}", "train.max_length=4", "model.dtype=float16"):
        with pytest.raises(UserError, match=r"fixed this key; only these can be set now: eval\."):
            make_job(**words, overrides=[fixed])
    short = ["eval.max_answer_length=1", "train.per_device_eval_batch_size=4"]
    job = make_job(**words, overrides=short)
    harness.run(job)
    assert max(len(line["raw"].split()) for line in lines_of(tmp_path / "short")) <= 1


def test_results_record_what_a_run_was_trained_with(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    """Evaluated on another recipe, a run keeps its own prompt, and the results say so."""
    recipe, folder = class_run
    other = recipe.changed(name="other", prompt={"template": "Another: {text}"})
    found = harness.run(job_for(other, folder, tmp_path / "out"))
    assert found.configs["other"].prompt["template"] == recipe.prompt.template


def test_results_say_what_a_model_computed_in(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where bfloat16 is only emulated, as on a T4, a base that is asked for it computes in float16."""
    recipe = make_recipe("classification", make_base(), model={"dtype": "bfloat16"})
    found = []
    for fast in (torch.bfloat16, torch.float16):
        monkeypatch.setattr(backbone, "fast_dtype", lambda place, fast=fast: fast)
        job = job_for(recipe, recipe.model.model_name_or_path, tmp_path / str(fast), limit=2)
        found.append(harness.run(job))
    assert [its.settings.dtype for its in found] == ["bfloat16", "float16"]
    assert found[0].config.key != found[1].config.key, "one does not continue the other"
    floor = harness.run(job_for(recipe, "majority", tmp_path / "floor"))
    assert floor.settings.dtype is None, "no model computes"


def test_one_evaluation_a_folder(class_run: tuple[Recipe, Path], tmp_path: Path) -> None:
    from llama_peft.system.lock import only_process

    recipe, folder = class_run
    job = job_for(recipe, folder, tmp_path / "out")
    with (
        only_process(tmp_path / "out", "evaluating"),
        pytest.raises(UserError, match=f"process {os.getpid()} is evaluating here"),
    ):
        harness.run(job)
    with only_process(tmp_path / "out", "evaluating"):
        (tmp_path / "out/.holder").unlink()  # as in the moment before it is written
        with pytest.raises(UserError, match="another process is evaluating here"):
            harness.run(job)
    assert harness.run(job).results


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_the_peak_is_of_one_evaluation(tmp_path: Path) -> None:
    """In a process of its own: what was held before is not counted."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system cannot forget a peak")
    code = (
        "from llama_peft.system.memory import peak_memory, reset_peak\n"
        "held = bytearray(300 << 20)\n"
        "before = peak_memory()\n"
        "del held\n"
        "reset_peak()\n"
        "assert peak_memory() < before - (200 << 20), (peak_memory(), before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("fitted", [False, True])
def test_a_run_is_opened_once(span_run: tuple[Recipe, Path], tmp_path: Path, fitted: bool) -> None:
    """Its files are verified, and its record and its recipe read, once in an evaluation."""
    recipe, folder = span_run
    job = job_for(recipe, folder, tmp_path / "out")
    if fitted:
        harness.run(job)
    with calls_of(open_run, read_record, load_recipe) as calls:
        harness.run(job)
    (folder / layout.THRESHOLD).unlink()
    assert calls == {"open_run": 1, "read_record": 1, "load_recipe": 1}


@contextmanager
def calls_of(*functions: Callable[..., Any]) -> Iterator[Counter[str]]:
    """Count the calls of functions, under whatever name they were imported."""
    names, counts = {function.__code__: function.__name__ for function in functions}, Counter[str]()

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code in names:
            counts[names[frame.f_code]] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield counts
    finally:
        sys.setprofile(before)


def test_rows_from_python_are_evaluated_like_a_file(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = class_run
    rows = [
        {"text": "A fine, warm film", "label": "positive"},
        {"text": "Dull", "label": "negative"},
    ]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(rows))
    own = harness.run(job_for(recipe, folder, tmp_path / "file", data_file=str(file)))
    given = harness.run(job_for(recipe, folder, tmp_path / "rows", data_file=rows))
    assert given.results == own.results
    ours, theirs = lines_of(tmp_path / "rows"), lines_of(tmp_path / "file")
    assert [line["id"] for line in ours] == ["rows-1", "rows-2"]
    assert ours == [line | {"id": f"rows-{n}"} for n, line in enumerate(theirs, start=1)]
    assert given.settings.data_file == "given" and own.settings.data_file == str(file)


def test_parts_from_python_replace_those_of_the_recipe(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = class_run
    base = recipe.model.model_name_or_path
    rows = [
        {"text": "A fine, warm film", "label": "positive"},
        {"text": "Dull", "label": "negative"},
    ]
    shots = recipe.changed(eval={"num_fewshot": 2})
    for its, model in ((recipe, folder), (shots, base)):
        job = job_for(its, model, tmp_path / f"out-{len(str(model))}", given={"test": rows})
        results = harness.run(job)
        assert results.n_samples["small"].original == 2
        assert results.settings.dataset["parts"]["test"] == "given"
        assert [line["text"] for line in lines_of(job.output)] == [row["text"] for row in rows]


def test_a_head_shows_its_probabilities_and_a_writer_its_words() -> None:
    head = Prediction(id="a", prediction="bad", probabilities=(0.75, 0.25))
    assert harness._said(head, ["bad", "good"]) == "bad 0.7500, good 0.2500"
    assert harness._said(Prediction(id="a", prediction=2.5), []) == "2.5000"
    words = Prediction(id="a", prediction="Rome", raw="Rome\n", no_answer_probability=0.125)
    assert harness._said(words, []) == "'Rome\\n', no answer 0.1250"
