"""The notebooks run as they stand, on the embedded model: only their settings are replaced by smaller ones."""

import json
import os
from pathlib import Path

import pandas
import pytest

from llama_peft import data
from llama_peft.recipe import RECIPES, load_recipe
from tests.support import forked

NOTEBOOKS = sorted((RECIPES / "notebooks").glob("*.ipynb"))
_SMALL = [
    "dataset.parts={train: 24, validation: 8, test: 12}",
    "train.max_steps=2",
    "ladder.rungs=[zero-shot, tuned]",
    "ladder.forgetting=false",
]
SETTINGS: dict[str, dict[str, object]] = {
    "sst2": {"RECIPE": "tiny-sst2", "OVERRIDES": _SMALL},
    "squad": {"RECIPE": "tiny-squad", "OVERRIDES": _SMALL},
    "own-data": {
        "FILE": "tickets.csv", "TEXT": "body", "LABEL": "team", "BASE": "tiny", "OVERRIDES": _SMALL[1:],
    },
}  # fmt: skip


def cells(notebook: Path) -> list[tuple[list[str], str]]:
    """Return the tags and the text of each cell of code."""
    found = json.loads(notebook.read_text("utf-8"))["cells"]
    code = [cell for cell in found if cell["cell_type"] == "code"]
    return [(cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in code]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    reviews = load_recipe("tiny-sst2", ["dataset.parts={train: 60, validation: 8, test: 8}"])
    rows = [
        {"body": one.text, "team": "service" if one.label else "sales"}
        for one in data.load(reviews).parts["train"]
        if isinstance(one, data.TextExample)
    ]
    pandas.DataFrame(rows).to_csv(tmp_path / "tickets.csv", index=False)

    def run() -> None:
        os.chdir(tmp_path)
        shown: dict[str, object] = {"display": print}
        for tags, text in cells(notebook):
            if "install" in tags:
                continue
            names = dict(shown)
            exec(compile(text, notebook.name, "exec"), shown)
            if "parameters" in tags:
                assert (
                    shown.keys() - names.keys() - {"__builtins__", "__annotations__"}
                    == SETTINGS[notebook.stem].keys()
                )
                shown.update(SETTINGS[notebook.stem])

    forked.import_libraries()
    assert forked.ended(forked.fork(run, tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert "Not measured: " in said and "Figure(" in said


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(notebook: Path) -> None:
    found = json.loads(notebook.read_text("utf-8"))
    assert all(not cell.get("outputs") for cell in found["cells"])
    assert [tags for tags, _ in cells(notebook)][:2] == [["install"], ["parameters"]]
