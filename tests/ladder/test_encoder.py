"""An encoder is fine-tuned whole, by the plain Trainer, on the recipe's own split."""

import json
import shutil
from pathlib import Path

import pytest

from eval import evaluate
from llama_peft import tiny
from llama_peft.errors import UserError
from llama_peft.ladder import encoder
from llama_peft.recipe import Recipe
from llama_peft.run_folder.ladder.encoder import ENCODER, read_encoder
from tests.support.small import make_recipe


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two blocks, with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    size = len(AutoTokenizer.from_pretrained(tiny.MODEL_DIR))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=size, intermediate_size=64, **shape)).save_pretrained(folder)
    for file in tiny.MODEL_DIR.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def recipe_of(base: Path, run: Path, seed: int = 1) -> Recipe:
    data = {"parts": {"train": 64, "validation": 8, "test": 40}}
    train = {"output_dir": str(run), "seed": seed, "max_steps": -1}
    return make_recipe("classification", base, dataset=data, train=train)


def test_an_encoder_trains_once_and_any_tool_loads_it(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForSequenceClassification

    recipe = recipe_of(bert, tmp_path / "run")
    folder = encoder.train(recipe)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    record = read_encoder(folder.parent)
    assert record is not None
    assert record.steps == 300  # few examples are read more often
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert [*model.config.id2label.values()] == ["negative", "positive"]
    scored = evaluate(folder, task=recipe, kind="classifier", output=tmp_path / "results")
    assert scored.n_samples["small"].effective == 40
    before = AutoModel.from_pretrained(bert).state_dict()
    after = model.bert.state_dict()
    assert not [
        name
        for name in before
        if before[name].is_floating_point()
        and before[name].equal(after[name])
        and "pooler" not in name
    ]
    assert encoder.train(recipe) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    (folder / "config.json").write_text("{}")
    assert read_encoder(folder.parent) is None  # it would be trained again


def test_an_encoder_without_a_weight_is_refused(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(bert, broken)
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if "encoder.layer.1" in name)
    del weights[name]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks weights, which would be random"):
        encoder.train(recipe_of(broken, tmp_path / "run"))
    assert not (tmp_path / "run" / ENCODER).exists()
    assert not json.dumps([*map(str, (tmp_path / "run").glob("*.json"))]).count("encoder")
