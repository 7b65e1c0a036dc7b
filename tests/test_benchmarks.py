"""The benchmarks run, and say what they measured; how fast anything was is no matter of a test."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import app
from llama_peft.inference.predict import Prediction
from llama_peft.prefix_tree.pack import pack, packing
from llama_peft.recipe import load_recipe
from tests.benchmarks import (
    convergence,
    decoding,
    features,
    layers,
    material,
    measure,
    rows,
    short_rows,
    table,
    training,
)
from tests.benchmarks.rows import data as data_of_rows
from tests.benchmarks.small_base import __main__ as small_base
from tests.benchmarks.small_base import questions, settings
from tests.support.tree_examples import families

MINIATURE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> material.Base:
    return material.random_base(tmp_path_factory.mktemp("base"), **MINIATURE)


@pytest.fixture(scope="module")
def asked() -> material.Questions:
    """Six questions of two paragraphs."""
    drawn = material.questions(10)
    return material.Questions(drawn.examples[4:], drawn.source)


@pytest.fixture(scope="module")
def results(
    base: material.Base, asked: material.Questions, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What `make bench` writes, of six questions on a miniature model."""
    folder, found = tmp_path_factory.mktemp("results"), {}
    for benchmark, repeats in ((training, 1), (decoding, 2)):
        path = measure.write(benchmark.run(base, asked, repeats, None), folder)
        found[path.stem] = json.loads(path.read_text("utf-8"))
    return found


@pytest.mark.parametrize("name", ["training", "decoding"])
def test_results_say_what_was_measured(results: dict[str, dict[str, Any]], name: str) -> None:
    found = results[name]
    assert found["name"] == name and found["questions"] == 6 and found["parameters"] > 0
    assert {"hardware", "versions", "date", "data"} <= set(found)
    for row in found["rows"]:
        assert row["examples"] == 6 and row["tokens"] > 0
        for key in ("wall_seconds", "cpu_seconds", "examples_per_second", "peak_bytes"):
            low, middle, high = (row[key][part] for part in ("min", "median", "max"))
            assert 0 < low <= middle <= high
    assert table.speed(found).row_count == len(found["rows"])
    assert table.ratios(found).row_count == len(found["ratios"])


@pytest.mark.parametrize(
    ("name", "rivals"),
    [
        ("training", training.RIVALS),
        ("decoding", {"decode_vs_generate": "generate"}),
    ],
)
def test_ratios_are_ratios_of_the_rows(
    results: dict[str, dict[str, Any]], name: str, rivals: dict[str, str]
) -> None:
    found = results[name]
    kind = f"{found['seconds_are']}_seconds"
    seconds = {row["name"]: row[kind]["repeats"] for row in found["rows"]}
    assert set(found["ratios"]) == {ratio for ratio, rival in rivals.items() if rival in seconds}
    for ratio, median in found["ratios"].items():
        turns = zip(seconds[rivals[ratio]], seconds[found.get("ours", "tree")], strict=False)
        expected = measure.spread([theirs / own for theirs, own in turns])
        assert found["ratio_spreads"][ratio] == expected
        assert median == found["ratio_spreads"][ratio]["median"]


def test_contestants_do_the_same_work(results: dict[str, dict[str, Any]]) -> None:
    checks = results["training"]["checks"]
    assert all(checks[name]["right"] for name in ("stock_default", "stock_length_grouped", "tree"))
    tokens = {row["name"]: row["tokens"] for row in results["training"]["rows"]}
    assert tokens["tree"] < tokens["stock_packed"] < tokens["stock_default"]
    assert results["decoding"]["checks"]["equal_answers"] == 6
    assert results["decoding"]["checks"]["different_answers"] > 1


def test_wrong_rows_are_noticed(
    base: material.Base, asked: material.Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows whose branches see one another are refused before anything is timed."""
    right = training.prefix_tree.collate

    def leaky(*arguments: Any) -> dict[str, Any]:
        batch = right(*arguments)
        return batch | {"subtree_end": batch["subtree_end"] * 0 + batch["input_ids"].shape[1]}

    monkeypatch.setattr(training.prefix_tree, "collate", leaky)
    tree = {"tree": training.trainers(base, 1024, 1024)["tree"]}
    with pytest.raises(AssertionError, match="rows are wrong"):
        training.compare(base, tree, asked.examples)


def test_features_end_on_the_weights_of_the_loop(base: material.Base) -> None:
    found = features.run(base, 40, 1)
    assert found["ratios"].keys() == {"features_vs_loop"} and found["sentences"] == 40
    assert max(found["checks"]["largest_weight_error"].values()) <= features.TOLERANCE
    loop, tree, _ = found["rows"]
    assert loop["tokens"] > features.EPOCHS * tree["tokens"], "the loop computes every epoch again"
    assert table.speed(found).row_count == 3


def test_layers_are_compared_seed_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "SHARED", material.SHARED / "nowhere")
    reviews = {
        "path": "tiny",
        "name": "reviews",
        "parts": {"train": 60},
        "labels": ["negative", "positive"],
    }
    monkeypatch.setattr(layers, "sentences", lambda rows: reviews)
    monkeypatch.setattr(layers, "CHOICES", {"auto": {"layer": "auto"}})
    found = layers.run(60, 2)
    (row,) = found["rows"]
    assert [seed["seed"] for seed in row["seeds"]] == [1, 2]
    assert all(0 <= seed["accuracy"] <= 1 and seed["layer"] != "auto" for seed in row["seeds"])
    assert table.layers(found).row_count == 1


def test_a_cap_holds_in_every_row_and_spreads_families() -> None:
    examples = [e for e in families(12, questions=9) if len(e.prompt) > 11]
    groups = convergence.spread(examples, 2)
    rows = [row for group in groups for row in pack(group, 200)]
    assert sorted(n for row in rows for n in row["ids"]) == sorted(e.id for e in examples)
    by_id = {e.id: e.prompt for e in examples}
    for row in rows:
        paragraphs = [by_id[name][:9] for name in row["ids"]]
        assert max(paragraphs.count(p) for p in paragraphs) <= 2
    assert packing(rows).tokens > packing(pack(examples, 200)).tokens


def test_short_rows_are_the_same_steps_in_fewer_tokens(base: material.Base) -> None:
    few = {"path": "tiny", "name": "reviews", "parts": {"train": 200, "validation": 1, "test": 2}}
    found = short_rows.run(base, short_rows.classify(8)._replace(dataset=few), 1)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["packed"]["tokens"] < rows["plain"]["tokens"]
    assert {row["optimizer_steps"] for row in found["rows"]} == {1}
    assert set(found["ratios"]) == {f"classify_{key}" for key in short_rows.RIVALS}
    assert max(check["gradient_error"] for check in found["checks"].values()) < 1e-4


def test_rows_are_measured_by_what_the_commands_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The commands run in this process here, but for one, which tells what the system counted."""
    cost = rows.measured("compare", "--help")
    assert 0.1 < cost.cpu_seconds < 100 and 2e7 < cost.peak_bytes < 1e9

    def here(*words: object) -> rows.Cost:
        app([*map(str, words)], standalone_mode=False)
        return cost

    prepared = {"microseconds_a_row": 2.0, "peak_bytes": 3, "bytes_before": 1}
    monkeypatch.setattr(rows.data, "in_a_process", lambda *_: prepared)
    monkeypatch.setattr(rows, "measured", here)
    monkeypatch.setattr(rows, "FEWEST", 8)
    found = rows.run({"classification": (9,)})
    assert [row["name"] for row in found["rows"]] == [
        f"{command}/classification/9" for command in ("prepare", "score", "compare", "html")
    ]
    written = [row["written_bytes"] > 1000 for row in found["rows"]]
    assert written == [False, True, False, True]
    assert table.rows(found).row_count == 4
    asked = next(rows._commands("generative_qa", 21, tmp_path))
    assert asked[2].read_text("utf-8").count("\n") == 21


def test_memory_of_data_is_measured_by_rows() -> None:
    rows = [data_of_rows.one("questions", count, "train") for count in (100, 200)]
    for row, count in zip(rows, (100, 200), strict=True):
        assert row["rows"] == count and row["peak_bytes"] >= row["bytes_before"] > 0
        assert row["microseconds_a_row"] > 0
    assert table.data_rows({"rows": rows}).row_count == 2


def test_settings_on_questions_are_recipes_whose_articles_are_held_out(
    shared: Path, tmp_path: Path
) -> None:
    asked = [one for one in settings.SETTINGS.values() if "rows" in one]
    kinds = {(one["task"], one["order"], "layer" in one): one for one in asked}
    assert len(kinds) == 4
    for setting in kinds.values():
        load_recipe(small_base.values(setting, "tiny", tmp_path))
    parts = {part: set[str]() for part in ("train", "validation", "test")}
    for part, article in questions.articles():
        parts[part].add(article["title"])
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 11
    assert {part: len(titles) for part, titles in parts.items() if part != "train"} == {
        "validation": 2,
        "test": 2,
    }


def test_how_well_no_answer_is_known_does_not_depend_on_a_threshold() -> None:
    golds: dict[str, list[str]] = {"a": ["two"], "b": [], "c": ["six"], "d": []}
    chances = {"a": 0.1, "b": 0.4, "c": 0.2, "d": 0.3}
    found = [
        Prediction(id=id_, prediction="", raw="two", no_answer_probability=chance)
        for id_, chance in chances.items()
    ]
    scores = questions.answer_scores(found, golds)
    assert (scores["AUC"], scores["floor"], scores["best_EM"]) == (1.0, 50.0, 75.0)
    assert (scores["decides"]["EM"], scores["always"]["HasAns_EM"]) == (50.0, 50.0)
    assert questions.auc([1, 1, 0, 2], [True, False, True, False]) == 0.125
