"""LoRA on upper blocks predicts from the states of the frozen ones what the whole model predicts."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.predictors.open import open_predictor
from eval.predictors.recognise import identify
from llama_peft import data
from llama_peft.features import blocks
from llama_peft.features.cache import cache_folder
from llama_peft.inference.on_states import OnStates, shares_states
from llama_peft.inference.predict import predict
from llama_peft.model import backbone, lora
from llama_peft.recipe import Lora, Recipe, dump_recipe
from llama_peft.run_folder.layout import LADDER, LADDER_RECIPE
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.weights import TunedModel, load_tuned
from llama_peft.system.files import make_folder, write_text
from llama_peft.training import fit
from tests.support.small import make_recipe


@pytest.fixture
def upper(make_base: Callable[..., Path], tmp_path: Path) -> Callable[..., Recipe]:
    """Returns a recipe with LoRA on the last two of three blocks."""

    def build(task: str, family: str = "llama", **train: Any) -> Recipe:
        keys = {"max_steps": 4, "learning_rate": 0.03, "per_device_train_batch_size": 4, **train}
        keys |= {"output_dir": str(tmp_path / "runs/run"), "reuse_frozen_blocks": True}
        base = make_base(family, num_hidden_layers=3)
        return make_recipe(task, base, lora={"r": 4, "layers_to_transform": [1, 2]}, train=keys)

    return build


def count_runs(tuned: TunedModel) -> Counter[int]:
    """Count how often each block computes a batch from now on."""
    seen: Counter[int] = Counter()
    for number, block in enumerate(tuned.model.get_decoder().layers):
        block.mlp.register_forward_pre_hook(lambda *_, n=number: seen.update([n]))
    return seen


@pytest.mark.parametrize(
    ("task", "family", "train"),
    [
        ("classification", "gemma3_text", {}),
        ("extractive_qa", "llama", {"packing": "prefix_tree", "max_length": 72, "doc_stride": 8}),
    ],
)
def test_the_same_predictions_as_with_all_blocks(
    upper: Callable[..., Recipe], task: str, family: str, train: dict[str, Any]
) -> None:
    """Of texts and of windows of passages; the frozen block runs once for each, whoever asks."""
    recipe = upper(task, family, **train)
    run = open_run(fit.train(recipe))
    tuned, examples = load_tuned(run), data.load(recipe).parts["test"]
    assert len(blocks.frozen(tuned.model)) == 1
    expected = {one.id: one for batch in predict(tuned, examples, 4) for one in batch}
    seen = count_runs(tuned)
    assert open_predictor(identify(str(run.folder), recipe), recipe, run.labels).prepare is None
    several = recipe.changed(ladder={"seeds": [1, 2]})
    write_text(make_folder(run.folder, LADDER), LADDER_RECIPE, dump_recipe(several))
    opened = open_predictor(identify(str(run.folder), recipe), recipe, run.labels)
    assert opened.prepare is not None and opened.prepare(examples) > 0
    shared = OnStates(tuned, cache_folder(run.folder))
    assert shared.prepare(examples) > 0 and not seen, "the states are there already"
    for several in (opened.predict(examples, 4), shared.predict(examples, 4)):
        found = [one for batch in several for one in batch]
        assert sorted(one.id for one in found) == sorted(expected)
        for one in found:
            right = expected[one.id]
            assert one.prediction == right.prediction
            scores, others = (
                (its.no_answer_probability, *(its.probabilities or ())) for its in (one, right)
            )
            assert scores == pytest.approx(others, abs=1e-5)
    assert 0 not in seen and seen[1] == seen[2] > 0
    assert len({one.probabilities or one.no_answer_probability for one in expected.values()}) > 1
    # The model is as before, also for what was not prepared.
    again = [one for batch in predict(tuned, examples, 4) for one in batch]
    assert {one.id: one for one in again} == expected and seen[0]
    with pytest.raises(KeyError, match="no states"):
        next(shared.predict(data.load(recipe).parts["validation"], 4))


def test_a_state_of_another_text_would_be_seen(
    upper: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the predictions above do depend on the states."""
    recipe = upper("classification")
    tuned = load_tuned(open_run(fit.train(recipe)))
    examples = data.load(recipe).parts["test"]
    plain = {one.id: one.probabilities for batch in predict(tuned, examples, 4) for one in batch}
    shared = OnStates(tuned, cache_folder(Path(recipe.run_folder)))
    shared.prepare(examples)
    given = blocks.given
    monkeypatch.setattr(blocks, "given", lambda its, states: given(its, states.roll(1, 0)))
    moved = [one for batch in shared.predict(examples, 4) for one in batch]
    assert any(one.probabilities != pytest.approx(plain[one.id], abs=1e-4) for one in moved)


def test_who_predicts_from_states(upper: Callable[..., Recipe], tmp_path: Path) -> None:
    """A run that writes answers, or whose training used no states, or that lies elsewhere, does not."""
    recipe = upper("classification")
    run = open_run(fit.train(recipe))
    assert not shares_states(recipe, run.folder), "its ladder, if it has one, trains it alone"
    several = recipe.changed(ladder={"sizes": [2]})
    write_text(make_folder(run.folder, LADDER), LADDER_RECIPE, dump_recipe(several))
    assert shares_states(recipe, run.folder)
    assert shares_states(recipe, run.folder / LADDER / "tuned-2")
    assert not shares_states(upper("generative_qa"), run.folder)
    assert not shares_states(recipe.with_train({"reuse_frozen_blocks": False}), run.folder)
    cache_folder(run.folder).rename(tmp_path / "elsewhere")
    assert not shares_states(recipe, run.folder)


@pytest.mark.parametrize(
    ("keys", "frozen"),
    [
        ({"layers_to_transform": [2]}, 2),
        ({"layers_to_transform": [1], "lora_bias": True}, 1),
        ({"layers_to_transform": [2], "modules_to_save": ["layers.1.mlp.up_proj"]}, 1),
        ({"layers_to_transform": [2], "trainable_token_indices": [3]}, 0),
    ],
)
def test_what_was_trained_is_found_without_gradients(
    upper: Callable[..., Recipe], keys: dict[str, Any], frozen: int
) -> None:
    recipe = upper("classification").changed(lora=Lora(r=2, **keys))
    model = backbone.load(recipe, "classification", 2)
    adapted = lora.add_lora(model, recipe.lora, "classification", recipe)
    assert len(blocks.frozen(adapted)) == frozen
    adapted.requires_grad_(False)
    assert len(blocks.frozen(adapted)) == frozen
