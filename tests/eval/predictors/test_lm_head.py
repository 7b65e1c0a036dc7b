"""Causal models of every family answer with their own LM head, with and without shared prefixes."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from transformers import AutoTokenizer

from eval import harness
from eval.predictors.open import open_predictor
from eval.predictors.recognise import identify
from llama_peft import data
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.system.files import sha256
from llama_peft.training import fit as training
from tests.support.eval.checkpoints import causal, classifier
from tests.support.eval.jobs import evaluate, job_for, lines_of


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_shared_prefixes_change_no_prediction(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], task: str
) -> None:
    """Shared prefixes and their plain twin, through the zero-shot predictors of both kinds."""
    found = []
    for decoding in ("prefix_tree", "plain"):
        recipe = make_recipe(
            task, make_base(), lora={"r": 4}, eval={"decoding": decoding, "max_new_tokens": 6}
        )
        labels = ("negative", "positive") if task == "classification" else ()
        subject = identify(recipe.model.model_name_or_path, recipe)
        predictor = open_predictor(subject, recipe, labels)
        batches = predictor.predict(data.load(recipe).parts["test"], 32)
        its = {p.id: p for batch in batches for p in batch}
        found.append(its)
    assert found[0].keys() == found[1].keys()
    for id_, one in found[0].items():
        other = found[1][id_]
        assert (one.prediction, one.raw) == (other.prediction, other.raw)
        if one.probabilities:
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        else:
            assert one.no_answer_probability == pytest.approx(other.no_answer_probability, rel=1e-3)


@pytest.mark.parametrize("kind", ["zero-shot verbalizer", "zero-shot generative", "classifier"])
def test_cut_texts_are_counted_in_one_line_and_shown_as_cut(
    make_recipe: Callable[..., Recipe],
    make_base: Callable[..., Path],
    base: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """By the model's own positions; a classifier's are not those that the recipe trains with."""
    task = "generative_qa" if kind.endswith("generative") else "classification"
    small = make_base(max_position_embeddings=200)
    folder = classifier(tmp_path / "theirs") if kind == "classifier" else small
    file = tmp_path / "data.json"
    if task == "classification":
        texts = [{"text": f"{'word ' * n}end", "label": "positive"} for n in (4, 90, 400)]
        file.write_text(json.dumps(texts))
    else:
        asked = [
            {"context": f"Paris. {'word ' * n}", "question": "Where?", "answers": ["Paris"]}
            for n in (4, 90, 400)
        ]
        file.write_text(json.dumps(asked))
    train = {"max_length": 20 if kind == "classifier" else 512}
    dataset = {"labels": ["negative", "positive"]} if task == "classification" else {}
    recipe = make_recipe(
        task, base, train=train, lora={"r": 2}, eval={"max_new_tokens": 4}, dataset=dataset
    )
    caplog.set_level("INFO")
    harness.run(job_for(recipe, folder, tmp_path / "out", data_file=str(file)), show=3)
    what = "passages" if task == "generative_qa" else "texts"
    (line,) = [r.getMessage() for r in caplog.records if " are cut to " in r.getMessage()]
    assert (
        line.startswith(f"1 of 3 {what} are cut to ")
        and ("128" if kind == "classifier" else "200") in line
    )
    shown = "\n".join(r.getMessage() for r in caplog.records).split("--- ")[1:]
    assert [message.count("word") >= n for message, n in zip(shown, (4, 90, 400), strict=True)] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    "family", ["GPT2LMHeadModel", "BloomForCausalLM", "Gemma3ForConditionalGeneration"]
)
@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_causal_models_of_other_families_are_evaluated(
    make_recipe: Callable[..., Recipe], tmp_path: Path, family: str, task: str
) -> None:
    """Known by their class, counted though their configs name sizes otherwise, and the same with and without prefix trees."""
    folder = causal(tmp_path / "theirs", family)
    found = []
    for decoding in ("prefix_tree", "plain"):
        chosen = {"decoding": decoding, "max_new_tokens": 2}
        recipe = make_recipe(task, folder, lora={"r": 2}, eval=chosen)
        results = evaluate(recipe, folder, tmp_path / decoding)
        found.append(lines_of(tmp_path / decoding))
        whole = getattr(transformers, family).from_pretrained(folder)
        assert results.config.parameters["total"] == whole.num_parameters()
    for tree, plain in zip(*found, strict=True):
        assert tree["raw"] == plain["raw"]
        assert tree.get("probabilities", []) == pytest.approx(
            plain.get("probabilities", []), abs=1e-4
        )


@pytest.mark.parametrize("task", ["classification", "extractive_qa", "generative_qa"])
def test_which_token_pads_changes_nothing(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, task: str
) -> None:
    """Masks and labels go by length, so a base without a padding token trains as any other."""
    unpadded = tmp_path / "unpadded"
    shutil.copytree(base, unpadded)
    for file in unpadded.glob("tokenizer*"):
        text = file.read_text().replace("<|finetune_right_pad_id|>", "<|reserved_9|>")
        file.write_text(re.sub(r'\s*"pad_token": "[^"]*",', "", text))
    tokenizer = AutoTokenizer.from_pretrained(unpadded)
    assert tokenizer.pad_token is None
    if task == "classification":  # as often: one was added, and the embedding was not resized
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        tokenizer.save_pretrained(unpadded)
    found = []
    for folder in (base, unpadded):
        out = {"output_dir": str(tmp_path / f"run-{folder.name}")}
        recipe = make_recipe(task, folder, lora={"r": 2}, eval={"max_new_tokens": 2}, train=out)
        run = training.train(recipe)
        models = (run, folder) if task != "extractive_qa" else (run,)
        scores = [
            evaluate(load_recipe(run / "recipe.yaml"), model, tmp_path / f"{folder.name}-{number}")
            for number, model in enumerate(models)
        ]
        weights = sha256(run / "adapter/adapter_model.safetensors")
        found.append(([one.results for one in scores], weights))
    assert found[0] == found[1]
