"""An encoder, and the base itself, are fine-tuned whole, by the plain Trainer, on the recipe's own split."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from eval import evaluate
from llama_peft import tiny
from llama_peft.errors import UserError
from llama_peft.ladder import whole
from llama_peft.model import backbone, room
from llama_peft.recipe import Recipe
from llama_peft.run_folder.ladder.rungs import measurements
from llama_peft.run_folder.ladder.whole import MODEL_FOLDER, read_whole
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


@pytest.fixture(params=["bert", "llama"])
def base(request: pytest.FixtureRequest, bert: Path, make_base: Callable[..., Path]) -> Path:
    return bert if request.param == "bert" else make_base()


def test_a_model_trains_once_and_any_tool_loads_it(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForSequenceClassification

    recipe = recipe_of(base, tmp_path / "run")
    folder = whole.train(recipe)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    record = read_whole(folder.parent)
    assert record is not None
    assert record.steps == 300  # few examples are read more often
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert [*model.config.id2label.values()] == ["negative", "positive"]
    scored = evaluate(folder, task=recipe, kind="classifier", output=tmp_path / "results")
    assert scored.n_samples["small"].effective == 40
    before = AutoModel.from_pretrained(base).state_dict()
    after = model.base_model.state_dict()
    assert not [
        name
        for name in before
        if before[name].is_floating_point()
        and before[name].equal(after[name])
        and "pooler" not in name
    ]
    assert whole.train(recipe) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    (folder / "config.json").write_text("{}")
    assert read_whole(folder.parent) is None  # it would be trained again


def test_an_encoder_without_a_weight_is_refused(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(bert, broken)
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if "encoder.layer.1" in name)
    del weights[name]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks weights, which would be random"):
        whole.train(recipe_of(broken, tmp_path / "run"))
    assert not (tmp_path / "run" / MODEL_FOLDER).exists()
    assert not json.dumps([*map(str, (tmp_path / "run").glob("*.json"))]).count("encoder")


def test_the_base_is_trained_whole_where_the_memory_holds_it(
    make_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = recipe_of(make_base(), tmp_path / "run")
    recipe = own.model_copy(update={"ladder": own.ladder.model_copy(update={"full": True})})
    assert "full" not in [one.rung for one in measurements(own, 64)]
    (full,) = (one for one in measurements(recipe, 64) if one.rung == "full")
    assert full.is_trained
    assert full.recipe.lora is None
    assert full.recipe.model.model_name_or_path == own.model.model_name_or_path
    monkeypatch.setattr(backbone, "from_pretrained", None)  # nothing is loaded for this
    monkeypatch.setattr(room, "free_memory", lambda recipe: 100_000)
    with pytest.raises(UserError, match=r"all of its [\d,]+ weights takes at least"):
        whole.train(full.recipe)
    monkeypatch.undo()
    monkeypatch.setattr(whole, "free_disk", lambda folder: 100_000)
    with pytest.raises(UserError, match=r"of disk, but 0.0 GB are free"):
        whole.train(full.recipe)
    config = Path(str(own.model.model_name_or_path)) / "config.json"
    known = json.loads(config.read_text())
    known["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.write_text(json.dumps(known))
    with pytest.raises(UserError, match=r"its weights are packed \(4bit\)"):
        whole.train(full.recipe)
