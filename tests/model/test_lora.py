"""LoRA on bases of every kind: which layers get it, and what trains whole beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.inference.predict import predict
from llama_peft.model import backbone, lora
from llama_peft.model.lora import add_lora, count_loaded
from llama_peft.prefix_tree.loss import answer_loss
from llama_peft.prefix_tree.pack import collate, pack
from llama_peft.recipe import Recipe
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.weights import load_tuned
from llama_peft.training.fit import train
from tests.support.small import save_seeing_base
from tests.support.tree_examples import families, gradients, with_lora

TASKS = ["classification", "extractive_qa", "generative_qa"]


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_seeing_base(tmp_path_factory.mktemp("seeing"))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("keys", "layers"),
    [
        ({}, 14),
        ({"target_modules": "all-linear"}, 14),
        ({"target_modules": ".*(q_proj|out_proj)"}, 2),
        ({"exclude_modules": ["k_proj"]}, 12),
        ({"exclude_modules": ".*mlp.*", "target_modules": "all-linear"}, 8),
    ],
)
def test_a_base_that_also_sees_learns_text_only(
    make_recipe: Callable[..., Recipe],
    seeing: Path,
    task: str,
    keys: dict[str, object],
    layers: int,
) -> None:
    """The layers of its vision tower have the same names."""
    recipe = make_recipe(task, seeing, lora={"r": 4, **keys})
    model = add_lora(backbone.load(recipe, task, 2), recipe.lora, task, recipe)
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(names) == layers and all(".language_model." in name for name in names)
    assert count_loaded(model, task).adapter


def test_targets_in_the_vision_tower_alone_are_refused(
    make_recipe: Callable[..., Recipe], seeing: Path
) -> None:
    recipe = make_recipe("classification", seeing, lora={"r": 4, "target_modules": ["fc1"]})
    with pytest.raises(UserError, match=r"'fc1' matches no linear layer.*q_proj"):
        add_lora(backbone.load(recipe, recipe.task, 2), recipe.lora, recipe.task, recipe)


@pytest.mark.parametrize("task", TASKS)
def test_a_base_that_also_sees_trains_and_loads_back(
    make_recipe: Callable[..., Recipe], seeing: Path, tmp_path: Path, task: str
) -> None:
    """Its sizes are in a section of the config: the library's span model cannot be built from it."""
    keys = {"output_dir": str(tmp_path / "run")}
    if task == "generative_qa":
        keys["packing"] = "prefix_tree"
    run = train(make_recipe(task, seeing, bits=4, lora={"r": 4}, train=keys))
    tuned = load_tuned(open_run(run))
    examples = data.load(tuned.recipe).parts["test"][:2]
    assert sum(len(batch) for batch in predict(tuned, examples)) == 2


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("classification", "embed_tokens"),
        ("extractive_qa", "norm"),
        ("generative_qa", "lm_head"),
        ("classification", "layers.1"),
    ],
)
def test_what_trains_whole_keeps_its_updates_on_a_bfloat16_base(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    task: str,
    name: str,
) -> None:
    """It is float32 in training, in the file and when it is loaded back; its neighbours are bfloat16."""
    lora = {"r": 4, "target_modules": ["v_proj"], "modules_to_save": [name]}
    words = {"model": {"dtype": "bfloat16"}, "train": {"output_dir": str(tmp_path / "run")}}
    run = train(make_recipe(task, make_base(), lora=lora, **words))
    tuned = load_tuned(open_run(run))
    held = get_peft_model_state_dict(tuned.model, save_embedding_layers=False)
    written = load_file(run / "adapter/adapter_model.safetensors")
    assert held.keys() == written.keys() and any(f"{name}." in key for key in held)
    for key, value in held.items():
        assert value.dtype == torch.float32 and torch.equal(value, written[key]), key
    examples = data.load(tuned.recipe).parts["test"][:2]
    assert sum(len(batch) for batch in predict(tuned, examples)) == 2


def test_under_autocast_adapters_keep_no_widened_inputs_and_learn_the_same_bits() -> None:
    """As on a GPU, on a base that is not packed."""
    batch = collate(pack(families(2, questions=3), 64))
    kept, learnt = [], []
    for ours in (False, True):
        model = with_lora("llama-sdpa")
        for parameter in model.parameters():
            parameter.data = (
                parameter.data if parameter.requires_grad else parameter.data.bfloat16()
            )
        if ours:
            lora._leave_casts_to_autocast(model)
        held: dict[int, torch.UntypedStorage] = {}

        def note(
            tensor: torch.Tensor, held: dict[int, torch.UntypedStorage] = held
        ) -> torch.Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            answer_loss(model, batch).backward()
        kept.append(sum(storage.nbytes() for storage in held.values()))
        learnt.append(gradients(model))
    assert torch.equal(*learnt)
    assert kept[1] < 0.95 * kept[0]
