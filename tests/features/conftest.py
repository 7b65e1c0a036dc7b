"""A head alone on a small base, with encoded rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_peft import data
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.tokens.prompts import PromptEncoder
from llama_peft.training.rows import encode_part

FAMILIES = ["llama", "gemma", "gemma3_text"]
LAYERS = 3

Made = tuple[Recipe, Any, list[dict[str, Any]]]


@pytest.fixture
def make(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> Callable[..., Made]:
    """Returns a recipe of a head alone, its base, and encoded rows."""

    def build(family: str = "llama", bits: int = 32, rows: int = 40, **head: Any) -> Made:
        recipe = make_recipe(
            "classification",
            make_base(family, num_hidden_layers=LAYERS),
            bits=bits,
            head=head,
            dataset={"parts": {"train": rows, "validation": 16, "test": 8}},
            train={"output_dir": str(tmp_path / "runs" / "run")},
        )
        model = backbone.load(recipe, "classification", 2)
        encoder = PromptEncoder(backbone.load_tokenizer(recipe.model), recipe.prompt)
        dataset = data.load(recipe)
        return recipe, model, encode_part(recipe, encoder, "train", dataset.parts["train"])

    return build
