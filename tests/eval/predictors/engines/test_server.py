"""A server's answers are those of this process, token for token, in whichever way it is asked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import eval as face
from eval.predictions import Evaluation, evaluation_key
from eval.predictors.engines.open import open_served
from eval.predictors.engines.server import Place, Server
from eval.predictors.recognise import identify
from eval.scoring import material
from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.inference.engine import Loaded
from llama_peft.inference.predict import questions
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.run_folder.layout import THRESHOLD
from llama_peft.tokens.prompts import Encoded
from tests.support.completions.server import Completions, serve
from tests.support.eval.jobs import evaluate, job_for, lines_of

from .conftest import NAME, openai


@pytest.mark.parametrize("takes_ids", [True, False])
@pytest.mark.parametrize("extended", [True, False])
def test_a_server_writes_what_this_process_writes(
    server: Completions,
    asked: Recipe,
    local: list[dict[str, Any]],
    tmp_path: Path,
    takes_ids: bool,
    extended: bool,
) -> None:
    server.takes_ids, server.extended = takes_ids, extended
    results = evaluate(asked, NAME, tmp_path, engine=openai(server, prices=(2.0, 10.0)))
    found = lines_of(tmp_path)
    assert [line["prediction"] for line in found] == [line["prediction"] for line in local]
    assert [line["prompt"] for line in found] == [line["prompt"] for line in local]
    if extended:
        assert [line["raw"] for line in found] == [line["raw"] for line in local]
    for line, own in zip(found, local, strict=True):
        if takes_ids:
            assert line["no_answer_probability"] == pytest.approx(
                own["no_answer_probability"], rel=1e-3
            )
        else:
            assert "no_answer_probability" not in line
    assert len({line["prediction"] for line in found}) > 3, "answers that differ"
    assert all("\n" in body["stop"] for body in server.asked), "nothing is paid for after an answer"
    engine = results.config.engine
    assert engine and engine.base_url == server.url and engine.served_model == NAME
    assert engine.prompts == ("token ids" if takes_ids else "text")
    assert engine.server == "loopback 0.33.0 b1" and results.peak_memory_bytes is None
    assert engine.requests == len(server.asked)
    assert engine.cost == round(2e-6 * engine.prompt_tokens + 1e-5 * engine.completion_tokens, 6)
    assert results.config.model_kind == "zero-shot generative, openai"


def test_a_run_with_a_threshold_is_asked_what_else_it_would_say(
    tuned_run: tuple[Recipe, Path, Completions], tmp_path: Path
) -> None:
    recipe, folder, served = tuned_run
    results = []
    with serve(served):
        for name, engine in (("there", openai(served)), ("here", None)):
            results.append(evaluate(recipe, folder, tmp_path / name, engine=engine))
            assert (folder / THRESHOLD).is_file() == (engine is None), "a run keeps what is its own"
    there, here = lines_of(tmp_path / "there"), lines_of(tmp_path / "here")
    for line, own in zip(there, here, strict=True):
        assert (line["prediction"], line["raw"]) == (own["prediction"], own["raw"])
    assert any("logit_bias" in body for body in served.asked), "no answer began as the phrase does"
    assert results[0].config.adapter_sha256 == results[1].config.adapter_sha256
    assert results[0].config.model_kind == "tuned generative + LoRA, openai"


def test_labels_come_from_the_log_probabilities_of_prompts(
    server: Completions, make_recipe: Any, tmp_path: Path
) -> None:
    recipe = make_recipe(
        "classification", NAME, dataset={"parts": {"train": 8, "validation": 4, "test": 2}}
    )
    evaluate(recipe, NAME, tmp_path / "here")
    evaluate(recipe, NAME, tmp_path / "there", engine=openai(server))
    pairs = zip(lines_of(tmp_path / "there"), lines_of(tmp_path / "here"), strict=True)
    for line, own in pairs:
        assert line["probabilities"] == pytest.approx(own["probabilities"], abs=1e-4)


def test_worked_examples_are_sent_too(server: Completions, asked: Recipe) -> None:
    dataset = data.load(asked)
    subject = identify(NAME, asked, is_served=True)
    plain = open_served(subject, asked, (), openai(server))
    assert plain.with_shots is not None
    shown = plain.with_shots(2, lambda _: dataset.parts["train"][:2])
    assert shown.kind == "2-shot generative, openai" and shown.remote is plain.remote
    for predictor in (plain, shown):
        list(predictor.predict(dataset.parts["test"][:1], 1))
    first, second = (body["prompt"] for body in server.asked if body["max_tokens"] > 1)
    assert len(second) > len(first)
    plain.close()


def test_a_server_that_tells_less_gives_the_same_answers(
    untouched: Completions, asked: Recipe, local: list[dict[str, Any]], tmp_path: Path
) -> None:
    """It tells no log-probabilities, puts nothing before a text, and has a name of its own for the model."""
    less = replace(untouched, names=("other", "big"), tells_scores=False, adds_bos=False, asked=[])
    with serve(less) as served:
        results = evaluate(asked, NAME, tmp_path, engine=openai(served, served_model="big"))
    assert [line["raw"] for line in lines_of(tmp_path)] == [line["raw"] for line in local]
    (scores,) = results.results.values()
    assert "f1" in scores and "best_f1" not in scores
    assert results.config.engine and results.config.engine.served_model == "big"
    assert {body["model"] for body in served.asked} == {"big"}


def test_a_token_is_banned_at_the_beginning_only(
    server: Completions, untouched: Completions, asked: Recipe
) -> None:
    here = Loaded.of(untouched.model, asked)
    there = Server(openai(server), NAME, here.encoder, None, lambda: Place(server.url, None))
    examples = questions(data.load(asked).parts["test"][:3])
    prompts = [Encoded(example.id, here.encoder.question(example)) for example in examples]
    for prompt in prompts:
        first, *later = here.write([prompt], 6)[prompt.id].ids
        for banned in {first, *later[:1]}:
            own = here.write([prompt], 6, not_first=banned)
            assert there.write([prompt], 6, not_first=banned) == own
    there.close()


def test_predictions_of_another_server_are_not_continued(
    server: Completions, asked: Recipe, tmp_path: Path
) -> None:
    keys = set()
    for engine in (
        openai(server),
        openai(server, served_model="big"),
        openai(server, concurrency=1),
    ):
        job = job_for(asked, NAME, tmp_path, engine=engine)
        subject, found = identify(NAME, asked, is_served=True), material(job)
        predictor = open_served(subject, asked, (), engine)
        evaluation = Evaluation(job=job, subject=subject, found=found, predictor=predictor)
        keys.add(evaluation_key(evaluation, found.parts))
    assert len(keys) == 2, "how many requests there are at once changes nothing"


def test_python_asks_a_server_as_the_command_does(
    server: Completions, asked: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load(dump_recipe(asked))
    found = face.evaluate(task=recipe, limit=2, engine="openai", base_url=server.url, prices=(1, 1))
    engine = found.config.engine
    assert engine and (engine.base_url, engine.served_model) == (server.url, NAME) and engine.cost
    assert server.asked
    for wrong, message in (
        ({"base_url": server.url}, "base_url is for engine openai"),
        ({"engine": "sglang"}, "engine 'sglang': the engines are openai, vllm"),
    ):
        with pytest.raises(UserError, match=message):
            face.evaluate(task=recipe, **wrong)
