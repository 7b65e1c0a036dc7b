"""Texts of two columns go all the way: training, both evaluations, the card's lines, predict, reload."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

from llama_peft import UserError, load_run, predict
from llama_peft.data import load, with_fields
from llama_peft.inference import ask
from llama_peft.inference.batch import open_batch
from llama_peft.recipe import Columns, Recipe, load_recipe
from llama_peft.run_folder.results import read_results
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.self_check import samples
from llama_peft.tokens.prompts import PromptEncoder
from llama_peft.training.fit import train
from tests.support.eval.jobs import evaluate, lines_of
from tests.support.paths import RUNS_0_1_0

ROWS = [
    {
        "premise": f"The film is {adjective}, and number {n} of its kind.",
        "hypothesis": f"It is {claim}.",
        "label": "entailment" if adjective == claim else "contradiction",
    }
    for n in range(15)
    for adjective in ("warm", "long")
    for claim in ("warm", "long")
]


@pytest.fixture(scope="module")
def recipe_for(
    make_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Recipe]:
    folder = tmp_path_factory.mktemp("pairs")
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))

    def make(base: Path, name: str, **sections: Any) -> Recipe:
        data = {"path": str(file), "columns": {"text": ["premise", "hypothesis"]}}
        data |= {"name": None, "parts": {}}
        keys = {"output_dir": str(folder / name)}
        train_keys = {**keys, **sections.pop("train", {})}
        return make_recipe("classification", base, dataset=data, train=train_keys, **sections)

    return make


@pytest.fixture(scope="module")
def finished(make_base: Callable[..., Path], recipe_for: Callable[..., Recipe]) -> Path:
    return train(recipe_for(make_base(), "adapter", lora={"r": 4}))


def test_a_run_knows_its_fields(finished: Path) -> None:
    prompt = load_recipe(finished / "recipe.yaml").prompt
    assert prompt.fields == ("premise", "hypothesis")
    assert prompt.template == "premise: {premise}\nhypothesis: {hypothesis}"


def test_a_finished_run_is_finished_again(finished: Path) -> None:
    before = (finished / "training.json").read_text()
    train(load_recipe(finished / "recipe.yaml"))
    assert (finished / "training.json").read_text() == before


def test_both_evaluations_read_every_field(
    finished: Path, recipe_for: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = load_recipe(finished / "recipe.yaml")
    base = recipe.model.model_name_or_path
    unsettled = recipe_for(Path(base), "adapter", lora={"r": 4}, eval={"num_fewshot": 2})
    assert not unsettled.prompt.fields
    evaluate(unsettled, base, tmp_path / "zero-shot")
    evaluate(recipe, finished, tmp_path / "tuned")
    for name in ("zero-shot", "tuned"):
        results = read_results(tmp_path / name / "results.json")
        assert (results.settings.prompt or {})["template"] == recipe.prompt.template
        for line in lines_of(tmp_path / name):
            premise, hypothesis = line["text"].split("\n")
            assert premise.startswith("premise: The") and hypothesis.startswith("hypothesis: It")


def test_predict_takes_named_fields(finished: Path) -> None:
    pairs = [{"premise": row["premise"], "hypothesis": row["hypothesis"]} for row in ROWS[:4]]
    run = load_run(finished)
    expected = run.predict(pairs)
    assert len({tuple(reply.probabilities.values()) for reply in expected}) == 4
    turned = [{name: pair[name] for name in ("hypothesis", "premise")} for pair in pairs]
    tuples = [tuple(pair.values()) for pair in pairs]
    for inputs in (turned, tuples, list(map(json.dumps, turned)), ROWS[:4]):
        assert predict(run, inputs) == expected  # type: ignore[arg-type]
    for wrong in ("A text.", {"premise": "a"}, {"premise": "a", "hypothesis": " "}, '{"a": 1}', 5):
        with pytest.raises(UserError) as caught:
            predict(run, [wrong])  # type: ignore[list-item]
        message = str(caught.value)
        assert message.endswith('and not {"premise": "...", "hypothesis": "..."}')
        assert "\n" not in message


def test_plain_peft_gives_the_same_scores(finished: Path) -> None:
    """On the ids of the template's text, as whoever reads the card would make them."""
    run = load_run(finished)
    recipe, fitted = run.run.recipe, run.threshold
    temperature = (fitted and fitted.temperature) or 1.0
    plain = AutoPeftModelForSequenceClassification.from_pretrained(
        finished / "adapter", num_labels=2, pad_token_id=run.tuned.encoder.tokenizer.pad_token_id
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.model_name_or_path)
    for row in ROWS[:4]:
        text = f"premise: {row['premise']}\nhypothesis: {row['hypothesis']}"
        ids = tokenizer(tokenizer.bos_token + text, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            theirs = (plain(**ids).logits / temperature).softmax(-1)[0].tolist()
        (ours,) = run.predict([row])
        assert theirs == pytest.approx(list(ours.probabilities.values()), abs=1e-6)


def test_a_head_on_cached_features_reads_both_fields(
    make_base: Callable[..., Path], recipe_for: Callable[..., Recipe]
) -> None:
    base = make_base()
    runs = [
        train(recipe_for(base, f"head-{features}", head={"features": features}))
        for features in ("length_sorted", "none")
    ]
    cached, live = [ask.load_run(run).predict(ROWS[:6]) for run in runs]
    for one, other in zip(cached, live, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_a_run_reads_what_it_was_trained_on(
    finished: Path, recipe_for: Callable[..., Recipe], tmp_path: Path
) -> None:
    """A pair is not read as one text, and one text not as a pair."""
    settled = load_recipe(finished / "recipe.yaml")
    recipe = settled.changed(dataset={"columns": Columns(text="premise")})
    with pytest.raises(UserError, match=r"set dataset.columns.text: \[premise, hypothesis\]$"):
        evaluate(recipe, finished, tmp_path / "one")
    pairs = recipe_for(Path("tiny"), "pairs")
    with pytest.raises(UserError, match=r"this run reads one text, but dataset.columns.text names"):
        evaluate(pairs, RUNS_0_1_0 / "classifier", tmp_path / "two")
    names = "dataset.columns.text=[premise, hypothesis]"
    with pytest.raises(UserError, match=r"reads one text, but the data have premise, hypothesis"):
        open_batch(open_run(RUNS_0_1_0 / "classifier"), str(pairs.dataset.path), None, [names])


def test_samples_and_long_pairs_fit(finished: Path, recipe_for: Callable[..., Recipe]) -> None:
    recipe = load_recipe(finished / "recipe.yaml")
    run = load_run(finished)
    encoder: PromptEncoder = run.tuned.encoder
    long = {"premise": "warm and long " * 400, "hypothesis": "It is warm."}
    ids = encoder.head_input(long, recipe.train.max_length)
    assert len(ids) <= recipe.train.max_length
    assert encoder.text(list(ids)).endswith("\nhypothesis: It is warm.")
    assert [list(sample.values) for sample in samples(recipe)] == [["premise", "hypothesis"]] * 3  # type: ignore[union-attr]
    fresh = recipe_for(Path("tiny"), "fresh")
    assert with_fields(fresh, load(fresh)).prompt == recipe.prompt
