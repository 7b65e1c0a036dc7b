"""Files tell what a model is, and what does not fit the task is refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.predictors.recognise import identify, on_base, read_adapter, recognise
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from tests.support.eval.checkpoints import adapter, classifier, heads, reader
from tests.support.eval.jobs import evaluate


def test_files_tell_what_a_model_is(base: Path, tmp_path: Path) -> None:
    assert recognise("tiny", "main") == "causal"
    assert recognise(str(base), "main") == "causal"
    assert recognise(str(classifier(tmp_path / "c")), "main") == "classifier"
    assert recognise(str(reader(tmp_path / "r")), "main") == "reader"
    model, kind = heads(base)["generative_qa"]
    folder = adapter(tmp_path / "a", base, model, kind)
    assert recognise(str(folder), "main") == "adapter"
    shutil.copy(base / "config.json", folder)
    with pytest.raises(UserError, match=r"both PEFT adapter and causal language model.*--kind"):
        recognise(str(folder), "main")
    (folder / "adapter_config.json").unlink()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"do not say what it is.*--kind run.adapter.causal"):
        recognise(str(folder), "main")


def test_an_adapter_names_its_bases_revision(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "adapter", base, *heads(base)["generative_qa"])
    assert read_adapter(folder).revision == "main"
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"revision": "abc"}))
    found = read_adapter(folder)
    recipe = on_base(make_recipe("generative_qa", base, lora={}), found.base, found.revision)
    assert (recipe.model.model_name_or_path, recipe.model.revision) == (str(base), "abc")


def test_what_does_not_fit_is_refused_in_one_line(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts, spans = make_recipe("classification", base), make_recipe("extractive_qa", base)
    theirs = classifier(tmp_path / "c")
    with pytest.raises(UserError, match="the task is extractive_qa"):
        identify(str(theirs), spans)
    named = classifier(tmp_path / "named", id2label={0: "spam", 1: "ham"})
    with pytest.raises(UserError, match=r"its labels are spam, ham.*negative, positive"):
        evaluate(texts, named, tmp_path / "out")
    unnamed = classifier(tmp_path / "unnamed", id2label={0: "LABEL_0", 1: "LABEL_1"})
    caplog.set_level("INFO")
    evaluate(texts, unnamed, tmp_path / "unnamed-out")
    assert (
        "have no names, so they are matched by number: 0 is negative, 1 is positive" in caplog.text
    )
    with pytest.raises(
        UserError, match=r"lacks weights, which would be random: 1, first score.weight"
    ):
        headless = tmp_path / "headless"
        shutil.copytree(base, headless)
        evaluate(texts, headless, tmp_path / "out", kind="classifier")
