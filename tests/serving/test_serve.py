"""The page of a run: it says what the run says, keeps corrections that train, and answers nobody else."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner

from llama_peft import data
from llama_peft.__main__ import app as command
from llama_peft.errors import UserError
from llama_peft.inference.ask import LoadedRun, Reply, load
from llama_peft.ladder.evaluation import find_evaluation
from llama_peft.recipe import load_recipe
from llama_peft.run_folder.run import open_run
from llama_peft.serving.app import MOST_BYTES, make_app, shown
from llama_peft.serving.feedback import Feedback
from tests.support.paths import RUNS_0_1_0


@dataclass(frozen=True)
class Served:
    """A run that is served on a port of this machine."""

    loaded: LoadedRun
    port: int
    kept: Path

    def ask(
        self,
        path: str,
        body: object = None,
        *,
        host: str = "127.0.0.1",
        kind: str = "application/json",
    ) -> tuple[int, dict[str, str], str]:
        """Return the status, the headers and the text of a reply; with a body it is posted."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        text = body if isinstance(body, str) else json.dumps(body)
        headers = {"Host": f"{host}:{self.port}", "Content-Type": kind}
        method, sent = ("GET", None) if body is None else ("POST", text)
        connection.request(method, path, sent, headers)
        reply = connection.getresponse()
        return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read().decode()


@pytest.fixture(scope="module", params=["classifier", "span"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served") / request.param
    shutil.copytree(RUNS_0_1_0 / request.param, folder)
    run = open_run(folder)
    loaded, kept = load(run), folder / "feedback.jsonl"
    app = make_app(loaded, find_evaluation().untouched(run), Feedback(run=run, place=kept))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Served(loaded, server.servers[0].sockets[0].getsockname()[1], kept)
    server.should_exit = True
    thread.join()


INPUTS: dict[str, list[dict[str, str]]] = {
    "text": [{"text": "A warm film."}, {"text": "Not worth <b>the time</b>."}],
    "question": [{"question": "Who wrote it?", "context": "Ägnes 😀 wrote it in May."}],
}


def inputs_of(served: Served) -> list[dict[str, str]]:
    return INPUTS["text" if served.loaded.run.labels else "question"]


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
