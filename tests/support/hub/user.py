"""A user of a loopback Hub, in a forked process: it shares imported libraries with the tests, and nothing else."""

import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import forked


def asks(work: Callable[[], object], endpoint: str, home: Path, token: str = "") -> tuple[Any, str]:
    """What `work` returns to a user of the Hub at `endpoint`, and all that it printed.

    home: the user's cache, which is empty.
    """
    forked.import_libraries()
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()

    def errand() -> None:
        _become(endpoint, home, token)
        print("\n" + json.dumps(work()))

    code = forked.ended(forked.fork(errand, home / "log"))
    said = (home / "log").read_text("utf-8")
    assert code == 0, said
    return json.loads(said.splitlines()[-1]), said


def _become(endpoint: str, home: Path, token: str) -> None:
    """Be a process without a GPU that begins with these settings: the client reads them when it is imported."""
    import torch
    from huggingface_hub import constants, hf_api

    os.environ.update(
        HF_ENDPOINT=endpoint,
        HF_HUB_OFFLINE="0",
        HF_HUB_DISABLE_XET="1",
        HF_HOME=str(home),
        HF_TOKEN=token,
        CUDA_VISIBLE_DEVICES="",
    )
    importlib.reload(constants)
    hf_api.api.endpoint = constants.ENDPOINT
    torch.cuda.is_available = lambda: False
