"""Whatever would end a run later is said at once, in one line each, before any download or training."""

import contextlib
import io
import os
import re
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest

from llama_peft import data
from llama_peft.__main__ import app
from llama_peft.doctor import examine
from llama_peft.errors import UserError
from llama_peft.model import preflight, quantize, room
from llama_peft.model.hub import Weights
from llama_peft.recipe import load_recipe
from llama_peft.rehearsal.base import SHAPES
from llama_peft.tiny import MODEL_DIR
from tests.support.hub import user
from tests.support.hub.server import Fault, Hub, serve

WRITER, READER, NOBODY = ("hf_" + word * 3 for word in ("writesalot", "onlyreading", "isnobodys0"))
PUSH = "hub.push_to_hub=true"
CASES: dict[str, dict[str, Any]] = {
    "fine": {"base": "open/small"},
    "no token": {"base": "meta/gated", "token": ""},
    "bad token": {"base": "open/small", "token": NOBODY},
    "not accepted": {"base": "meta/gated"},
    "no write right": {"base": "open/small", "token": READER, "words": [PUSH]},
    "cache full": {"base": "open/small", "disk": 200_000_000},
    "disk full": {"base": "tiny", "disk": 1_000_000},
    "read only": {"base": "tiny", "writable": False},
    "bitsandbytes missing": {"base": "open/small", "packing": "missing"},
    "bitsandbytes wrong": {"base": "open/small", "packing": "wrong"},
    "driver": {"base": "open/large"},
    "memory": {"base": "open/small", "memory": 50_000_000},
    "rows": {"base": "tiny", "memory": 700_000_000},
    "refused": {"base": "open/refused"},
    "silent": {"base": "open/silent", "words": [PUSH]},
    "several": {"base": "meta/gated", "token": READER, "words": [PUSH], "disk": 1_000_000},
}
CONFIG = (MODEL_DIR / "config.json").read_bytes()
OLD = preflight.Machine(
    system="Linux", torch="2.13.0+cu130", cuda="13.0", driver_cuda=12040, nvidia=True
)


class Ended(Exception):
    """Nothing has blocked: the data would be loaded now."""


def ends(*_: object) -> None:
    raise Ended


def walk_all(cases: dict[str, dict[str, Any]], home: Path, runs: Path) -> list[Any]:
    """What each case is told and after how many seconds, and what the doctor says in the end."""
    import bitsandbytes.functional as packing

    os.environ["HOME"] = str(home)
    preflight.machine = lambda: OLD
    plain = room._host_memory, shutil.disk_usage, packing.quantize_4bit, os.access
    load, told = data.load, list[Any]()

    def wrong(*args: Any, **keys: Any) -> tuple[Any, Any]:
        packed, state = plain[2](*args, **keys)
        return packed ^ 0x77, state

    for name, case in cases.items():
        os.environ["HF_TOKEN"] = case["token"]
        room._host_memory, shutil.disk_usage, packing.quantize_4bit, os.access = plain
        sys.modules["bitsandbytes"] = bitsandbytes
        quantize.packing_trouble.cache_clear()
        if "memory" in case:
            room._host_memory = lambda case=case: case["memory"]
        if "disk" in case:
            shutil.disk_usage = lambda folder, case=case: SimpleNamespace(free=case["disk"])
        if not case.get("writable", True):
            os.access = lambda path, mode: False  # the bits of a folder do not bind root
        if case.get("packing") == "missing":
            sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
        if case.get("packing") == "wrong":
            packing.quantize_4bit = wrong
        data.load = load if name == "rows" else ends
        words = ["run", "tiny-sst2", f"model.model_name_or_path={case['base']}", *case["words"]]
        words.append(f"train.output_dir={runs}/{name.replace(' ', '-')}")
        started = time.monotonic()
        try:
            app(words, standalone_mode=False)
            said = ["it ran"]
        except Ended:
            said = ["nothing blocks"]
        except UserError as error:
            said = [str(line) for line in error.args]
        told.append([name, said, time.monotonic() - started])
    room._host_memory, shutil.disk_usage, packing.quantize_4bit, os.access = plain
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = app(["doctor"], standalone_mode=False)
    return [told, f"{out.getvalue()}{code}"]


@pytest.fixture(scope="module")
def hub() -> Hub:
    found = Hub()
    weights: dict[str, bytes | int] = {"config.json": CONFIG, "model.safetensors": 300_000_000}
    for name in ("open/small", "open/refused", "open/silent"):
        found.add(name, weights)
    found.add("meta/gated", weights, gated=True)
    found.add("open/large", weights | {"model.safetensors": 3_000_000_000})
    found.users[WRITER] = {"name": "me", "role": "write"}
    found.users[READER] = {"name": "me", "role": "read"}
    found.faults = [
        Fault("open/refused", how="reset", times=99),
        Fault("open/silent", how="hang", times=99),
    ]
    return found


@pytest.fixture(scope="module")
def said(
    hub: Hub, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, tuple[list[str], float]], str]:
    """What each case was told and after how many seconds, and what the doctor says in the end."""
    cases = {name: {"token": WRITER, "words": [], **case} for name, case in CASES.items()}
    folder = tmp_path_factory.mktemp("doctor")
    home, runs = folder / "home", folder / "runs"
    with serve(hub):
        (told, report), _ = user.asks(
            lambda: walk_all(cases, home, runs), hub.endpoint, home, WRITER
        )
    assert not [path for path in runs.rglob("*") if path.is_file()]
    return {name: (lines, seconds) for name, lines, seconds in told}, report


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        ("no token", ["meta/gated: its licence must be accepted first: open .* and log in with"]),
        ("bad token", ["open/small: the Hub does not know your token: log in again"]),
        ("not accepted", [r"meta/gated: its licence must be accepted first: open \S+; or use an"]),
        ("no write right", ["your Hub token may only read; create one that may write"]),
        ("cache full", [r"open/small: the download takes 0\.3 GB, but .* 0\.2 GB free: make room"]),
        ("disk full", [r"the run takes 0\.1 GB of disk, but 1\.000 MB are free: make room"]),
        ("read only", ["runs/read-only: you may not write into .*: set train.output_dir"]),
        ("bitsandbytes missing", ["bitsandbytes does not work here .*: install it again with"]),
        ("bitsandbytes wrong", ["bitsandbytes does not work here .a 4-bit product is off by"]),
        (
            "driver",
            [r"needs CUDA 13\.0, but the driver of NVIDIA knows CUDA 12\.4 at most: update"],
        ),
        ("memory", [r"its weights take 0\.1 GB of memory, but 0\.1 GB are free: close other"]),
        ("refused", ["open/refused: the Hub does not answer"]),
        ("silent", ["open/silent: the Hub does not answer"]),
        ("several", ["its licence must be accepted", "MB are free: make room", "may only read"]),
    ],
)
def test_each_blocker_says_what_to_do_in_seconds(
    said: tuple[dict[str, tuple[list[str], float]], str], name: str, problems: list[str]
) -> None:
    (first, *found), seconds = said[0][name]
    assert first == "tiny-sst2 cannot run here:" and len(found) == len(problems), found
    for line, problem in zip(found, problems, strict=True):
        assert re.search(problem, line) and "\n" not in line, line
    assert seconds < 30


def test_nothing_is_refused_that_can_run(
    said: tuple[dict[str, tuple[list[str], float]], str], hub: Hub
) -> None:
    assert said[0]["fine"][0] == ["nothing blocks"]
    assert not [path for path in hub.asked if "safetensors" in path]


def test_a_training_that_cannot_fit_is_refused_before_the_first_rung(
    said: tuple[dict[str, tuple[list[str], float]], str],
) -> None:
    """It is known only with the data: the longest row alone may be too much."""
    (line,), _ = said[0]["rows"]
    assert re.search(
        "training on .* takes at least .* of memory, as estimated from .* are free", line
    )


def test_the_doctor_says_what_blocks_first_and_nothing_private(
    said: tuple[dict[str, tuple[list[str], float]], str],
) -> None:
    report = said[1]
    first, *lines = report.splitlines()
    assert first.startswith("blocked: ") and "update the driver" in first and lines[-1] == "1"
    assert (
        "token              valid, may only read" in lines and "Hub                answers" in lines
    )
    assert "meta-llama/Llama-3.2-1B: no such folder here and no such model" in report
    assert re.search(r"\nsst2 +no +no such folder .*\(from its published shape: ", report)
    assert re.search(
        "tiny-sst2 +yes +fits: .* GB at most, .* GB are free; (not measured|trained here)", report
    )
    assert READER not in report and str(Path.home()) not in report and "/tmp" not in report


@pytest.mark.parametrize("name", ["sst2", "gemma-squad"])
def test_a_base_that_cannot_be_asked_for_is_judged_by_its_published_shape(name: str) -> None:
    recipe = load_recipe(name, ["train.use_cpu=true", "train.per_device_train_batch_size=1"])
    fit = examine._fit(
        recipe, Weights(["its licence must be accepted first: open the page"]), SHAPES
    )
    assert not fit.fits, "not before it is accepted"
    size = r"[\d.]+ GB at most, [\d.]+ GB are free"
    judged = rf"\(from its published shape: (fits|does not fit).*: {size}\)"
    assert re.fullmatch(f"its licence must be accepted first {judged}", fit.here), fit.here
    other = recipe.changed(model={"model_name_or_path": "some/other"})
    unknown = examine._fit(other, Weights(["closed: ask"]), SHAPES)
    assert unknown.here == "closed"
