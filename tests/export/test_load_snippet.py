"""The lines of Python in a card."""

import ast
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama_peft import predict
from llama_peft.export import load_snippet
from llama_peft.recipe import Recipe
from llama_peft.run_folder import self_check
from llama_peft.run_folder.run import open_run
from llama_peft.tokens import spans
from llama_peft.training import fit
from tests.support import runs
from tests.support.html import EVIL, GOOD
from tests.support.paths import RUNS_0_1_0


def test_a_literal_is_the_text_that_python_reads() -> None:
    for text in [*EVIL, *GOOD, '"""', "\\", "\U000e0041 \U0001f600"]:
        found = load_snippet.literal(text)
        assert ast.literal_eval(found) == text and "\n" not in found


@pytest.mark.parametrize("task", ["classification", "extractive_qa", "generative_qa"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_no_lines_for_a_head_on_a_packed_base(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], task: str, is_packed: bool
) -> None:
    """transformers packs the head of such a base, unless its list of exceptions names the head."""
    base = make_base()
    if is_packed:
        config = json.loads((base / "config.json").read_text())
        packing = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        packing |= {"bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["lm_head"]}
        (base / "config.json").write_text(json.dumps(config | {"quantization_config": packing}))
    recipe = make_recipe(task, base, bits=4, lora={"r": 4})
    has_head = task != "generative_qa"
    assert load_snippet.packs_head(recipe) == (is_packed and has_head)
    run = load_snippet.PushedRun(
        recipe=recipe,
        repo_id="me/small",
        commit="c0ffee",
        reader=load_snippet.reader_prefix(recipe),
        packs_head=load_snippet.packs_head(recipe),
        prompt="A text.",
        pad_id=0,
    )
    introduction, lines = load_snippet.snippet(run)
    if is_packed and has_head:
        assert not lines and introduction.startswith("The base is packed already")
    else:
        assert lines and introduction.startswith("With transformers and PEFT alone")


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_the_lines_apply_the_temperature(
    make_recipe: Callable[..., Recipe], several: bool, lora: dict[str, int] | None
) -> None:
    """Law 12: what a card says gives the run's own probabilities."""
    import torch

    data = {"labels": ["a", "b"], "single_label": not several}
    recipe = make_recipe("classification", "tiny", lora=lora, dataset=data)
    for temperature in (None, 1.2345678901234567):
        run = load_snippet.PushedRun(
            recipe=recipe,
            repo_id="me/small",
            commit="c0ffee",
            reader=None,
            packs_head=False,
            prompt="A text.",
            pad_id=0,
            temperature=temperature,
        )
        introduction, lines = load_snippet.snippet(run)
        used = lines[-1] if lora else introduction.partition("`")[2].rstrip("`:")
        if lora is None and temperature is None:
            assert not used
            continue
        logits = torch.tensor([[2.0, -1.0]])

        output = SimpleNamespace(logits=logits)
        names: dict[str, Any] = {
            "model": lambda output=output, **_: output,
            "tokenizer": lambda *_, **__: {},
            "output": output,
        }
        exec(used, names)
        scaled = logits / (temperature or 1)
        assert torch.equal(names["scores"], scaled.sigmoid() if several else scaled.softmax(-1))


@pytest.mark.parametrize("threshold", [None, 0.0, 1.0])
def test_the_lines_decode_a_span_as_we_do(threshold: float | None) -> None:
    """Law 12: the best pair inside the passage, compared with no answer."""
    import torch

    tuned = runs.load(RUNS_0_1_0 / "span")
    recipe, encoder = tuned.recipe, tuned.encoder
    example = self_check.samples(recipe)[0]
    ids = self_check.input_ids(encoder, recipe, example)
    run = load_snippet.PushedRun(
        recipe=recipe,
        repo_id="me/small",
        commit="c0ffee",
        reader="transformer",
        packs_head=False,
        prompt=encoder.tokenizer.decode(ids),
        pad_id=0,
        no_answer_threshold=threshold,
        passage=self_check.passage_tokens(encoder, recipe),
    )
    lines = load_snippet.snippet(run).lines
    used = "\n".join(lines[next(n for n, line in enumerate(lines) if line.startswith("tokens")) :])
    names: dict[str, Any] = {"model": tuned.model, "tokenizer": encoder.tokenizer}
    with torch.inference_mode():
        exec(used, names)
    scores = self_check.sample_scores(tuned)[0]
    starts, ends = scores[: len(ids)], scores[len(ids) :]
    windows = list(
        spans.windows(encoder, example, recipe.train.max_length, recipe.train.doc_stride)
    )
    limits = recipe.eval.n_best_size, recipe.eval.max_answer_length
    best = spans.best_span(windows, [starts], [ends], self_check.CONTEXT, *limits)
    assert len(windows) == 1 and best.text
    assert float(names["no_answer"]) == pytest.approx(best.no_answer_probability, abs=1e-6)
    is_answer = best.no_answer_probability <= (0.5 if threshold is None else threshold)
    assert names["answer"] == (best.text if is_answer else "")


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_the_lines_of_a_run_in_a_folder_name_its_own_base(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    lora: dict[str, int] | None,
) -> None:
    """The adapter of a run on a base of the Hub names a branch, and knows of no copy of the base."""
    copy = make_base()
    for name, base in (("me/base", '"me/base", revision="c0ffee"'), (str(copy), f'"{copy}"')):
        run = load_snippet.PushedRun(
            recipe=make_recipe("classification", name, lora=lora),
            repo_id="",
            commit="c0ffee",
            reader=None,
            packs_head=False,
            prompt="A text.",
            pad_id=0,
            folder=tmp_path,
        )
        text = "\n".join(load_snippet.snippet(run).lines)
        assert f"AutoModelForSequenceClassification.from_pretrained({base}, " in text
        assert lora is None or f"AutoTokenizer.from_pretrained({base})" in text
        assert ("revision" in text) == ("revision" in base)


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_the_lines_of_a_run_on_a_base_in_a_folder_give_its_scores(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lora: dict[str, int] | None,
) -> None:
    """Law 12, where nothing was pushed. The lines work in every folder, and with a base that was moved."""
    base = make_base()
    monkeypatch.chdir(base.parent)
    train = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "learning_rate": 0.01}
    recipe = make_recipe("classification", base.name, lora=lora, train=train)
    run = fit.train(recipe)
    (reply,) = predict(run, [self_check.TEXT])
    for moved in (None, tmp_path / "moved"):
        monkeypatch.chdir(base.parent)
        if moved is not None:
            base.rename(moved)
        introduction, lines = load_snippet.of_folder(open_run(run, moved and str(moved)))
        assert introduction.startswith("With transformers") and "revision" not in "".join(lines)
        if lora is None:  # the card leaves the rest to whoever reads the head
            asked = f"tokenizer({self_check.TEXT!r}, return_tensors='pt')"
            lines += [
                "from transformers import AutoTokenizer",
                f"tokenizer = AutoTokenizer.from_pretrained({str(moved or base)!r})",
                f"scores = model(**{asked}).logits.softmax(-1)",
            ]
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {}
        exec("\n".join(lines), names)
        assert names["scores"][0].tolist() == pytest.approx(
            [*reply.probabilities.values()], abs=1e-4
        )


@pytest.mark.parametrize("name", ["generative", "span"])
def test_the_lines_of_a_run_on_the_embedded_base_load_its_adapter(name: str) -> None:
    """In the precision of its checkpoint, and not in four bits, an answer may go on otherwise."""
    run, names = RUNS_0_1_0 / name, dict[str, Any]()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        exec("\n".join(load_snippet.of_folder(open_run(run)).lines), names)
    assert not [one for one in told if "missing adapter keys" in str(one.message)]
    (reply,) = predict(run, [{"question": self_check.QUESTION, "context": self_check.CONTEXT}])
    if name == "span":
        assert float(names["no_answer"]) == pytest.approx(reply.no_answer_probability, abs=0.01)
        return
    text = names["tokenizer"].decode(names["output"][0], skip_special_tokens=True)
    assert text.rpartition("Answer:")[2].split()[:2] == str(reply.prediction).split()[:2]
