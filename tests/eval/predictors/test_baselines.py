"""Baselines: floors and cheap models on the same examples as any other model, without a base and without torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from eval import harness
from eval.job import make_job
from eval.predictors.baselines import most_frequent
from eval.predictors.recognise import identify
from eval.results import main_metric
from llama_peft import load_recipe, tiny
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import BASELINES, EVALUATION
from llama_peft.run_folder.results import read_results
from tests.support.eval.jobs import evaluate, job_for, lines_of

QUIET = """
import json, sys
from eval import evaluate
for model, task in json.loads(sys.argv[1]):
    evaluate(model, task=task, output=sys.argv[2] + "/" + model, limit=150)
assert "torch" not in sys.modules
"""


def test_no_baseline_imports_torch(tmp_path: Path) -> None:
    tasks = dict.fromkeys(BASELINES, "tiny-sst2") | {
        "no-answer": "tiny-squad",
        "bm25": "tiny-squad",
    }
    words = [json.dumps([*tasks.items()]), str(tmp_path)]
    subprocess.run([sys.executable, "-c", QUIET, *words], check=True)
    for name, task in tasks.items():
        found = read_results(tmp_path / name / "results.json")
        assert found.config.model_kind == name and task in found.results
        assert found.costs.fit_seconds is not None and found.costs.bytes_to_ship is not None
        assert found.costs.seconds_per_1000 is not None
    silent = read_results(tmp_path / "no-answer/results.json").results["tiny-squad"]
    share = 100 * silent["NoAns_total"] / silent["total"]
    assert silent["exact"] == pytest.approx(share) and silent["NoAns_exact"] == 100
    found = main_metric("tiny-squad", read_results(tmp_path / "bm25/results.json"))
    assert (found.metric, found.beside) == ("f1", "exact") and (found.value or 0) > share
    linear = read_results(tmp_path / "tf-idf/results.json").results["tiny-sst2"]
    assert linear["accuracy_ci95"][0] > 0.6
    assert all(
        sum(line["probabilities"]) == pytest.approx(1) for line in lines_of(tmp_path / "tf-idf")
    )


def test_the_majority_is_that_of_the_train_part(tmp_path: Path) -> None:
    recipe = recipe_on(tmp_path, "classification", ["slow", "loud", "loud", "kind"])
    results = evaluate(recipe, "majority", tmp_path / "out")
    lines = lines_of(tmp_path / "out")
    assert {line["prediction"] for line in lines} == {"loud"}
    right = sum(line["gold"] == "loud" for line in lines)
    assert results.results["small"]["accuracy"] == pytest.approx(right / len(lines))
    assert results.results["small"]["roc_auc"] == 0.5, "its probabilities are the same for all"


def test_the_best_constant_set_is_found() -> None:
    truths = [(0, 1), (0,), (0, 2), (1,), (), (1, 3)]
    labels = ("a", "b", "c", "d")

    def micro_f1(said: tuple[int, ...]) -> float:
        hits = sum(len({*said} & {*own}) for own in truths)
        return 2 * hits / (len(said) * len(truths) + sum(map(len, truths)))

    every = [said for size in range(5) for said in combinations(range(4), size)]
    said, shares = most_frequent(truths, labels, "label_sets")
    assert said == tuple(labels[one] for one in max(every, key=micro_f1)) == ("a", "b")
    assert shares == pytest.approx((1 / 2, 1 / 2, 1 / 6, 1 / 6))
    assert most_frequent([1.0, 2.0, 6.0], (), "numbers") == (3.0, None)
    assert most_frequent([1, 0], ("a", "b"), "labels")[0] == "a"


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> str:
    file = folder / f"{len([*folder.iterdir()])}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


WORDS = ("loud", "slow", "kind")


def recipe_on(folder: Path, task: str, truths: list[Any], **keys: Any) -> Recipe:
    """Texts whose words say what is right; `truths` are repeated."""
    rows = []
    for number in range(72):
        label = truths[number % len(truths)]
        word = WORDS[round(label)] if task == "regression" else label
        said = label if isinstance(label, list) else [word]
        rows.append({"text": f"Scene {number} is {' and '.join(said) or 'over'}", "label": label})
    source = {"path": write_rows(folder, rows), **keys}
    prompt = {"verbalizers": ["0", "1", "2"]} if task == "regression" else {}
    base = {"model_name_or_path": "tiny"}
    return load_recipe(
        {"name": "small", "task": task, "model": base, "dataset": source, "prompt": prompt}
    )


@pytest.mark.parametrize(
    ("task", "labels", "metrics"),
    [
        ("classification", ["loud", "slow", "kind", "slow"], ("accuracy", "f1_macro")),
        ("classification", [["loud"], ["slow", "kind"], [], ["kind"]], ("f1_micro", "f1_macro")),
        ("regression", [0.0, 1.0, 2.0], ("spearman", "pearson")),
    ],
)
def test_a_linear_model_reads_words(
    tmp_path: Path, task: str, labels: list[Any], metrics: tuple[str, str]
) -> None:
    keys = {"single_label": False} if isinstance(labels[0], list) else {}
    recipe = recipe_on(tmp_path, task, labels, **keys)
    scores = [evaluate(recipe, name, tmp_path / name) for name in ("majority", "tf-idf", "tf-idf")]
    floor, first, again = (main_metric("small", found) for found in scores)
    assert (first.metric, first.beside) == (floor.metric, floor.beside) == metrics
    assert (first.value or 0) > 0.8 > (floor.value or 0) and (first.beside_value or 0) > 0.8
    assert first.interval is not None and first.interval.low > 0.6
    assert (floor.value is None) == (task == "regression"), "equal numbers have no correlation"
    assert scores[1].results == scores[2].results, "the same examples give the same model"
    assert first == again
    assert (tmp_path / "majority/predictions.jsonl").read_text().count("\n") == len(
        lines_of(tmp_path / "tf-idf")
    )


def test_a_label_without_examples_has_probability_0(tmp_path: Path) -> None:
    known = ["loud", "never", "slow"]
    recipe = recipe_on(tmp_path, "classification", ["loud", "slow"], labels=known)
    evaluate(recipe, "tf-idf", tmp_path / "out")
    for line in lines_of(tmp_path / "out"):
        chances = dict(zip(known, line["probabilities"], strict=True))
        assert chances["never"] == pytest.approx(0, abs=1e-9)
        assert line["prediction"] == max(known, key=chances.__getitem__)


def test_a_linear_model_reads_every_field_of_a_text(tmp_path: Path) -> None:
    rows = [
        {"one": f"Scene {n}", "other": f"It is {WORDS[n % 2]}", "label": WORDS[n % 2]}
        for n in range(72)
    ]
    source = {"path": write_rows(tmp_path, rows), "columns": {"text": ["one", "other"]}}
    recipe = load_recipe(
        {
            "name": "small",
            "task": "classification",
            "model": {"model_name_or_path": "tiny"},
            "dataset": source,
        }
    )
    assert evaluate(recipe, "tf-idf", tmp_path / "out").results["small"]["accuracy"] > 0.9


def test_finished_baselines_are_kept_until_the_train_part_changes(tmp_path: Path) -> None:
    recipe = recipe_on(tmp_path, "classification", ["loud", "slow", "kind", "slow"])
    rows = [json.loads(line) for line in Path(recipe.dataset.path or "").read_text().splitlines()]
    other = write_rows(tmp_path, rows)
    for name in ("majority", "tf-idf"):
        job = job_for(recipe, name, tmp_path / name, data_file=other)
        first = harness.run(job)
        assert harness.run(job, again=False).date == first.date
        Path(recipe.dataset.path or "").write_text(
            "".join(
                json.dumps(row | {"label": "kind"} if n < 9 else row) + "\n"
                for n, row in enumerate(rows)
            )
        )
        assert harness.run(job, again=False).config.key != first.config.key
        write = "".join(json.dumps(row) + "\n" for row in rows)
        Path(recipe.dataset.path or "").write_text(write)


def test_a_folder_of_the_same_name_comes_first(
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = make_recipe("classification", "tiny")
    monkeypatch.chdir(tmp_path)
    assert identify("majority", recipe).kind == "baseline" and not caplog.messages
    Path("majority").symlink_to(tiny.MODEL_DIR)
    assert identify("majority", recipe).kind == "causal"
    (said,) = [text for text in caplog.messages if "--kind baseline" in text]
    assert "the folder of this name is evaluated" in said
    assert identify("majority", recipe, "baseline").kind == "baseline"


@pytest.mark.parametrize(
    ("task", "model", "keys", "message"),
    [
        ("classification", "bm25", {}, "those of this task are majority and tf-idf"),
        ("generative_qa", "majority", {}, "those of this task are no-answer and bm25"),
        ("classification", "majority", {"num_fewshot": 2}, "a baseline reads no prompt"),
    ],
)
def test_baselines_for_other_tasks_are_refused(
    make_recipe: Callable[..., Recipe], task: str, model: str, keys: dict[str, int], message: str
) -> None:
    recipe = make_recipe(task, "tiny", lora={"r": 2}, eval=keys)
    with pytest.raises(UserError, match=message):
        identify(model, recipe)
    with pytest.raises(UserError, match="there is no baseline of this name"):
        identify("gpt2", recipe, "baseline")


def test_no_floor_of_silence_if_every_question_has_an_answer(tmp_path: Path) -> None:
    rows = [
        {"question": f"Who is {n}?", "context": f"Ada is {n}.", "answers": ["Ada"]}
        for n in range(40)
    ]
    recipe = load_recipe(
        {
            "name": "small",
            "task": "generative_qa",
            "model": {"model_name_or_path": "tiny"},
            "lora": {"r": 2},
            "dataset": {"path": write_rows(tmp_path, rows)},
        }
    )
    with pytest.raises(UserError, match="every question of these data has an answer"):
        evaluate(recipe, "no-answer", tmp_path / "out")


def test_the_folder_of_a_baseline_is_one_of_the_run_s() -> None:
    for name in BASELINES:
        task = "tiny-squad" if name in ("no-answer", "bm25") else "tiny-sst2"
        job = make_job(task, model=name, limit=5)
        assert job.output == Path(f"runs/{task}/{name}-limit-5")
        assert EVALUATION.fullmatch(job.output.name)
