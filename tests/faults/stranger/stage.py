"""A run on the embedded base, evaluated and with its report: what a push needs. And forged records."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llama_peft.recipe import dump_recipe, load_recipe
from llama_peft.run_folder.layout import RECIPE
from llama_peft.system.files import with_sum
from tests.faults.models.damaged import reseal
from tests.faults.shop import Shop
from tests.support import small
from tests.support.hub.server import Hub

from .case import Scene


def pushable(shop: Shop) -> Path:
    """The run, made when it is first asked for."""
    folder = shop.root / "pushable"
    run = folder / "runs/run"
    if not (run / "report.html").is_file():
        recipe = small.make_recipe(
            "classification", "tiny", lora={"r": 2},
            train={"output_dir": str(run), "max_length": 64, "per_device_train_batch_size": 4},
        )  # fmt: skip
        words = shop.write(recipe, folder)
        for program, line in (
            ("llama_peft", words),
            ("eval", ["run", "--task", str(run / RECIPE), "--output", str(run / "zero-shot")]),
            ("eval", ["run", "--model", str(run), "--output", str(run / "tuned")]),
            ("eval", ["html", str(run)]),
        ):
            done = shop.run(line, program)
            assert done.code == 0, done.text
    return run


def evaluated(scene: Scene) -> Path:
    """A copy of that run for a case."""
    return Path(shutil.copytree(pushable(scene.shop), scene.run))


def change_json(
    path: Path, change: Callable[[dict[str, Any]], object], summed: bool = True
) -> None:
    """Change the values of a JSON file; whoever does so can write the sum that belongs to them."""
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(dict(with_sum(values)) if summed else values, ensure_ascii=False))


def change_recipe(run: Path, change: Mapping[str, Mapping[str, Any]]) -> None:
    """Change keys of a run's recipe, and write its sum into the record."""
    recipe = load_recipe(run / RECIPE).changed(**change)
    (run / RECIPE).write_text(dump_recipe(recipe), "utf-8")
    reseal(run)


def change_adapter(run: Path, **keys: Any) -> None:
    """Change keys of a run's adapter_config.json, and write its sum into the record."""
    change_json(run / "adapter/adapter_config.json", lambda v: v.update(keys), summed=False)
    reseal(run)


def use_hub(hub: Hub, cache: Path, token: str) -> None:
    """In a child: the client asks `hub`. Its constants are read on import."""
    from huggingface_hub import constants

    constants.ENDPOINT = hub.endpoint
    constants.HUGGINGFACE_CO_URL_TEMPLATE = (
        hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    constants.HF_HUB_OFFLINE = False
    constants.HF_HUB_DISABLE_XET = True
    constants.HF_HUB_CACHE = str(cache)
    os.environ["HF_TOKEN"] = token
