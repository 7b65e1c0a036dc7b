"""The page of a run: it says what the run says, keeps corrections that train, and answers nobody else."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_peft import data
from llama_peft.__main__ import app as command
from llama_peft.errors import UserError
from llama_peft.inference.ask import Reply
from llama_peft.recipe import load_recipe
from llama_peft.serving.app import MOST_BYTES, shown
from tests.serving.served import Served, inputs_of
from tests.support.paths import RUNS_0_1_0


def test_replies_are_those_of_the_run_and_of_its_base(served: Served) -> None:
    inputs = inputs_of(served)
    status, _, text = served.ask("/api/predict", {"inputs": inputs})
    replies = json.loads(text)["replies"]
    assert status == 200 and len(replies) == len(inputs)
    for reply, right in zip(replies, served.loaded.predict(inputs), strict=True):
        assert reply["tuned"]["prediction"] == right.prediction
        assert reply["tuned"]["probabilities"] == right.probabilities
        assert reply["tuned"]["start"] == right.start
        assert isinstance(reply["base"]["prediction"], str)
    if served.loaded.run.labels:
        assert all(sum(r["base"]["probabilities"].values()) == pytest.approx(1) for r in replies)
        assert any(r["base"]["probabilities"] != r["tuned"]["probabilities"] for r in replies)


def test_the_place_of_an_answer_is_shown() -> None:
    reply = Reply(prediction="in May", no_answer_probability=0.25, start=14)
    assert shown(reply) == {**vars(reply)}


def test_the_page_asks_nobody_else(served: Served) -> None:
    about = json.loads(served.ask("/api/run")[2])
    assert about["fields"] == list(inputs_of(served)[0]) and about["has_base"] is True
    for path in ("/", "/page.js", "/page.css"):
        status, headers, text = served.ask(path)
        assert status == 200 and "://" not in text
        assert headers["content-security-policy"].startswith("default-src 'none'")


def test_strangers_get_no_answer(served: Served) -> None:
    body = {"inputs": inputs_of(served)}
    assert served.ask("/api/predict", body, host="evil.example")[0] == 400
    assert served.ask("/api/predict", body, kind="text/plain")[0] == 400
    assert served.ask("/api/feedback", {"given": {}, "right": ""}, kind="text/plain")[0] == 400
    assert not served.kept.exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([], "a JSON object"),
        ({"inputs": []}, "inputs is a list"),
        ({"inputs": ["x"] * 257}, "inputs is a list"),
        ({"inputs": [7]}, "input 0"),
        ('{"inputs": ["' + "x" * MOST_BYTES + '"]}', "bytes"),
    ],
)
def test_a_wrong_request_gets_one_line(served: Served, body: object, words: str) -> None:
    status, _, text = served.ask("/api/predict", body)
    assert status == 400 and words in json.loads(text)["error"]


def test_corrections_can_be_trained_on(served: Served) -> None:
    """The recipe of the run reads them, as its own data."""
    run = served.loaded.run
    right, wrong = ("positive", "good") if run.labels else ("Ägnes", "Bernd")
    given = inputs_of(served)[0]
    for fault in (
        {"given": given},
        {"given": {"x": "y"}, "right": right},
        {"given": given, "right": wrong},
    ):
        assert served.ask("/api/feedback", fault)[0] == 400
    for answer in (right, "negative" if run.labels else ""):
        assert served.ask("/api/feedback", {"given": given, "right": answer})[0] == 200
    parts = f"dataset.parts={{train: {served.kept}, test: {served.kept}}}"
    no_path = ["dataset.path=null", "dataset.name=null", "dataset.validation_size=0"]
    recipe = load_recipe(run.folder / "recipe.yaml", [parts, *no_path])
    examples = data.load(recipe).parts["train"]
    assert len(examples) == 2 and set(given.values()) <= {
        getattr(examples[0], name, "") for name in given
    }
    served.kept.unlink()


def test_the_command_names_what_is_missing(tmp_path: Path) -> None:
    for words in ([str(tmp_path)], [str(RUNS_0_1_0 / "head"), "--feedback", str(tmp_path)]):
        result = CliRunner().invoke(command, ["serve", *words])
        assert isinstance(result.exception, UserError) or result.exit_code == 2
