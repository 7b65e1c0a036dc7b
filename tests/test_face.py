"""The public face does what a Python user expects: order kept, one kind of error, the sealed threshold, a model that stays loaded."""

import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

import eval as evaluation
import llama_peft
from llama_peft import UserError, load_recipe, load_run, predict, train
from llama_peft.data import load
from llama_peft.model import backbone
from llama_peft.system.quiet import in_python
from tests.support.paths import ROOT, RUNS_0_1_0

CLASSIFIER, SPAN, GENERATIVE = (RUNS_0_1_0 / name for name in ("classifier", "span", "generative"))


def recorded(run: Path) -> dict[str, dict[str, Any]]:
    """The lines of a run's own predictions, by id."""
    lines = (run / "tuned/predictions.jsonl").read_text("utf-8").splitlines()
    return {line["id"]: line for line in map(json.loads, lines)}


def test_labels_come_in_the_order_of_the_texts() -> None:
    """Longest first, as it computes, would put one text's label beside another text."""
    lines = list(recorded(CLASSIFIER).values())
    random.Random(0).shuffle(lines)
    assert [len(line["text"]) for line in lines] != sorted(len(line["text"]) for line in lines)
    replies = predict(CLASSIFIER, [line["text"] for line in lines])
    assert [reply.prediction for reply in replies] == [line["prediction"] for line in lines]
    for reply, line in zip(replies, lines, strict=True):
        assert list(reply.probabilities.values()) == pytest.approx(line["probabilities"], abs=1e-4)


@pytest.mark.parametrize("run", [SPAN, GENERATIVE], ids=lambda run: run.name)
def test_answers_are_those_of_the_run_s_own_evaluation(run: Path) -> None:
    """With the threshold that the run was evaluated with; 0.5 would answer otherwise."""
    lines = recorded(run)
    examples = load(load_recipe(run / "recipe.yaml")).parts["test"]
    asked = [{"question": e.question, "context": e.context} for e in examples]  # type: ignore[union-attr]
    replies = predict(run, asked)
    for example, reply in zip(examples, replies, strict=True):
        assert reply.prediction == lines[example.id]["prediction"]
    if run == SPAN:
        fitted = json.loads((run / "threshold.json").read_text())["no_answer_threshold"]
        between = [r for r in replies if (fitted < (r.no_answer_probability or 0) <= 0.5)]
        assert between, "no example tells the fitted threshold from 0.5"


def test_a_model_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    plain = backbone.load
    monkeypatch.setattr(backbone, "load", lambda *a, **k: loads.append(1) or plain(*a, **k))
    first = predict(GENERATIVE, [("Who?", "Ada built it.")])
    again = predict(str(GENERATIVE), [("Who?", "Ada built it.")])
    held = load_run(GENERATIVE)
    assert first == again == held.predict([("Who?", "Ada built it.")]) and len(loads) <= 1


def test_tables_and_lists_give_the_same() -> None:
    texts = ["A warm film.", "Not worth the time, and far too long for what it has to say.", "Ok."]
    expected = predict(CLASSIFIER, texts)
    rows = [{"text": text, "label": "positive"} for text in texts]
    for table in (
        rows,
        tuple(texts),
        pandas.DataFrame(rows),
        pandas.Series(texts),
        datasets.Dataset.from_list(rows),
    ):
        assert predict(CLASSIFIER, table) == expected


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: predict(CLASSIFIER, "one text"), "takes a list of texts, not one str"),
        (lambda: predict(CLASSIFIER, ["a", ["b", "c"]]), "input 1 is not a text"),
        (lambda: predict(CLASSIFIER, [""]), "input 0 is not a text"),
        (lambda: predict(CLASSIFIER, None), "takes a list of texts, not one NoneType"),
        (lambda: predict(SPAN, ["Who?"]), "a question needs its passage"),
        (lambda: predict(SPAN, [{"question": "Who?"}]), "the context of input 0 is not a text"),
        (lambda: predict(SPAN, {"question": "Who?", "context": "x"}), "a list of questions"),
        (lambda: predict(5, ["a"]), "a run is named by its folder"),
        (lambda: predict("/nowhere", ["a"]), "no finished run here"),
        (lambda: train("no-such-recipe"), "no-such-recipe"),
        (lambda: train(7), "recipe"),
        (lambda: train({"task": "classification"}), "dataset"),
        (lambda: train("tiny-sst2", data={"a": []}), "does not name parts"),
        (lambda: load_recipe({"task": 1}), "task"),
        (lambda: evaluation.evaluate(), "what to"),
        (lambda: evaluation.evaluate("/nowhere"), "/nowhere"),
        (lambda: evaluation.compare(["/nowhere"]), "/nowhere"),
    ],
)
def test_every_mistake_is_one_user_error(call: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        call()
    assert "  --" not in str(error.value)


def test_advice_names_arguments_of_python() -> None:
    assert in_python("add --fresh to train again") == "add fresh=True to train again"
    assert in_python("name another --output, or --hub-id") == "name another output, or hub_id"
    command = "run: llama-eval run --model x --output y; or add --fresh"
    assert in_python(command) == "run: llama-eval run --model x --output y; or add fresh=True"


def test_a_refused_folder_speaks_python(tmp_path: Path) -> None:
    recipe = {
        **SMALL,
        "train": {"use_cpu": True, "max_steps": 1, "output_dir": str(tmp_path / "r")},
    }
    train(recipe)
    with pytest.raises(UserError, match="fresh=True") as error:
        train(recipe, overrides=["train.learning_rate=0.5"])
    assert "--fresh" not in str(error.value)


SMALL: dict[str, Any] = {
    "task": "classification",
    "name": "small",
    "model": {"model_name_or_path": "tiny", "dtype": "float32"},
    "quantization": {"load_in_4bit": False},
    "dataset": {
        "path": "tiny",
        "name": "reviews",
        "parts": {"train": 24, "validation": 8, "test": 8},
    },
}


def test_rows_from_python_train_and_evaluate(tmp_path: Path) -> None:
    """A DataFrame in, a run and its scores out; the recipe is a dict, paths are text."""
    rows = [
        {"body": f"{word} film number {i}", "team": team}
        for i in range(20)
        for word, team in (("lovely", "up"), ("awful", "down"))
    ]
    frame = pandas.DataFrame(rows)
    recipe = {
        **SMALL,
        "dataset": {"columns": {"text": "body", "label": "team"}},
        "train": {"use_cpu": True, "max_steps": 2, "output_dir": str(tmp_path / "run")},
    }
    run = train(recipe, data=frame)
    assert run == tmp_path / "run" and load_run(str(run)).run.labels == ("down", "up")
    results = evaluation.evaluate(run, data=frame, output=str(tmp_path / "out"))
    (scores,) = results.results.values()
    assert results.n_samples[next(iter(results.results))].original == 40 and "accuracy" in scores


def test_a_recipe_is_a_name_a_path_a_dict_or_a_recipe(tmp_path: Path) -> None:
    whole = load_recipe("tiny-sst2", ["train.max_steps=3"])
    assert whole.train.max_steps == 3
    path = tmp_path / "mine.yaml"
    shutil.copy(ROOT / "recipes/tiny-sst2.yaml", path)
    assert load_recipe(str(path)).task == load_recipe(path).task == whole.task
    assert load_recipe(whole) == whole
    assert load_recipe(whole, ["train.max_steps=4"]).train.max_steps == 4


def test_libraries_are_quiet_and_left_as_they_were(tmp_path: Path) -> None:
    """In a process of its own, as in a notebook: no load report, no warning, no bar."""
    code = (
        "import logging, warnings\n"
        "from llama_peft import predict\n"
        f"print(predict({str(CLASSIFIER)!r}, ['A film.'])[0].prediction)\n"
        "print(logging.getLogger('huggingface_hub').level, logging.getLogger().handlers)\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TRANSFORMERS")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.splitlines()[1] == f"{logging.NOTSET} []"


def test_the_face_is_light() -> None:
    heavy = {"torch", "transformers", "datasets", "pydantic", "yaml", "peft"}
    code = f"import sys, llama_peft, eval; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    assert set(llama_peft.__all__) >= {"load_recipe", "train", "predict", "load_run"}
