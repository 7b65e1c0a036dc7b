"""Checkpoints that others made: recognised by their files, measured as they were made, or refused by name."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BloomConfig,
    DistilBertConfig,
    Gemma3Config,
    GPT2Config,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
)

from eval import harness
from eval.job import Job, make_job
from eval.predictors import foreign
from eval.predictors.open import check_model
from llama_peft import data, tiny
from llama_peft.data import QuestionExample
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.training import fit as training

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def with_tokenizer(folder: Path) -> Path:
    """The embedded tokenizer, under names that an encoder's users would find: [CLS] is its BOS."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    tokenizer.add_special_tokens({"cls_token": tokenizer.bos_token})
    tokenizer.save_pretrained(folder)
    return folder


def classifier(folder: Path, **changes: Any) -> Path:
    """A DistilBERT classifier of random weights, saved as transformers saves one."""
    config = DistilBertConfig(
        vocab_size=2000, dim=32, hidden_dim=64, n_layers=2, n_heads=2, max_position_embeddings=128,
        **({"id2label": {0: "POSITIVE", 1: "NEGATIVE"}} | changes),
    )  # fmt: skip
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return with_tokenizer(folder)


def causal(folder: Path, family: str) -> Path:
    """A causal model of another family, as transformers saves one; its texts have the embedded tokenizer."""
    sizes = {"vocab_size": 2000, "hidden_size": 32, "num_attention_heads": 2}
    text = {"num_hidden_layers": 2, "intermediate_size": 64, "num_key_value_heads": 1}
    text |= sizes | {"head_dim": 16, "sliding_window": 16}
    image = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    image |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    configs = {
        "GPT2LMHeadModel": lambda: GPT2Config(vocab_size=2000, n_embd=32, n_layer=2, n_head=2),
        "BloomForCausalLM": lambda: BloomConfig(
            vocab_size=2000, hidden_size=32, n_layer=2, n_head=2
        ),
        "Gemma3ForConditionalGeneration": lambda: Gemma3Config(
            text_config=text, vision_config=image
        ),
    }
    torch.manual_seed(1)
    getattr(transformers, family)(configs[family]()).save_pretrained(folder)
    return with_tokenizer(folder)


def reader(folder: Path) -> Path:
    config = RobertaConfig(
        vocab_size=2000, intermediate_size=64, max_position_embeddings=130, pad_token_id=2, **TINY
    )
    torch.manual_seed(1)
    AutoModelForQuestionAnswering.from_config(config).save_pretrained(folder)
    return with_tokenizer(folder)


def adapter(folder: Path, base: Path, model: PreTrainedModel, task: TaskType) -> Path:
    """A LoRA adapter as plain PEFT trains and saves one, with weights that change the outputs."""
    config = LoraConfig(
        r=2,
        task_type=task,
        target_modules=["q_proj", "v_proj"],
        exclude_modules=["qa_outputs", "score"],
    )
    torch.manual_seed(2)
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)})
    )
    return folder


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def measured(recipe: Recipe, model: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return harness.run(Job(recipe=recipe, model=str(model), output=output, **changes))


@pytest.fixture(scope="module")
def base(make_base: Callable[..., Path]) -> Path:
    return make_base()


def test_a_whole_classifier_gives_its_own_logits(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    """Its labels stand in another order and in capitals; its probabilities are those of the bare model."""
    recipe, folder = make_recipe("classification", base), classifier(tmp_path / "theirs")
    found = measured(recipe, folder, tmp_path / "out")
    assert found.config.model_kind == "sequence classification checkpoint"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for line in lines_of(tmp_path / "out"):
        inputs = tokenizer(line["text"], return_tensors="pt")
        with torch.no_grad():
            positive, negative = model(inputs["input_ids"]).logits.softmax(-1)[0].tolist()
        assert line["probabilities"] == pytest.approx([negative, positive], abs=1e-5)
        assert line["prediction"] == ("positive" if positive > negative else "negative")


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
    job = Job(recipe=recipe, model=str(folder), output=tmp_path / "out", data_file=str(file))
    harness.run(job, show=3)
    what = "passages" if task == "generative_qa" else "texts"
    (line,) = [r.getMessage() for r in caplog.records if " are cut to " in r.getMessage()]
    assert (
        line.startswith(f"1 of 3 {what} are cut to ")
        and ("128" if kind == "classifier" else "200") in line
    )
    shown = [r.getMessage() for r in caplog.records if r.getMessage().startswith("--- ")]
    assert [message.count("word") >= n for message, n in zip(shown, (4, 90, 400), strict=True)] == [
        True,
        True,
        False,
    ]


def test_a_checkpoint_without_a_tokenizer_is_refused(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    """transformers makes up an encoder's tokenizer of five special tokens, and every text is the same [UNK]."""
    folder = classifier(tmp_path / "theirs")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"its tokenizer has \d tokens and its config 2,000"):
        measured(make_recipe("classification", base), folder, tmp_path / "out")


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
    found = measured(recipe, folder, tmp_path / "out")
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


@pytest.mark.parametrize(
    "family", ["GPT2LMHeadModel", "BloomForCausalLM", "Gemma3ForConditionalGeneration"]
)
@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_causal_models_of_other_families_are_measured(
    make_recipe: Callable[..., Recipe], tmp_path: Path, family: str, task: str
) -> None:
    """Known by their class, counted though their configs name sizes otherwise, and the same with and without prefix trees."""
    folder = causal(tmp_path / "theirs", family)
    found = []
    for decoding in ("prefix_tree", "plain"):
        chosen = {"decoding": decoding, "max_new_tokens": 2}
        recipe = make_recipe(task, folder, lora={"r": 2}, eval=chosen)
        results = measured(recipe, folder, tmp_path / decoding)
        found.append(lines_of(tmp_path / decoding))
        whole = getattr(transformers, family).from_pretrained(folder)
        assert results.config.parameters["total"] == whole.num_parameters()
    for tree, plain in zip(*found, strict=True):
        assert tree["raw"] == plain["raw"]
        assert tree.get("probabilities", []) == pytest.approx(
            plain.get("probabilities", []), abs=1e-4
        )


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_a_base_without_a_padding_token_is_measured_and_not_trained(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, task: str
) -> None:
    """Padded positions are masked, so that the end-of-text token may fill them; its labels in training would be lost."""
    unpadded = tmp_path / "unpadded"
    shutil.copytree(base, unpadded)
    for file in unpadded.glob("tokenizer*"):
        text = file.read_text().replace("<|finetune_right_pad_id|>", "<|reserved_9|>")
        file.write_text(re.sub(r'\s*"pad_token": "[^"]*",', "", text))
    recipe = make_recipe(task, unpadded, lora={"r": 2}, eval={"max_new_tokens": 2})
    assert AutoTokenizer.from_pretrained(unpadded).pad_token is None
    found = [
        measured(recipe, model, tmp_path / f"out-{model.name}").results
        for model in (base, unpadded)
    ]
    assert found[0] == found[1]
    train = {"output_dir": str(tmp_path / "run")}
    with pytest.raises(UserError, match="its tokenizer has no token to pad with"):
        training.train(make_recipe(task, unpadded, lora={"r": 2}, train=train))


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
    (example,) = data.load_file(recipe, str(file))
    pairs = foreign._windows(tokenizer, 128, 16, example)
    assert len(pairs) > 2 and all(len(pair.input_ids) <= 128 for pair in pairs)
    covered = {c for pair in pairs for start, end in pair.window.offsets for c in range(start, end)}
    assert covered == {i for i, character in enumerate(context) if character != " "}
    measured(recipe, folder, tmp_path / "out", data_file=str(file))


@pytest.mark.parametrize("words", [60, 110, 121, 300])
def test_a_question_longer_than_its_share_is_cut(tmp_path: Path, words: int) -> None:
    """The tokenizers library panics where a question leaves the passage less room than the stride."""
    tokenizer = AutoTokenizer.from_pretrained(with_tokenizer(tmp_path))
    example = QuestionExample(
        id="1", question=f"{'word ' * words}?", context=f"{'house ' * 200}end", answers=()
    )
    pairs = foreign._windows(tokenizer, 128, 64, example)
    assert all(len(pair.input_ids) <= 128 for pair in pairs)
    assert all(len(pair.window.offsets) > 32 for pair in pairs[:-1])
    assert pairs[-1].window.offsets[-1][1] == len(example.context)


def heads(base: Path) -> dict[str, tuple[PreTrainedModel, TaskType]]:
    torch.manual_seed(3)
    qa = AutoModelForQuestionAnswering.from_pretrained(
        base, key_mapping={r"^model\.": "transformer."}
    )
    return {
        "classification": (
            LlamaForSequenceClassification.from_pretrained(base, num_labels=2),
            TaskType.SEQ_CLS,
        ),
        "extractive_qa": (qa, TaskType.QUESTION_ANS),
        "generative_qa": (AutoModelForCausalLM.from_pretrained(base), TaskType.CAUSAL_LM),
    }


def test_an_adapter_names_its_bases_revision(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    from eval.predictors.open import on_base

    folder = adapter(tmp_path / "adapter", base, *heads(base)["generative_qa"])
    assert foreign.read_adapter(folder).revision == "main"
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"revision": "abc"}))
    found = foreign.read_adapter(folder)
    recipe = on_base(make_recipe("generative_qa", base, lora={}), found.base, found.revision)
    assert (recipe.model.model_name_or_path, recipe.model.revision) == (str(base), "abc")


@pytest.mark.parametrize("task", ["classification", "extractive_qa", "generative_qa"])
def test_an_adapter_of_plain_peft_is_measured_on_its_base(
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
    found = measured(recipe, folder, tmp_path / "out")
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
        measured(recipe, base, tmp_path / "bare")
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
        measured(recipe, model, tmp_path / f"out-{model.name}").results["small"]
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
        measured(recipe, model, tmp_path / f"out-{model.name}") for model in (run, run / "adapter")
    ]
    assert found[0].results == found[1].results
    first, second = (
        [line["probabilities"] for line in lines_of(tmp_path / name)]
        for name in ("out-run", "out-adapter")
    )
    assert first == second


def encoder_adapter(folder: Path, base: Path, task: str) -> Path:
    """A LoRA adapter of plain PEFT on an encoder that has no head of its own."""
    torch.manual_seed(4)
    whole = classifier(base) if task == "classification" else reader(base)
    AutoModel.from_pretrained(whole).save_pretrained(base)
    auto, targets, kind = {
        "classification": (
            AutoModelForSequenceClassification,
            ["q_lin", "v_lin"],
            TaskType.SEQ_CLS,
        ),
        "extractive_qa": (AutoModelForQuestionAnswering, ["query", "value"], TaskType.QUESTION_ANS),
    }[task]
    kept = {"classification": ["pre_classifier", "classifier"], "extractive_qa": ["qa_outputs"]}
    config = LoraConfig(r=2, task_type=kind, target_modules=targets, modules_to_save=kept[task])
    adapted = get_peft_model(auto.from_pretrained(base), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", ["classification", "extractive_qa"])
def test_an_adapter_on_an_encoder_gives_plain_peft_s_outputs(
    make_recipe: Callable[..., Recipe], tmp_path: Path, task: str
) -> None:
    from peft import AutoPeftModelForQuestionAnswering, AutoPeftModelForSequenceClassification

    folder, recipe = (
        encoder_adapter(tmp_path / "adapter", tmp_path / "encoder", task),
        make_recipe(task, "none"),
    )
    found = measured(recipe, folder, tmp_path / "out")
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
        measured(make_recipe(task, base, lora={"r": 2}), tmp_path / "adapter", tmp_path / task)
        answered.append({line["id"]: line["raw"] for line in lines_of(tmp_path / task)})
    assert answered[0] == answered[1]
    with pytest.raises(
        UserError, match="an adapter for extractive_qa, and the task is classification"
    ):
        measured(make_recipe("classification", base), tmp_path / "adapter", tmp_path / "out")


def test_files_tell_what_a_model_is(base: Path, tmp_path: Path) -> None:
    assert foreign.recognise("tiny", "main") == "causal"
    assert foreign.recognise(str(base), "main") == "causal"
    assert foreign.recognise(str(classifier(tmp_path / "c")), "main") == "classifier"
    assert foreign.recognise(str(reader(tmp_path / "r")), "main") == "reader"
    model, kind = heads(base)["generative_qa"]
    folder = adapter(tmp_path / "a", base, model, kind)
    assert foreign.recognise(str(folder), "main") == "adapter"
    shutil.copy(base / "config.json", folder)
    with pytest.raises(UserError, match=r"both PEFT adapter and causal language model.*--kind"):
        foreign.recognise(str(folder), "main")
    (folder / "adapter_config.json").unlink()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"nothing that is known.*--kind run.adapter.causal"):
        foreign.recognise(str(folder), "main")


def test_what_does_not_fit_is_refused_in_one_line(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts, spans = make_recipe("classification", base), make_recipe("extractive_qa", base)
    theirs = classifier(tmp_path / "c")
    with pytest.raises(UserError, match="the task is extractive_qa"):
        check_model(str(theirs), spans)
    named = classifier(tmp_path / "named", id2label={0: "spam", 1: "ham"})
    with pytest.raises(UserError, match=r"its labels are spam, ham.*negative, positive"):
        measured(texts, named, tmp_path / "out")
    unnamed = classifier(tmp_path / "unnamed", id2label={0: "LABEL_0", 1: "LABEL_1"})
    caplog.set_level("INFO")
    measured(texts, unnamed, tmp_path / "unnamed-out")
    assert "have no names and are taken by number: 0 is negative, 1 is positive" in caplog.text
    with pytest.raises(
        UserError, match=r"lacks weights, which would be random: 1, first score.weight"
    ):
        headless = tmp_path / "headless"
        shutil.copytree(base, headless)
        measured(texts, headless, tmp_path / "out", kind="classifier")


def test_damaged_weights_are_refused_in_one_line(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    recipe, theirs = make_recipe("classification", base), classifier(tmp_path / "theirs")
    weights = theirs / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"theirs: .*incomplete|theirs: .*header"):
        measured(recipe, theirs, tmp_path / "out")
    tensors = safetensors.torch.load(whole)
    tensors["pre_classifier.weight"] = torch.zeros(32, 16)
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match="theirs: the checkpoint holds weights of another shape"):
        measured(recipe, theirs, tmp_path / "out")


def test_an_adapter_that_does_not_fit_its_base_is_refused(
    make_recipe: Callable[..., Recipe], make_base: Callable[..., Path], base: Path, tmp_path: Path
) -> None:
    deeper = make_base(num_hidden_layers=3)
    model, kind = heads(deeper)["generative_qa"]
    folder = adapter(tmp_path / "deep", base, model, kind)
    with pytest.raises(UserError, match="does not fit this base"):
        measured(make_recipe("generative_qa", base, lora={"r": 2}), folder, tmp_path / "out")
    (folder / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read"):
        measured(make_recipe("generative_qa", base, lora={"r": 2}), folder, tmp_path / "out")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no safetensors weights"):
        measured(make_recipe("generative_qa", base, lora={"r": 2}), folder, tmp_path / "out")


def test_models_have_folders_of_their_own(tmp_path: Path) -> None:
    jobs = [make_job("tiny-sst2", name, None, None, None, None, []) for name in (None, "org/model")]
    assert [job.output.name for job in jobs] == ["zero-shot", "zero-shot-org-model"]
    shots = make_job("tiny-sst2", None, None, None, None, None, ["eval.num_fewshot=4"])
    assert shots.output.name == "4-shot"
