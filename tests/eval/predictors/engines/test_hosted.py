"""A model on a server as a rung of a ladder."""

from pathlib import Path

import pytest

from eval.ladder import steps
from eval.ladder.verdict import judge
from eval.predictors.engines import client
from llama_peft.ladder import walk
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.run_folder.ladder import finished
from llama_peft.run_folder.ladder.rungs import measurements
from tests.support.completions.server import Completions

from .conftest import NAME


def with_hosted(asked: Recipe, folder: Path, base: Path) -> Recipe:
    return asked.changed(
        ladder={"hosted": NAME, "rungs": ["no-answer", "hosted"], "forgetting": False},
        model={"model_name_or_path": str(base)},
        train={"output_dir": str(folder)},
    )


def test_a_hosted_model_is_the_last_rung(
    server: Completions,
    asked: Recipe,
    make_base: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert callable(make_base)
    recipe = with_hosted(asked, tmp_path / "run", make_base())
    walk.run(recipe, steps)
    assert "hosted is left out: --engine openai needs the address of a server" in caplog.text
    monkeypatch.setenv(client.URL, server.url)
    run = walk.run(recipe, steps)
    verdict = judge(run)
    (table, *_) = verdict.tables
    assert [row.name for row in table.rows] == ["no answer always", f"{NAME}, hosted"]
    (hosted,) = (one for one in measurements(recipe, 8) if one.rung == "hosted")
    known = finished.read_finished(run)
    assert known is not None
    key = known.results[hosted.results].key
    for address, is_finished in (
        (server.url, True),
        (f"{server.url}/", True),
        ("http://127.0.0.1:9/v1", False),  # another server may have another model
        ("", True),  # what is finished needs no server
    ):
        monkeypatch.setenv(client.URL, address)
        assert finished.is_finished(hosted, key) == is_finished, address
    engine = verdict.climbed.rungs[1].first.config.engine
    assert engine and engine.served_model == NAME


def test_a_recipe_without_it_keeps_its_text(asked: Recipe, tmp_path: Path) -> None:
    assert "hosted" not in dump_recipe(asked)
    recipe = with_hosted(asked, tmp_path, tmp_path)
    (hosted,) = (one for one in measurements(recipe, 8) if one.rung == "hosted")
    assert (hosted.recipe.model.model_name_or_path, hosted.results) == (NAME, "ladder/hosted")
    assert not hosted.is_trained and hosted.seed is None
