"""Runs of version 0.1.0, served while the tests of a file run."""

import shutil
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from llama_peft.inference.ask import load
from llama_peft.ladder.evaluation import find_evaluation
from llama_peft.run_folder.run import open_run
from llama_peft.serving.app import make_app
from llama_peft.serving.feedback import Feedback
from tests.serving.served import Served
from tests.support.paths import RUNS_0_1_0


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
