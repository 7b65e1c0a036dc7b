"""The lines of Python in a card."""

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_peft.export import load_snippet
from llama_peft.recipe import Recipe
from tests.support.html import EVIL, GOOD


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
