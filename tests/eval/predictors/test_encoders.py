"""Classifiers and question answering models that others made give their own outputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from eval import threshold
from eval.predictors.encoders import windows
from llama_peft import data
from llama_peft.data import QuestionExample
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from tests.support.eval.checkpoints import classifier, encoder_adapter, reader, with_tokenizer
from tests.support.eval.jobs import evaluate, lines_of


@pytest.mark.parametrize("few", [8, 9])
def test_a_whole_classifier_gives_its_own_logits(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    few: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its labels stand in another order and in capitals; its probabilities are those of the bare model,
    with a temperature if there are enough validation examples (8) to fit one.
    """
    monkeypatch.setattr(threshold, "FEW", few)
    recipe, folder = make_recipe("classification", base), classifier(tmp_path / "theirs")
    found = evaluate(recipe, folder, tmp_path / "out")
    assert found.config.model_kind == "sequence classification checkpoint"
    temperature = found.configs["small"].temperature
    assert (temperature is not None) == (few == 8) and temperature != 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for line in lines_of(tmp_path / "out"):
        inputs = tokenizer(line["text"], return_tensors="pt")
        with torch.no_grad():
            logits = model(inputs["input_ids"]).logits / (temperature or 1)
            positive, negative = logits.softmax(-1)[0].tolist()
        assert line["probabilities"] == pytest.approx([negative, positive], abs=1e-5)
        assert line["prediction"] == ("positive" if positive > negative else "negative")


def test_a_checkpoint_without_a_tokenizer_is_refused(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    """transformers makes up an encoder's tokenizer of five special tokens, and every text is the same [UNK]."""
    folder = classifier(tmp_path / "theirs")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"its tokenizer has \d tokens and its config 2,000"):
        evaluate(make_recipe("classification", base), folder, tmp_path / "out")


def best_of(line: dict[str, Any], output: Any) -> float:
    """The score of the best span, from a line's probability that there is none."""
    null = output.start_logits[0, 0] + output.end_logits[0, 0]
    return (torch.logit(torch.tensor(1 - line["no_answer_probability"])) + null).item()


def best_in(inputs: Any, output: Any, longest: int) -> float:
    """The same from the bare model's scores of one window."""
    own = [i for i, part in enumerate(inputs.sequence_ids(0)) if part == 1]
    return max(
        (output.start_logits[0, i] + output.end_logits[0, j]).item()
        for i in own for j in own if i <= j < i + longest
    )  # fmt: skip


def test_a_whole_reader_gives_its_own_spans(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    recipe, folder = make_recipe("extractive_qa", base), reader(tmp_path / "theirs")
    found = evaluate(recipe, folder, tmp_path / "out")
    assert found.config.model_kind == "question answering checkpoint"
    threshold = found.configs["small"].no_answer_threshold
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    contexts = {e.id: e.context for e in data.load(recipe).parts["test"]}
    for line in lines_of(tmp_path / "out"):
        inputs = tokenizer(line["text"], contexts[line["id"]], return_tensors="pt")
        with torch.no_grad():
            output = model(inputs["input_ids"])
        expected = best_in(inputs, output, recipe.eval.max_answer_length)
        assert best_of(line, output) == pytest.approx(expected, abs=1e-3)
        assert line["raw"] in contexts[line["id"]]
        assert line["prediction"] == (
            "" if line["no_answer_probability"] > threshold else line["raw"]
        )


def test_long_passages_are_read_in_windows(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    """Every character of the passage is in some window, and no window is longer than the model's positions."""
    recipe = make_recipe("extractive_qa", base, train={"doc_stride": 16})
    folder = reader(tmp_path / "theirs")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    context = " ".join(f"In {year} the mill was sold." for year in range(1700, 1760))
    file = tmp_path / "long.json"
    answers = [{"text": "1700", "answer_start": 3}]
    asked = [{"id": "1", "question": "When?", "answers": answers}]
    paragraphs = [{"context": context, "qas": asked}]
    file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    (example,) = data.load_file(recipe, str(file)).parts["data"]
    pairs = windows(tokenizer, 128, 16, example)
    assert len(pairs) > 2 and all(len(pair.input_ids) <= 128 for pair in pairs)
    covered = {c for pair in pairs for start, end in pair.window.offsets for c in range(start, end)}
    assert covered == {i for i, character in enumerate(context) if character != " "}
    evaluate(recipe, folder, tmp_path / "out", data_file=str(file))


@pytest.mark.parametrize("words", [60, 110, 121, 300])
def test_a_question_longer_than_its_share_is_cut(tmp_path: Path, words: int) -> None:
    """The tokenizers library panics where a question leaves the passage less room than the stride."""
    tokenizer = AutoTokenizer.from_pretrained(with_tokenizer(tmp_path))
    example = QuestionExample(
        id="1", question=f"{'word ' * words}?", context=f"{'house ' * 200}end", answers=()
    )
    pairs = windows(tokenizer, 128, 64, example)
    assert all(len(pair.input_ids) <= 128 for pair in pairs)
    assert all(len(pair.window.offsets) > 32 for pair in pairs[:-1])
    assert pairs[-1].window.offsets[-1][1] == len(example.context)


@pytest.mark.parametrize("task", ["classification", "extractive_qa"])
def test_an_adapter_on_an_encoder_gives_plain_peft_s_outputs(
    make_recipe: Callable[..., Recipe], tmp_path: Path, task: str
) -> None:
    from peft import AutoPeftModelForQuestionAnswering, AutoPeftModelForSequenceClassification

    folder, recipe = (
        encoder_adapter(tmp_path / "adapter", tmp_path / "encoder", task),
        make_recipe(task, "none"),
    )
    found = evaluate(recipe, folder, tmp_path / "out")
    assert found.config.model_kind.startswith("adapter, ") and found.adapter_sha256
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "encoder")
    examples = {e.id: e for e in data.load(recipe).parts["test"]}
    longest = recipe.eval.max_answer_length
    for line in lines_of(tmp_path / "out")[:5]:
        if task == "classification":
            plain = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=2)
            with torch.no_grad():
                ids = tokenizer(line["text"], return_tensors="pt")["input_ids"]
                positive, negative = plain.eval()(ids).logits.softmax(-1)[0].tolist()
            assert line["probabilities"] == pytest.approx([negative, positive], abs=1e-5)
        else:
            model = AutoPeftModelForQuestionAnswering.from_pretrained(folder).eval()
            inputs = tokenizer(line["text"], examples[line["id"]].context, return_tensors="pt")
            with torch.no_grad():
                output = model(inputs["input_ids"])
            assert best_of(line, output) == pytest.approx(
                best_in(inputs, output, longest), abs=1e-3
            )


def test_damaged_weights_are_refused_in_one_line(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    recipe, theirs = make_recipe("classification", base), classifier(tmp_path / "theirs")
    weights = theirs / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"theirs: .*incomplete|theirs: .*header"):
        evaluate(recipe, theirs, tmp_path / "out")
    tensors = safetensors.torch.load(whole)
    tensors["pre_classifier.weight"] = torch.zeros(32, 16)
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match="theirs: the checkpoint holds weights of another shape"):
        evaluate(recipe, theirs, tmp_path / "out")
