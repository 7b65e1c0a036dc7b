"""What users do with the Hub, each in a process of their own (`user.asks`)."""

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama_peft.export import retry
from llama_peft.run_folder import layout, self_check
from tests.support import runs

KINDS: dict[str, dict[str, Any]] = {
    "classification": {"lora": {"r": 2}},
    "extractive_qa": {"lora": {"r": 2}},
    "generative_qa": {"lora": {"r": 2}},
    "classification-head": {"head": {"layer": 2}},
    "classification-inner": {"lora": {"r": 2}, "head": {"layer": 2}},
    "extractive_qa-head": {},
}
"""Runs by name; the task is what stands before the dash."""


def recipe_of(kind: str, base: str, folder: Path) -> Any:
    from llama_peft.recipe import validate

    task = kind.split("-")[0]
    values = {
        "name": kind,
        "task": task,
        "model": {"model_name_or_path": base, "dtype": "float32"},
        "quantization": {"load_in_4bit": False},
        "dataset": {
            "path": "tiny",
            "name": "reviews" if task == "classification" else "passages",
            "parts": {"train": 24, "validation": 8, "test": 16},
        },
        "train": {
            "use_cpu": True,
            "max_steps": 2,
            "learning_rate": 0.05,
            "warmup_steps": 0,
            "output_dir": str(folder / kind),
        },
        "eval": {"max_new_tokens": 4},
        "hub": {"language": "en"},
        **KINDS[kind],
    }
    recipe, faults = validate(values)
    assert recipe is not None, faults
    return recipe


def push_all(base: str, folder: Path) -> dict[str, Any]:
    """Train a run of every kind and push it; returns its scores."""
    from eval import harness, report
    from eval.job import Job
    from llama_peft.export import push as hub
    from llama_peft.model import backbone
    from llama_peft.recipe import load_recipe
    from llama_peft.run_folder.record import read_record
    from llama_peft.training.fit import train

    found: dict[str, Any] = {}
    for kind in KINDS:
        recipe = recipe_of(kind, base, folder)
        run = train(recipe)
        if kind in ("classification", "extractive_qa"):
            harness.run(Job(recipe=recipe, model=base, output=run / "zero-shot"))
            harness.run(Job(recipe=recipe, model=str(run), output=run / "tuned"))
            report.write_html(run)
        with (
            counted(backbone.load) as loads,
            counted(read_record) as records,
            counted(load_recipe) as recipes,
        ):
            pushed = hub.push(run)
        found[pushed.repo_id] = {
            "base_loads": len(loads),
            "record_reads": records.count(run),
            "recipe_reads": recipes.count(run / layout.RECIPE),
            "kind": kind,
            "outputs": self_check.sample_scores(runs.load(run)),
            "bytes": sum(pushed.files.values()),
        }
    return found


@contextlib.contextmanager
def counted(function: Callable[..., Any]) -> Iterator[list[Path]]:
    """The first argument of every call of a function inside the block, wherever our modules have
    imported it.
    """
    name = function.__name__
    modules = [module for key, module in sys.modules.items() if key.startswith("llama_peft")]
    holders = [module for module in modules if vars(module).get(name) is function]
    assert holders
    calls = []

    def counting(*args: Any, **keys: Any) -> Any:
        calls.append(args[0])
        return function(*args, **keys)

    for module in holders:
        setattr(module, name, counting)
    try:
        yield calls
    finally:
        for module in holders:
            setattr(module, name, function)


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card, re.S)


def pull_all(names: list[str], where: Path) -> dict[str, Any]:
    """Load runs back in a folder, by name and as their cards say; returns their scores."""
    os.chdir(where)
    from huggingface_hub import hf_hub_download

    from llama_peft.run_folder import fetch

    found: dict[str, Any] = {}
    for name in names:
        folder = fetch.run_folder(name)
        run = runs.load(folder)
        card = Path(hf_hub_download(name, "README.md")).read_text("utf-8")
        space: dict[str, Any] = {}
        (code,) = blocks(card, "python")
        exec(code, space)
        found[name] = {
            "files": sorted(path.name for path in folder.rglob("*") if path.is_file()),
            "outputs": self_check.sample_scores(run),
            "library": library_scores(run, space["model"].eval()),
            "lines": len(code.splitlines()),
        }
    return found | {"said": commands(blocks(card_of(names, "classification"), "bash")[0])}


class SkippingClock:
    """A clock on which pauses take no time, so that a slow machine loses no try to a deadline."""

    skipped = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.skipped

    def sleep(self, seconds: float) -> None:
        self.skipped += seconds


def fail_all(plans: list[dict[str, Any]]) -> dict[str, Any]:
    """Push and pull with obstacles. Each plan is {"name", "run" or "fetch" or "train", settings}: what it returned or said."""
    import io

    from huggingface_hub import constants
    from huggingface_hub.utils import _http as client
    from safetensors.torch import load_file, save_file

    from llama_peft.__main__ import app
    from llama_peft.errors import UserError
    from llama_peft.export import push as hub
    from llama_peft.export.stage import Bundle
    from llama_peft.run_folder import fetch
    from llama_peft.run_folder.run import Run
    from llama_peft.system.files import sha256

    found: dict[str, Any] = {}
    stage = hub.stage

    def spoiled(run: Run, folder: Path) -> Bundle:
        """A copy that lost its head's weights on the way, and is sealed all the same."""
        made = stage(run, folder)
        path = folder / layout.HEAD
        save_file({name: 0 * value for name, value in load_file(path).items()}, path)
        files = {**made.run.record.files, layout.HEAD: sha256(path)}
        runs.write_record(folder, made.run.record.model_dump() | {"files": files})
        return made

    retry.time = client.time = SkippingClock()
    usual = os.environ["HF_TOKEN"]
    for plan in plans:
        os.environ["HF_TOKEN"] = plan.get("token", usual)
        hub.stage = spoiled if plan.get("spoiled") else stage
        constants.HF_HUB_OFFLINE = plan.get("offline", False)
        retry.SILENCE = plan.get("silence", 60.0)
        try:
            if "run" in plan:
                deadline = plan.get("deadline", 60.0)
                words = (Path(plan["run"]), plan["repo"], plan.get("private", True))
                url = hub.push(*words, deadline=deadline).commit_url
                found[plan["name"]] = url
            elif "train" in plan:
                out = io.StringIO()
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                    app(["train", *plan["train"]], standalone_mode=False)
                found[plan["name"]] = out.getvalue()
            else:
                found[plan["name"]] = str(fetch.run_folder(plan["fetch"]))
        except UserError as error:
            found[plan["name"]] = f"error: {error}"
    return found


def card_of(names: list[str], kind: str) -> str:
    from huggingface_hub import hf_hub_download

    name = next(name for name in names if name.endswith(kind))
    return Path(hf_hub_download(name, "README.md")).read_text("utf-8")


def library_scores(run: Any, model: Any) -> list[list[float]]:
    """The scores of the samples by the model that a card's lines load, in the form of
    `self_check.sample_scores`.
    """
    import torch

    from llama_peft.tokens import spans

    rows = []
    for example in self_check.samples(run.recipe):
        ids = self_check.input_ids(run.encoder, run.recipe, example)
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([ids]))
        if run.recipe.kind.finds_spans:
            window = next(spans.windows(run.encoder, example, 512, 128))
            rows.append(torch.cat([output.start_logits[0], output.end_logits[0]]).tolist())
            assert len(window.input_ids) == len(ids)
        else:
            last = output.logits[0] if run.recipe.kind.has_labels else output.logits[0, -1]
            rows.append(last.tolist())
    return rows


def commands(block: str) -> list[str]:
    """Run a card's commands as they stand, in this process; what each printed."""
    import io

    from eval.__main__ import app as eval_app
    from llama_peft.__main__ import app

    programs = {"llama-peft": app, "llama-eval": eval_app}
    said = []
    for line in block.splitlines():
        program, *words = shlex.split(line)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            programs[program](words, standalone_mode=False)
        said.append(out.getvalue())
    return said
