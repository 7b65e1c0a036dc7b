"""The card: one whole one pinned, and what it must not claim."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from torch import zeros

from eval import report
from eval.metrics.measure import classification_results
from llama_peft import backbone, bundle, card, card_metadata, checkpoint, licences
from llama_peft.bundle import Bundle
from llama_peft.files import sha256
from llama_peft.hub import default_name
from llama_peft.prompts import PromptEncoder
from llama_peft.recipe import Model, Recipe, UserError, dump_recipe, load_recipe

LABELS = ["negative", "positive"]
COMMIT = ("c0ffee" * 7)[:40]
REPO = "me/Llama-3.2-1B-sst2-head"
PINNED = Path(__file__).with_name("pinned_card.txt")
GOLDS = {f"validation-{i:03}": LABELS[i % 2] for i in range(872)}


def measured(folder: Path, part: str, wrong: int, **facts: Any) -> None:
    """Results and predictions as the harness leaves them, the first `wrong` of them wrong."""
    folder.mkdir(parents=True)
    said = {
        name: LABELS[1 - LABELS.index(gold)] if i < wrong else gold
        for i, (name, gold) in enumerate(GOLDS.items())
    }
    results = {
        "results": {f"sst2-head_{part}": classification_results(said, GOLDS, LABELS)},
        "configs": {f"sst2-head_{part}": {"labels": LABELS}},
        "config": {"recipe": "sst2-head", "model_kind": "classification head", **facts},
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "git_hash": "0123abc",
        "date": "2026-01-31T12:00:00+00:00",
        "wall_seconds": 75.0,
    }
    lines = [
        {
            "id": name, "prediction": label, "gold": GOLDS[name], "split": part, "raw": label,
            "text": "a long sentence of a review " * 10, "probabilities": [0.1, 0.9],
        }
        for name, label in said.items()
    ]  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the published baseline as a GPU leaves it: 4,096 weights, a long curve, measured on the official dev set."""
    folder = tmp_path / "runs/sst2-head"
    overrides = ["dataset.labels=[negative, positive]", "hub.language=en"]
    recipe = load_recipe("sst2-head", [*overrides, f"train.output_dir={folder}"])
    measured(folder / "zero-shot", "official", 300, model="meta-llama/Llama-3.2-1B")
    measured(folder / "tuned", "official", 100, run=str(folder))
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    curve = [{"step": 10 * i, "loss": 0.7 / (1 + i / 900)} for i in range(250)]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    (folder / "split.json").write_text(json.dumps({"train": [f"train-{i}" for i in range(52800)]}))
    save_file({"score.weight": zeros(2, 2048)}, folder / "head.safetensors")
    names = ("head.safetensors", "recipe.yaml", "split.json")
    facts = {
        "parameters": {"total": 1235818496, "trainable": 4096, "base": 1235814400},
        "examples": {"train": 52801, "validation": 1078},
        "head": {"layer": -1, "pooling": "last"},
        "steps": 2478,
        "epochs": 3.0,
        "wall_seconds": 1203.4,
        "peak_memory_bytes": 2_410_000_000,
        "base_fingerprint": COMMIT,
        "files": {name: sha256(folder / name) for name in names},
    }
    checkpoint.write_facts(folder, facts)
    report.write_html(folder)
    return folder


@pytest.fixture
def staged(run: Path, tmp_path: Path) -> Bundle:
    (tmp_path / "staged").mkdir()
    return bundle.stage(run, tmp_path / "staged")


def encoder(recipe: Recipe) -> PromptEncoder:
    return PromptEncoder(backbone.load_tokenizer(Model(model_name_or_path="tiny")), recipe.prompt)


def changed(staged: Bundle, *overrides: str) -> Bundle:
    """The bundle with another recipe."""
    recipe = load_recipe(staged.folder / "recipe.yaml", overrides)
    return Bundle(folder=staged.folder, recipe=recipe, facts=staged.facts, hub_data=staged.hub_data)


def test_a_whole_card(staged: Bundle, run: Path) -> None:
    text = card.render(staged, REPO, encoder(staged.recipe), run, None)
    assert text == PINNED.read_text("utf-8")


def test_the_hub_reads_the_metadata(staged: Bundle, run: Path) -> None:
    text = card.render(staged, REPO, encoder(staged.recipe), run, None)
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert data.base_model == "meta-llama/Llama-3.2-1B" and data.license == "llama3.2"
    scores = {one.metric_type: one.metric_value for one in data.eval_results}
    tuned = json.loads((run / "tuned/results.json").read_text())["results"]["sst2-head_official"]
    assert scores == {name: round(tuned[name], 6) for name in scores} and "accuracy" in scores
    assert {one.dataset_type for one in data.eval_results} == {"stanfordnlp/sst2"}
    assert {one.dataset_split for one in data.eval_results} == {"validation"}


def test_the_published_baseline_is_pushed_in_under_100_kb(staged: Bundle, run: Path) -> None:
    text = card.render(staged, REPO, encoder(staged.recipe), run, None)
    sizes = {file.name: file.stat().st_size for file in staged.files}
    assert "report.html" in sizes and "head.safetensors" in sizes and "split.json" not in sizes
    assert sum(sizes.values()) + len(text) < 100_000, sizes


def test_no_path_of_this_machine_is_left(staged: Bundle, run: Path) -> None:
    assert str(run) in (run / "recipe.yaml").read_text()
    assert str(run) in (run / "tuned/results.json").read_text()
    for file in staged.files:
        assert str(run).encode() not in file.read_bytes(), file


def test_old_or_missing_comparisons_are_refused(staged: Bundle, run: Path) -> None:
    again = rf"llama-eval html {re.escape(str(run))}"
    path = run / "tuned/results.json"
    path.write_text(path.read_text().replace("0.8", "0.9", 1))
    with pytest.raises(UserError, match=f"other results than are there now.*{again}"):
        card.render(staged, REPO, encoder(staged.recipe), run, None)
    (run / "comparison.json").unlink()
    with pytest.raises(UserError, match=f"comparison.json is missing.*{again}"):
        card.render(staged, REPO, encoder(staged.recipe), run, None)
    (run / "zero-shot/results.json").unlink()
    with pytest.raises(UserError, match=r"zero-shot/results\.json is missing"):
        card.render(staged, REPO, encoder(staged.recipe), run, None)
    path.unlink()
    text = card.render(staged, REPO, encoder(staged.recipe), run, None)
    assert "Not measured yet" in text and "model-index" not in text


def test_plain_loading_is_promised_only_where_it_gives_the_same(staged: Bundle, run: Path) -> None:
    def python(one: Bundle, reader: str | None = None) -> list[str]:
        text = card.render(one, REPO, encoder(one.recipe), run, reader)
        return re.findall(r"```python\n(.*?)```", text, re.S)

    assert len(python(staged)) == 1
    assert not python(changed(staged, "head.pooling=mean"))
    words = ["task=extractive_qa", "dataset.labels=null", "lora={r: 4}", "train.doc_stride=32"]
    span = changed(staged, *words)
    assert not python(span)
    assert "key_mapping" in python(span, "transformer")[0]
    assert "key_mapping" not in python(span, "model")[0]
    embedded = Bundle(
        folder=staged.folder,
        recipe=changed(staged, "model.model_name_or_path=tiny").recipe,
        facts=staged.facts | {"base_fingerprint": "sha256:0"},
        hub_data=None,
    )
    assert not python(embedded)
    inner = python(changed(staged, "head.layer=9", "lora={r: 4}"))[0]
    assert "num_hidden_layers=9" in inner and len(inner.splitlines()) <= 5


def test_eval_results_are_the_tuned_numbers_of_a_hub_data_set(staged: Bundle, run: Path) -> None:
    import yaml

    (one,) = yaml.safe_load(card_metadata.eval_results(staged, card.read_comparison(run)))
    tuned = json.loads((run / "tuned/results.json").read_text())["results"]["sst2-head_official"]
    assert one["value"] == tuned["accuracy"] and one["dataset"]["id"] == "stanfordnlp/sst2"
    with pytest.raises(UserError, match="leave --eval-results out"):
        card_metadata.eval_results(staged, [])


@pytest.mark.parametrize(
    ("base", "licence", "start"),
    [
        ("meta-llama/Llama-3.2-1B", "llama3.2", "Llama"),
        ("unsloth/Llama-3.2-1B", "llama3.2", "Llama"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3", "Llama"),
        ("NousResearch/Hermes-3-Llama-3.1-8B", "llama3.1", "Llama"),
        ("meta-llama/Llama-2-7b-hf", "llama2", ""),
        ("google/gemma-3-1b-pt", "gemma", ""),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", None, ""),
        ("openlm-research/open_llama_3b", None, ""),
        ("acme/llama-farm", None, ""),
        ("tiny", None, ""),
    ],
)
def test_licences_go_by_the_base(base: str, licence: str | None, start: str) -> None:
    found = licences.duties(base)
    assert (found.identifier if found else None) == licence
    assert (found.name_start if found else "") == start
    assert found is None or (bool(found.built_with) == bool(start) and found.notice)


def test_names_begin_as_the_licence_asks() -> None:
    assert default_name(load_recipe("sst2")) == "Llama-3.2-1B-sst2"
    assert default_name(load_recipe("gemma-sst2")) == "gemma-sst2"
    assert default_name(load_recipe("sst2", ["hub.hub_model_id=org/x"])) == "org/x"
