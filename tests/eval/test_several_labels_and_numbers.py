"""Texts with any number of labels, and numbers: from a file to a report and a card, and back through plain transformers."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from eval import evaluate, report, score, threshold
from llama_peft import load_recipe, predict, tiny, train
from llama_peft.errors import UserError
from llama_peft.export import push
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.weights import load_tuned

WORDS = {"music": "The music is loud.", "plot": "A story with a twist.", "cast": "Actors shine."}
LABELS = tuple(sorted(WORDS))


def rows_of(kind: str, count: int) -> list[dict[str, Any]]:
    """Texts of one to four sentences; the labels are their topics, the number is that of a sentence."""
    drawn = random.Random(0)
    rows = []
    for number in range(count):
        own = [label for label in LABELS if drawn.random() < 0.4]
        many = drawn.randrange(4)
        texts = [WORDS[label] for label in own] or ["Nothing happens."]
        if kind == "numbers":
            texts = ["It is good."] * many or ["It is bad."]
        drawn.shuffle(texts)
        texts.append(f"Seen on day {number}.")
        label = float(many) if kind == "numbers" else own
        rows.append({"id": f"r{number}", "text": " ".join(texts), "label": label})
    return rows


def recipe_of(kind: str, folder: Path, lora: bool) -> dict[str, Any]:
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(kind, 160)))
    several = kind == "label_sets"
    recipe: dict[str, Any] = {
        "name": "small",
        "task": "classification" if several else "regression",
        "model": {"model_name_or_path": "tiny", "dtype": "float32"},
        "quantization": {"load_in_4bit": False},
        "dataset": {"path": str(data)} | ({"single_label": False} if several else {}),
        "prompt": {} if several else {"verbalizers": ["0", "1", "2", "3"]},
        "train": {
            "output_dir": str(folder / "run"),
            "use_cpu": True,
            "num_train_epochs": 4.0 if lora else 30.0,
            "learning_rate": 5e-3 if lora else 3e-2,
        },
    }
    return recipe | ({"lora": {"r": 4}} if lora else {"head": {"pooling": "mean"}})


def stock_scores(run: Path, texts: list[str]) -> torch.Tensor:
    """What transformers and PEFT give without this package, with what the card's lines pass to them."""
    opened = open_run(run)
    kind, encoder = opened.recipe.kind, load_tuned(opened).encoder
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny.MODEL_DIR,
        num_labels=kind.outputs(len(opened.labels)),
        pad_token_id=encoder.tokenizer.pad_token_id,
        problem_type=kind.problem_type,
        dtype=torch.float32,
    )
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, opened.adapter).eval()
    ids = [torch.tensor([encoder.head_input(text, 512)]) for text in texts]
    with torch.no_grad():
        return torch.cat([model(input_ids=one).logits for one in ids])


@pytest.mark.parametrize(
    ("kind", "lora"), [("label_sets", True), ("label_sets", False), ("numbers", True)]
)
def test_from_a_file_to_a_card(
    tmp_path: Path, kind: str, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lora:
        monkeypatch.setattr(threshold, "FEW", 8)
    recipe = recipe_of(kind, tmp_path, lora)
    run = train(recipe)
    zero_shot = evaluate(task=recipe, output=run / "zero-shot")
    tuned = evaluate(run, output=run / "tuned")
    before, after = zero_shot.results["small"], tuned.results["small"]
    (table,) = report.compare([run])
    floor = next(row for row in table.rows if row.name.startswith("always"))
    scores = dict(zip(table.columns, floor.cells, strict=True))
    if kind == "label_sets":
        assert after["f1_micro"] > max(before["f1_micro"], float(scores["f1_micro"].text)) + 0.1
        fitted = json.loads((run / "threshold.json").read_text())
        kept = fitted["label_thresholds"]
        assert ("temperature" in fitted) == lora
        assert tuned.configs["small"].temperature == fitted.get("temperature")
        assert tuned.configs["small"].label_thresholds == kept and len(kept) == 3
        for line in map(json.loads, (run / "tuned/predictions.jsonl").read_text().splitlines()):
            above = zip(LABELS, line["probabilities"], kept, strict=True)
            assert line["prediction"] == [name for name, p, limit in above if p > limit]
    else:
        assert after["mse"] < min(before["mse"], float(scores["mse"].text)) / 2
        assert after["spearman"] > 0.5
    again = score(run / "tuned/predictions.jsonl", task=recipe, output=tmp_path / "scores")
    calibrated = {key: one for key, one in after.items() if not key.endswith("_uncalibrated")}
    assert again.results == {"small": calibrated}
    report.write_html(run)
    pushed = push.push(run, "me/small", dry_run=True)
    assert "f1_micro" in pushed.card or "mae" in pushed.card
    texts = [row["text"] for row in itertools.islice(rows_of(kind, 160), 5)]
    replies = predict(run, texts)
    if lora:
        logits = stock_scores(run, texts)
        if kind == "numbers":
            found = torch.tensor([[reply.prediction] for reply in replies])
            assert torch.allclose(found, logits, atol=1e-5)
        else:
            found = torch.tensor([[*reply.probabilities.values()] for reply in replies])
            temperature = fitted["temperature"]
            assert torch.allclose(found, (logits / temperature).sigmoid(), atol=1e-5)
            assert not torch.allclose(found, logits.sigmoid(), atol=1e-3)
            assert f"with a temperature of {temperature:.4f}" in pushed.card


@pytest.mark.parametrize("limits", [{"label_thresholds": [0.5, 0.5]}, {"no_answer_threshold": 0.5}])
def test_thresholds_of_other_labels_are_refused(tmp_path: Path, limits: dict[str, Any]) -> None:
    """A stranger may have written them: three labels need three thresholds."""
    recipe = recipe_of("label_sets", tmp_path, False)
    recipe["train"]["num_train_epochs"] = 1.0
    run = train(recipe)
    (run / "threshold.json").write_text(json.dumps(limits))
    with pytest.raises(UserError, match=r"threshold\.json: this file is damaged"):
        predict(run, ["The music is loud."])


def test_what_the_recipe_must_say(tmp_path: Path) -> None:
    recipe = recipe_of("numbers", tmp_path, True)
    with pytest.raises(UserError, match="list the numbers that the base can answer with"):
        load_recipe(recipe | {"prompt": {}})
    with pytest.raises(UserError, match="only classification has single_label"):
        load_recipe(recipe, ["dataset.single_label=false"])
