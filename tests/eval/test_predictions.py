"""Predictions with resume: nothing is predicted twice, ids match, and a killed evaluation goes on to the same bytes."""

import functools
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval import harness, scoring
from eval.fewshot import worked_examples
from eval.predictions import Evaluation, evaluation_key, predict
from eval.predictors.open import open_predictor
from eval.predictors.predictor import Predictor
from eval.predictors.recognise import identify
from llama_peft import data
from llama_peft.data import Example
from llama_peft.errors import UserError
from llama_peft.inference import unfinished
from llama_peft.inference.predict import Prediction
from llama_peft.model import backbone
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.run_folder import layout
from llama_peft.run_folder.results import ModelConfig
from tests.support import forked
from tests.support.eval.jobs import job_for


def predicted(*what: Any) -> list[Prediction]:
    """Predict all; by default in batches of 32."""
    return [*predict(*what, *([32] if len(what) < 5 else []))]


def named(kind: str, predict: Any) -> Predictor:
    config = ModelConfig(model_kind=kind, recipe="small")
    return Predictor(config=config, labels=(), predict=predict, prompt=str)


def oracle(examples: Sequence[Example], batch_size: int = 1) -> Iterator[list[Prediction]]:
    """A predictor that knows the answers."""
    for first in range(0, len(examples), batch_size):
        yield [
            Prediction(id=example.id, prediction=example.answers[0].text if example.answers else "")
            for example in examples[first : first + batch_size]
        ]


@pytest.mark.parametrize("fault", ["missing", "extra", "twice"])
def test_predictions_that_do_not_match_id_for_id_are_refused(
    make_recipe: Callable[..., Recipe], tmp_path: Path, fault: str
) -> None:
    """Law 8."""
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]

    def answer(asked: Sequence[Example], batch_size: int) -> Iterator[list[Prediction]]:
        found = list(oracle(asked))
        if fault == "extra":
            yield [replace(found[0][0], id=found[1][0].id)]
        yield from found[1:] if fault == "missing" else found
        if fault == "twice":
            yield found[0]

    predictor = named("oracle", answer)
    with pytest.raises(UserError, match="predictions"):
        predicted(predictor, examples, tmp_path / "partial", "key")


def test_what_was_predicted_before_a_crash_is_not_predicted_again(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]
    asked: list[str] = []

    def crashing(todo: Sequence[Example], batch_size: int) -> Iterator[list[Prediction]]:
        for i, batch in enumerate(oracle(todo)):
            if i == 5:
                raise KeyboardInterrupt
            asked.extend(prediction.id for prediction in batch)
            yield batch

    def counting(todo: Sequence[Example], batch_size: int) -> Iterator[list[Prediction]]:
        asked.extend(example.id for example in todo)
        return oracle(todo)

    partial = tmp_path / "partial"
    broken = named("oracle", crashing)
    with pytest.raises(KeyboardInterrupt):
        predicted(broken, examples, partial, "key")
    with partial.open("a") as file:
        file.write('{"id": "torn')
    whole = replace(broken, predict=counting)
    found = predicted(whole, examples, partial, "key")
    assert sorted(asked) == sorted(e.id for e in examples), "each was asked once"
    assert {prediction.id for prediction in found} == set(asked)
    asked.clear()
    predicted(whole, examples, partial, "another key")
    assert len(asked) == len(examples), "predictions of another key are no use"


def test_a_batch_that_was_cut_off_is_predicted_again_as_a_whole(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Only then are the results the same bit for bit. The line of a batch's last prediction says so."""
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]
    partial, asked = tmp_path / "partial", []

    def counting(todo: Sequence[Example], batch_size: int) -> Iterator[list[Prediction]]:
        asked.append([example.id for example in todo])
        return oracle(todo, batch_size)

    expected = predicted(named("oracle", counting), examples, partial, "key", 4)
    lines = partial.read_text().splitlines(keepends=True)
    more = [json.loads(line[9:])["more"] for line in lines[1:]]
    assert more == [True, True, True, False] * 4
    for kept in range(len(lines)):
        partial.write_text("".join(lines[: 1 + kept]))
        asked.clear()
        found = predicted(named("oracle", counting), examples, partial, "key", 4)
        whole = kept // 4 * 4
        (piece,) = unfinished.pieces(examples, 16)
        assert asked == ([[example.id for example in piece[whole:]]] if whole < 16 else [])
        assert found == expected


def test_out_of_memory_halves_the_batch_and_keeps_what_is_done(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]
    sizes: list[int] = []

    def limited(todo: Sequence[Example], batch_size: int) -> Iterator[list[Prediction]]:
        sizes.append(batch_size)
        for i, batch in enumerate(oracle(todo)):
            if i == 3 and batch_size > 2:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            yield batch

    found = predicted(named("oracle", limited), examples, tmp_path / "partial", "key", 8)
    assert sizes == [8, 4, 2]
    assert [prediction.id for prediction in found] == [example.id for example in examples]

    def hopeless(todo: Sequence[Example], batch_size: int) -> Iterator[list[Prediction]]:
        raise MemoryError
        yield

    with pytest.raises(UserError, match="one example at a time"):
        predicted(named("oracle", hopeless), examples, tmp_path / "partial", "other", 8)

    def broken(todo: Sequence[Example], batch_size: int) -> Iterator[list[Prediction]]:
        raise RuntimeError("a bug of ours")
        yield

    with pytest.raises(RuntimeError, match="a bug"):
        predicted(named("oracle", broken), examples, tmp_path / "partial", "other", 8)


def test_a_killed_evaluation_goes_on_to_the_same_bytes(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """kill -9 at 10 places of one evaluation; each start continues the one before."""
    parts = {"train": 24, "validation": 8, "test": 60}
    recipe = make_recipe(
        "generative_qa", make_base(), lora={"r": 2}, dataset={"parts": parts},
        train={"per_device_eval_batch_size": 1}, eval={"max_new_tokens": 12},
    )  # fmt: skip
    base = recipe.model.model_name_or_path
    whole, cut = job_for(recipe, base, tmp_path / "whole"), job_for(recipe, base, tmp_path / "cut")
    expected = harness.run(whole)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    words = ["run", "--task", str(tmp_path / "recipe.yaml"), "--model", base]
    words += ["--output", str(cut.output)]
    partial = cut.output / layout.UNFINISHED_PREDICTIONS
    rng, kept = random.Random(0), [0]
    for _ in range(10):
        hook = functools.partial(forked.die_after, rng.randrange(12))
        code, text = forked.run(words, tmp_path / "log", "eval", hook)
        assert code == -signal.SIGKILL, text
        kept.append(partial.read_text().count('"more": false'))
    assert kept == sorted(kept) and 0 < kept[5] < kept[-1], "what is predicted stays"
    found = harness.run(cut)
    assert found.results == expected.results
    both = [(job.output / "predictions.jsonl").read_bytes() for job in (whole, cut)]
    assert both[0] == both[1]
    assert not (cut.output / layout.UNFINISHED_PREDICTIONS).exists()


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_scores_that_are_no_numbers_are_no_predictions(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path, task: str
) -> None:
    from safetensors.torch import load_file, save_file

    base = make_base()
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"-test-\S+: the model's scores are not numbers"):
        harness.run(job_for(make_recipe(task, base, lora={"r": 4}), base, tmp_path / "out"))
    assert not (tmp_path / "out/results.json").exists()


def key_of(recipe: Recipe, model: Path | str, output: Path) -> str:
    job = job_for(recipe, model, output, limit=4)
    found = scoring.material(job)
    subject = identify(job.model, recipe)
    predictor = open_predictor(subject, recipe, found.labels, worked_examples(job, found))
    evaluation = Evaluation(job=job, subject=subject, found=found, predictor=predictor)
    return evaluation_key(evaluation, found.parts)


def test_predictions_of_another_prompt_are_no_use(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The tokenizer, the worked examples, and how the model computes belong to what is resumed."""
    base = make_base()
    recipe = make_recipe("generative_qa", base, lora={"r": 2}, eval={"num_fewshot": 1})
    others = [recipe, recipe.changed(model={"attn_implementation": "eager"})]
    others += [recipe.changed(head={"pooling": "mean"}), recipe.changed(dataset={"seed": 3})]
    keys = [key_of(other, base, tmp_path) for other in others]
    encoded = json.loads((base / "tokenizer.json").read_text())
    encoded["normalizer"] = {"type": "Lowercase"}
    (base / "tokenizer.json").write_text(json.dumps(encoded))
    backbone._load_tokenizer.cache_clear()  # another process would read it again
    keys.append(key_of(recipe, base, tmp_path))
    assert len(set(keys)) == 5


def test_predictions_of_another_adapter_config_are_no_use(
    span_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = span_run
    adapter = tmp_path / "adapter"
    shutil.copytree(folder / "adapter", adapter)
    before = key_of(recipe, adapter, tmp_path / "out")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_alpha"] *= 2
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert key_of(recipe, adapter, tmp_path / "out") != before


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, "5", "[1]", "not JSON", '{"id": 5, "prediction": "x"}', '{"id": "x"}',
        '{"id": "x", "prediction": "x", "probabilities": [NaN]}', '{"id": "x", "prediction": "\\ud800"}',
    ],
)  # fmt: skip
def test_a_line_that_no_evaluation_wrote_is_computed_again(
    make_recipe: Callable[..., Recipe], tmp_path: Path, text: str
) -> None:
    """Its sum is right: a sum has no key."""
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]
    predictor, partial = named("oracle", oracle), tmp_path / "partial"
    whole = predicted(predictor, examples, partial, "key")
    begin, *_ = partial.read_text().splitlines(keepends=True)
    partial.write_text(f"{begin}{unfinished._checksum(text)} {text}\n")
    assert predicted(predictor, examples, partial, "key") == whole


@pytest.mark.parametrize("kind", ["link", "pipe", "loop"])
def test_unfinished_predictions_are_a_file_of_their_folder(
    make_recipe: Callable[..., Recipe], tmp_path: Path, kind: str
) -> None:
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]
    folder, outside = tmp_path / "out", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("precious")
    place = folder / "partial"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(outside if kind == "link" else place)
    with pytest.raises(UserError, match="partial"):
        predicted(named("oracle", oracle), examples, place, "key")
    assert outside.read_text() == "precious"
