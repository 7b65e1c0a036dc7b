"""Servers that fail for a moment are asked again; what cannot become right is one line, and costs no
finished work."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import app
from eval.predictors.engines import client
from eval.predictors.engines.server import each
from eval.predictors.kinds import EngineChoice
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from tests.support.completions.server import Completions, Fault, serve
from tests.support.eval.jobs import evaluate, lines_of
from tests.support.small import save_base

from .conftest import NAME, openai


def test_faults_of_a_moment_change_nothing(
    server: Completions, asked: Recipe, local: list[dict[str, Any]], tmp_path: Path
) -> None:
    server.faults = [
        Fault(status=429, times=3),
        Fault(status=503, times=2, skip=2),
        Fault(how="reset", skip=2),
        Fault(how="torn", skip=2, times=3),
        Fault(status=200, text="<html>a page in place of JSON</html>", skip=2),
    ]
    evaluate(asked, NAME, tmp_path, engine=openai(server))
    assert [line["raw"] for line in lines_of(tmp_path)] == [line["raw"] for line in local]
    assert not any(fault.times for fault in server.faults), "a fault never happened"


def test_half_of_a_character_is_replaced() -> None:
    assert client.Choice.model_validate({"text": "a\ud83d"}).text == "a\ufffd"
    assert client.Choice.model_validate({"text": "\U0001f600"}).text == "\U0001f600"


def test_a_slow_server_counts_as_lost(
    server: Completions, asked: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SILENCE", 0.05)
    server.delay = 0.2
    with pytest.raises(UserError, match=r"it sent nothing for too long, 8 times; finished"):
        evaluate(asked, NAME, tmp_path, engine=openai(server))


REFUSED: dict[str, tuple[Fault, str]] = {
    "a longer prompt than it reads": (
        Fault(
            status=400, text='{"error": {"message": "maximum context\\n length is 9"}}', times=99
        ),
        "the server refuses with 400: maximum context length is 9",
    ),
    "a model that it has lost": (Fault(status=404, text="{}", times=99), "usually ends in /v1"),
    "another form": (
        Fault(status=200, text='{"choices": [{}]}'),
        r"choices.0.text: Field required",
    ),
    "a token that is none": (
        Fault(status=200, text='{"choices": [{"text": "", "token_ids": [-1]}]}'),
        r"token_ids.0: Input should be greater",
    ),
    "no choice": (Fault(status=200, text='{"choices": []}'), "holds 0 choices for one prompt"),
    "errors without end": (
        Fault(times=99),
        "it answers 500, 8 times; finished predictions are kept",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stays_wrong_is_one_line(
    server: Completions, asked: Recipe, tmp_path: Path, name: str
) -> None:
    fault, message = REFUSED[name]
    server.faults = [replace(fault)]
    with pytest.raises(UserError, match=message) as caught:
        evaluate(asked, NAME, tmp_path, engine=openai(server))
    assert len(caught.value.args) == 1 and "\n" not in str(caught.value)


def test_finished_predictions_are_kept_when_a_server_goes_down(
    server: Completions, asked: Recipe, local: list[dict[str, Any]], tmp_path: Path
) -> None:
    """With one request at a time there are four questions in a batch."""
    recipe = asked.with_train({"per_device_eval_batch_size": 1})
    engine = openai(server, concurrency=1)
    server.faults = [Fault(how="reset", skip=3 + 8 + 1, times=99)]
    with pytest.raises(UserError, match="the same command continues"):
        evaluate(recipe, NAME, tmp_path, engine=engine)
    server.faults.clear()
    done = {json.dumps(body["prompt"]) for body in server.asked if body["max_tokens"] > 1}
    assert len(done) == 5
    server.asked.clear()
    found = evaluate(recipe, NAME, tmp_path, engine=engine)
    assert [line["raw"] for line in lines_of(tmp_path)] == [line["raw"] for line in local]
    counted = found.config.engine
    assert counted and counted.predictions == 2 and counted.requests == len(server.asked)
    again = {json.dumps(body["prompt"]) for body in server.asked if body["max_tokens"] > 1}
    assert len(again) == 2 and len(done & again) == 1, "the batch that was not whole, and the next"


def test_another_tokenizer_is_refused(server: Completions, asked: Recipe, tmp_path: Path) -> None:
    """By the tokens that the server has read, or if it does not tell them by their number."""
    strange = server.tokenizer.train_new_from_iterator(["some other texts than ours"], 300)
    strange.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<p>"})
    server.tokenizer = strange
    for server.extended in (True, False):
        with pytest.raises(UserError, match="splits a text into other tokens"):
            evaluate(asked, NAME, tmp_path, engine=openai(server))
    server.counts = False
    with pytest.raises(UserError, match="does not tell how it splits a text"):
        evaluate(asked, NAME, tmp_path, engine=openai(server))


def test_a_text_without_its_beginning_is_refused(
    server: Completions, asked: Recipe, tmp_path: Path
) -> None:
    """As text the server must put it there; as token ids a prompt has its own."""
    server.adds_bos = server.takes_ids = False
    with pytest.raises(UserError, match="begins them in its own way"):
        evaluate(asked, NAME, tmp_path, engine=openai(server))


def test_what_a_server_does_not_tell_is_refused_where_it_is_needed(
    server: Completions,
    make_recipe: Any,
    tuned_run: tuple[Recipe, Path, Completions],
    tmp_path: Path,
) -> None:
    server.tells_scores = False
    texts = make_recipe("classification", NAME)
    with pytest.raises(UserError, match="which the labels of texts are read from"):
        evaluate(texts, NAME, tmp_path / "texts", engine=openai(server))
    recipe, folder, served = tuned_run
    with (
        serve(replace(served, extended=False, asked=[])) as plain,
        pytest.raises(
            UserError, match=r"does not tell token ids, which eval\.fit_no_answer_thresh"
        ),
    ):
        evaluate(recipe, folder, tmp_path / "run", engine=openai(plain))


def test_only_what_continues_texts_can_be_served(
    server: Completions, asked: Recipe, class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = class_run
    with pytest.raises(UserError, match=r"only continues texts, and this is a run with a head"):
        evaluate(recipe, folder, tmp_path, engine=openai(server))
    with pytest.raises(UserError, match=r"only continues texts, and this is a baseline"):
        evaluate(asked, "no-answer", tmp_path, engine=openai(server))
    other = save_base(tmp_path / "other")
    with pytest.raises(
        UserError, match=re.escape(f"the server has {NAME}, and not {other}: serve")
    ):
        evaluate(asked, other, tmp_path / "out", engine=openai(server))


def test_the_key_is_sent_and_written_nowhere(
    server: Completions,
    asked: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    server.key = "a-key-of-nobody-1234"
    with pytest.raises(UserError, match=r"refuses with 401: Incorrect.*; set OPENAI_API_KEY"):
        evaluate(asked, NAME, tmp_path / "out", engine=openai(server))
    monkeypatch.setenv(client.KEY, f"{server.key}\n")
    monkeypatch.setenv(client.URL, f"{server.url}/")
    server.delay = 0.02
    evaluate(asked, NAME, tmp_path / "out", engine=EngineChoice(name="openai", concurrency=3))
    assert server.most_at_once == 3, "requests are bounded, and at the same time"
    text = caplog.text + "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert server.url in text and server.key not in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "needs the address of a server: give --base-url .* or set OPENAI_BASE_URL"),
        ("localhost:8000/v1", "this is no web address"),
        ("ftp://here/v1", "this is no web address"),
        ("http://[::1/v1", "this is no web address"),
        ("http://me:hidden@here/v1", "the address of here holds a password"),
        ("http://here/v1?api_key=hidden", "the address of here holds a password"),
    ],
)
def test_an_address_without_a_secret_is_needed(given: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        client.checked_url(given)
    assert "hidden" not in str(caught.value)


def test_an_address_where_nobody_is(asked: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no server answers there, 8 times"):
        evaluate(
            asked,
            NAME,
            tmp_path,
            engine=EngineChoice(name="openai", base_url="http://127.0.0.1:9/v1"),
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--base-url", "http://here/v1"], "--base-url is for --engine openai"),
        (["--engine", "vllm", "--served-model", "x"], "--served-model is for --engine openai"),
        (["--prices", "1", "2"], "--prices is for --engine"),
        (["--engine", "openai", "--prices", "nan", "2"], "two numbers of at least 0"),
    ],
)
def test_options_that_do_not_fit_together(words: list[str], message: str) -> None:
    import typer.main

    command = typer.main.get_command(app)
    with pytest.raises(UserError, match=message):
        command(["run", "--task", "tiny-squad", *words], standalone_mode=False)


def test_an_error_of_one_item_ends_the_others() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise UserError("no")
        return -number

    assert each(work, [0, 1], 8) == [0, -1] and each(work, [], 8) == []
    begun.clear()
    with pytest.raises(UserError, match="no"):
        each(work, range(1000), 1)
    assert len(begun) < 1000


def test_log_probabilities_in_another_form_are_none() -> None:
    for form in (None, {"content": []}, [0.5], {"token_logprobs": ["a"]}):
        assert not client.Choice.model_validate({"text": "", "logprobs": form}).scores


def test_a_busy_server_is_told_of_once(
    server: Completions, asked: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server.faults = [Fault(status=429, times=12, skip=4)]
    evaluate(asked, NAME, tmp_path, engine=openai(server))
    assert caplog.text.count("it answers 429; the request is sent again") == 1
