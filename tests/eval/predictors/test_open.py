"""Runs and adapters are opened with their own head, or refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from eval.predictors.open import open_predictor
from eval.predictors.recognise import identify
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.training import fit as training
from tests.support.eval.checkpoints import adapter, heads
from tests.support.eval.jobs import evaluate, lines_of


def test_task_and_labels_must_be_the_run_s(
    class_run: tuple[Recipe, Path], span_run: tuple[Recipe, Path]
) -> None:
    with pytest.raises(UserError, match="trained for extractive_qa"):
        identify(str(span_run[1]), class_run[0])
    with pytest.raises(UserError, match="labels negative, positive"):
        open_predictor(identify(str(class_run[1]), class_run[0]), class_run[0], ("bad", "good"))


@pytest.mark.parametrize("task", ["classification", "extractive_qa", "generative_qa"])
def test_an_adapter_of_plain_peft_is_evaluated_on_its_base(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, task: str
) -> None:
    """The tuned model's own outputs, not the base's: for classification checked against plain PEFT."""
    model, kind = heads(base)[task]
    folder = adapter(tmp_path / "adapter", base, model, kind)
    # A recipe's own head says nothing of theirs: plain PEFT reads the last token of the last block.
    recipe = make_recipe(
        task,
        "no-such-base",
        lora={"r": 2},
        eval={"max_new_tokens": 4},
        head={"pooling": "mean", "layer": 1} if task == "classification" else {},
    )
    found = evaluate(recipe, folder, tmp_path / "out")
    assert found.config.model_kind.startswith("adapter, ")
    assert found.config.model == str(base)
    assert found.adapter_sha256
    lines = lines_of(tmp_path / "out")
    if task == "classification":
        from peft import AutoPeftModelForSequenceClassification

        tokenizer = AutoTokenizer.from_pretrained(base)
        plain = AutoPeftModelForSequenceClassification.from_pretrained(
            folder, num_labels=2, pad_token_id=tokenizer.pad_token_id
        ).eval()
        for line in lines[:5]:
            with torch.no_grad():
                ids = tokenizer(line["text"], return_tensors="pt")["input_ids"]
                expected = plain(ids).logits.softmax(-1)[0].tolist()
            assert line["probabilities"] == pytest.approx(expected, abs=1e-5)
    elif task == "generative_qa":
        evaluate(recipe, base, tmp_path / "bare")
        assert [line["no_answer_probability"] for line in lines] != [
            line["no_answer_probability"] for line in lines_of(tmp_path / "bare")
        ]


@pytest.mark.parametrize("task", ["classification", "extractive_qa", "generative_qa"])
def test_a_run_s_adapter_alone_gives_what_the_run_gives(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, task: str
) -> None:
    recipe = make_recipe(
        task, base, lora={"r": 2}, train={"output_dir": str(tmp_path / "run"), "max_steps": 1}
    )
    run = training.train(recipe)
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    found = [
        evaluate(recipe, model, tmp_path / f"out-{model.name}").results["small"]
        for model in (run, tmp_path / "adapter")
    ]
    assert found[0] == found[1]


def test_an_adapter_in_a_run_is_read_by_the_run_s_own_head(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    train = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    run = training.train(
        make_recipe("classification", base, lora={"r": 2}, head={"pooling": "mean"}, train=train)
    )
    recipe = make_recipe("classification", base, lora={"r": 2})
    found = [
        evaluate(recipe, model, tmp_path / f"out-{model.name}") for model in (run, run / "adapter")
    ]
    assert found[0].results == found[1].results
    first, second = (
        [line["probabilities"] for line in lines_of(tmp_path / name)]
        for name in ("out-run", "out-adapter")
    )
    assert first == second


@pytest.mark.parametrize("kind", ["library's", "ours"])
def test_a_question_answering_adapter_answers_a_generative_task(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, kind: str
) -> None:
    """As a whole reader does: its spans are the answers."""
    recipe = make_recipe(
        "extractive_qa", base, lora={"r": 2}, train={"output_dir": str(tmp_path / "run")}
    )
    if kind == "ours":
        shutil.copytree(training.train(recipe) / "adapter", tmp_path / "adapter")
    else:
        adapter(tmp_path / "adapter", base, *heads(base)["extractive_qa"])
    answered = []
    for task in ("extractive_qa", "generative_qa"):
        evaluate(make_recipe(task, base, lora={"r": 2}), tmp_path / "adapter", tmp_path / task)
        answered.append({line["id"]: line["raw"] for line in lines_of(tmp_path / task)})
    assert answered[0] == answered[1]
    with pytest.raises(
        UserError, match="an adapter for extractive_qa, but the task is classification"
    ):
        evaluate(make_recipe("classification", base), tmp_path / "adapter", tmp_path / "out")


def test_an_adapter_that_does_not_fit_its_base_is_refused(
    make_recipe: Callable[..., Recipe], make_base: Callable[..., Path], base: Path, tmp_path: Path
) -> None:
    deeper = make_base(num_hidden_layers=3)
    model, kind = heads(deeper)["generative_qa"]
    folder = adapter(tmp_path / "deep", base, model, kind)
    with pytest.raises(UserError, match="does not fit the base"):
        evaluate(make_recipe("generative_qa", base, lora={"r": 2}), folder, tmp_path / "out")
    (folder / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read"):
        evaluate(make_recipe("generative_qa", base, lora={"r": 2}), folder, tmp_path / "out")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no safetensors weights"):
        evaluate(make_recipe("generative_qa", base, lora={"r": 2}), folder, tmp_path / "out")
