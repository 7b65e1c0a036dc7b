"""Files tell what a model is, and what does not fit the task is refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.predictors.recognise import identify, on_base, read_adapter, recognise
from llama_peft.errors import UserError
from llama_peft.inference.ask import load_run
from llama_peft.recipe import Recipe
from llama_peft.training.fit import train
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
    evaluate(texts, unnamed, tmp_path / "unnamed-out")
    (said,) = [one.getMessage() for one in caplog.records if "have no names" in one.getMessage()]
    assert "taken by their numbers: 0 is negative, 1 is positive" in said
    for number, changes in enumerate(
        (
            {"problem_type": "multi_label_classification"},
            {"problem_type": "regression"},
            {"id2label": {0: "LABEL_0"}},
        )
    ):
        other = classifier(tmp_path / f"other-{number}", **changes)
        with pytest.raises(UserError, match=r"says problem_type '.*set task"):
            identify(str(other), texts)
    with pytest.raises(
        UserError, match=r"lacks weights, which would be random: 1, first score.weight"
    ):
        headless = tmp_path / "headless"
        shutil.copytree(base, headless)
        evaluate(texts, headless, tmp_path / "out", kind="classifier")


def test_a_base_of_another_machine_can_be_named(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    """An adapter and a run hold the folder in which they were trained."""
    recipe = make_recipe("generative_qa", base, lora={}, eval={"max_new_tokens": 2})
    theirs = adapter(tmp_path / "adapter", base, *heads(base)["generative_qa"])
    here = evaluate(recipe, theirs, tmp_path / "here")
    file = theirs / "adapter_config.json"
    there = {"base_model_name_or_path": "/home/other/llama"}
    file.write_text(json.dumps(json.loads(file.read_text()) | there))
    with pytest.raises(UserError, match=r"this names a base.*--base:\n.*/home/other/llama"):
        identify(str(theirs), recipe)
    named = evaluate(recipe, theirs, tmp_path / "there", base=str(base))
    assert named.results == here.results and named.config.model == str(base)


def test_a_run_is_opened_on_a_base_that_moved(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    before, after, changed = (tmp_path / name for name in ("before", "after", "changed"))
    shutil.copytree(base, before)
    recipe = make_recipe(
        "classification", before, lora={"r": 2}, train={"output_dir": str(tmp_path / "run")}
    )
    run = train(recipe)
    before.rename(after)
    shutil.copytree(after, changed)
    (changed / "config.json").write_text((changed / "config.json").read_text() + " ")
    with pytest.raises(UserError, match=rf"{run}: this names a base.*--base"):
        evaluate(recipe, run, tmp_path / "out")
    with pytest.raises(UserError, match="trained on another"):
        evaluate(recipe, run, tmp_path / "out", base=str(changed))
    assert evaluate(recipe, run, tmp_path / "out", base=str(after)).results
    (reply,) = load_run(run, str(after)).predict(["A fine film."])
    assert reply.prediction in ("negative", "positive")
