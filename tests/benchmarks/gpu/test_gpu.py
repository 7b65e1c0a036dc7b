"""The whole way of `make bench-gpu` on a CPU with a small shape: it measures, checks, survives faults, and makes a table."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig

from llama_peft import tiny
from llama_peft.model import backbone
from tests.benchmarks import measure
from tests.benchmarks.gpu import RESULTS, correct, memory, parts, readme
from tests.benchmarks.gpu.setting import SMALL, Setting, base_of
from tests.support.paths import ROOT
from tests.test_benchmarks import MINIATURE

RIGHT = {"hardware": {"gpu": "Card", "driver": "1", "cuda": "2"}}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A folder with a config and a tokenizer becomes a base, and no real data are here."""
    shape, folder = tmp_path_factory.mktemp("shape"), tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"vocab_size": len(tokenizer), "tie_word_embeddings": True}
    LlamaConfig(**MINIATURE, **tokens, **sizes).save_pretrained(shape)
    tokenizer.save_pretrained(shape)
    nowhere = shape / "nowhere"
    amount = SMALL._replace(sentences=32)
    base = base_of(str(shape), folder)
    rehearsed = tmp_path_factory.mktemp("rehearsed")
    step = {"name": "fullest step", "peak": 123}
    late = {"name": "validation", "peak": 999}
    own = str(backbone.fast_dtype(torch.device("cpu"))).removeprefix("torch.")
    found = {"recipe": "squad", "dtype": own, "settings": [], "steps": [step, late]}
    other = found | {"settings": ["train.max_length=9"], "steps": [late]}
    (rehearsed / "squad.json").write_text(json.dumps(found), "utf-8")
    (rehearsed / "short.json").write_text(json.dumps(other), "utf-8")
    return Setting(base=base, amount=amount, squad=nowhere, sst2=nowhere, rehearsal=rehearsed)


@pytest.fixture(scope="module")
def found(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is written of all parts."""
    path = tmp_path_factory.mktemp("results") / "cpu.json"
    lines = list(parts.run(setting, list(parts.PARTS), 60, path))
    assert len(lines) == len(parts.PARTS)
    written = json.loads(path.read_text("utf-8"))["parts"]
    assert {name: part["ended"] for name, part in written.items()} == dict.fromkeys(
        parts.PARTS, parts.FINISHED
    )
    return dict(written)


def test_every_part_says_on_what_it_was_measured(found: dict[str, Any]) -> None:
    for part in found.values():
        assert {"hardware", "versions", "date", "commit", "seconds"} <= set(part)
        assert not any("failure" in row for row in part["rows"])


def test_four_bits_are_right_and_each_check_is_made(found: dict[str, Any]) -> None:
    rows = found["correct"]["rows"]
    assert all(row["right"] for row in rows), rows
    names = " ".join(row["name"] for row in rows)
    assert all(
        word in names for word in ("sdpa", "eager", "varlen", "sst2", "squad-span", "states")
    )
    assert sum("loaded = saved" in row["name"] for row in rows) == len(correct.RELOADED)


def test_rows_have_rates_and_their_share_of_the_ceiling(found: dict[str, Any]) -> None:
    top = found["ceiling"]["flop_per_second"]["median"]
    for name in ("training", "heads", "decoding"):
        for row in found[name]["rows"]:
            flop = row.get("flop_per_token", found[name]["flop_per_token"])
            rate = row["tokens_per_second"]["median"]
            assert row["share_of_ceiling"] == pytest.approx(rate * flop / top)
    heads = {row["name"]: row for row in found["heads"]["rows"]}
    for name in ("sst2", "squad-span", "sst2-head"):
        ours, padded = heads[f"{name} ours"], heads[f"{name} stock_padded"]
        assert ours["optimizer_steps"] == padded["optimizer_steps"]
        assert ours["tokens"] < padded["tokens"]


def test_memory_is_that_of_the_recipe_s_own_batch(found: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in found["memory"]["rows"]}
    assert rows["sst2"]["batch"][0] == 32 and rows["squad"]["pieces"] == 1
    assert {"squad stock_default", "decoding tree", "decoding generate"} <= set(rows)


def test_predictions_stand_beside_what_was_measured(found: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in found["predicted"]["rows"]}
    peaks = {row["name"]: row["peak_bytes"] for row in found["memory"]["rows"]}
    assert all(row["estimated_bytes"] > 0 for row in rows.values())
    assert rows["squad"]["peak_bytes"] == peaks["squad"]
    assert rows["squad"]["rehearsed_bytes"] == 123 and rows["sst2"]["rehearsed_bytes"] is None


def _runs_out(setting: Setting) -> Iterator[dict[str, Any]]:
    yield measure.result("half", [{"name": "first"}], {})
    torch.empty(2**60)


def _endless(setting: Setting) -> Iterator[dict[str, Any]]:
    while True:
        yield {"rows": []}


def _killed(setting: Setting) -> Iterator[dict[str, Any]]:
    yield {"rows": [1]}
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("run", "seconds", "ended"),
    [
        (_runs_out, 9.0, "out of memory: RuntimeError"),
        (_endless, 0.01, "out of time"),
        (_runs_out, 0.0, "left out: no time"),
    ],
)
def test_a_part_that_ends_early_loses_nothing(run: Any, seconds: float, ended: str) -> None:
    *earlier, last = parts._within(run, None, seconds)  # type: ignore[arg-type]
    assert last["ended"].startswith(ended)
    assert all(one["ended"] == "interrupted" and "rows" in last for one in earlier)


def test_a_signal_leaves_what_was_found(tmp_path: Path, setting: Setting) -> None:
    parts.PARTS["killed"] = parts.Planned(_killed, 1)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(parts.run(setting, ["killed"], 1, tmp_path / "card.json"))
    finally:
        del parts.PARTS["killed"]
    written = json.loads((tmp_path / "card.json").read_text("utf-8"))["parts"]["killed"]
    del setting.done["killed"]
    assert written["rows"] == [1] and written["ended"] == "interrupted"


def test_what_is_finished_is_kept_if_a_later_run_ends_early(
    tmp_path: Path, setting: Setting
) -> None:
    whole = {"rows": [1, 2], "ended": parts.FINISHED}
    again = replace(setting, done={"predicted": whole})
    (line,) = parts.run(again, ["predicted"], 0, tmp_path / "card.json")
    assert line.startswith("predicted: left out: no time") and again.done["predicted"] == whole


def test_a_contestant_that_fails_is_left_out_and_the_others_go_on() -> None:
    def fails() -> Any:
        torch.empty(2**60)

    contestants = [
        measure.Contestant(name="bad", prepare=lambda: measure.Prepared(None, fails)),
        measure.Contestant(name="good", prepare=lambda: measure.Prepared(None, lambda: 7)),
    ]
    *_, last = measure.turns(contestants, 2)
    bad, good = measure.rows(last, 1, lambda outcome: outcome)
    assert bad["name"] == "bad" and bad["failure"].startswith("out of memory")
    assert good["optimizer_steps"] == 7 and len(good["wall_seconds"]["repeats"]) == 2
    assert measure.ratios(last, "good", {"ratio": "bad"}) == {}
    with pytest.raises(RuntimeError, match="bad: out of memory"):
        measure.in_turns(contestants, 1)


def test_work_that_does_not_fit_says_so() -> None:
    (row,) = memory.under_caps(lambda: {"never": torch.empty(2**60)})
    assert row["cap"] is None and row["failure"].startswith("out of memory")


def test_a_library_that_is_missing_is_named() -> None:
    for name in parts.FOREIGN:
        if not __import__("importlib.util").util.find_spec(name):
            *_, last = parts._within(parts.FOREIGN[name].run, None, 9.0)  # type: ignore[arg-type]
            assert last["ended"] == f"ModuleNotFoundError: No module named '{name}'"


def test_the_readme_s_table_is_that_of_the_results() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    block = text.split(f"<!-- {readme.MADE_BY} -->")[1].split("<!-- end -->")[0]
    assert block.strip() == readme.text(RESULTS), "python -m tests.benchmarks.gpu --readme"


def test_tables_are_only_of_gpus(found: dict[str, Any], tmp_path: Path) -> None:
    def write(name: str, its: dict[str, Any]) -> None:
        (tmp_path / name).write_text(json.dumps({"name": name, "parts": its}), "utf-8")

    write("cpu.json", found)
    assert readme.text(tmp_path) == readme.NOTHING
    caps = [
        {"name": "squad", "cap": 8, "peak_bytes": 7e9, "held_bytes": 7e9, "pieces": 2},
        {"name": "squad", "cap": 4, "failure": "out of memory: OutOfMemoryError"},
    ]
    memory_part = found["memory"] | {"rows": found["memory"]["rows"] + caps}
    late = found["decoding"] | {"ended": "out of time: it had 9 s"}
    changed = found | {"memory": memory_part, "decoding": late}
    write("card.json", {name: part | RIGHT for name, part in changed.items()})
    text = readme.text(tmp_path)
    assert text.startswith("**Card**, driver 1, CUDA 2, torch ")
    assert "| 7.0 in 2 pieces |" in text and "| no |" in text
    assert "Not complete: decoding (out of time: it had 9 s)." in text
    rows = sum(len(found[name]["rows"]) for name in ("training", "heads", "decoding", "predicted"))
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == (
        rows + 6 + len({row["name"] for row in found["memory"]["rows"]})
    )
    assert "checks of 4-bit training hold." in text
