"""Examples that are longer than every row are counted and reported."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.inference import predict
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.training import rows


def test_examples_that_fit_no_row_are_counted(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = make_recipe("generative_qa", make_base(), lora={"r": 4})
    encoder = predict.PromptEncoder(backbone.load_tokenizer(recipe.model), recipe.prompt)
    examples = data.load(recipe).parts["train"]
    lengths = sorted(len(one.prompt) for one in encoder.encode(examples))
    short = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"max_length": lengths[12]})}
    )
    found = rows.encode_part(short, encoder, "train", examples)
    kept = {id_ for row in found for id_ in row["ids"]}
    assert f"{len(examples) - len(kept)} of {len(examples)} examples are longer" in caplog.text
    none = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_length": 8})})
    with pytest.raises(UserError, match="no example fits"):
        rows.encode_part(none, encoder, "train", examples)
