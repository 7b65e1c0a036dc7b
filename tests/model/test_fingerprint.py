"""What tells one base from another of the same name."""

from collections.abc import Callable
from pathlib import Path

from llama_peft.model import fingerprint
from llama_peft.recipe import Recipe


def test_every_weight_of_a_folder_tells_it_from_another(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3 << 20))
    recipe = make_recipe("generative_qa", tmp_path, lora={"r": 2})
    before = fingerprint.base_fingerprint(recipe)
    with weights.open("r+b") as file:
        file.seek(3 << 19)
        file.write(b"1")
    assert fingerprint.base_fingerprint(recipe) != before
