"""Law 1: no backbone weight is ever silently random; what loads is frozen and complete."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.model.lora import add_lora, count_loaded
from llama_peft.recipe import Prompt, Recipe
from llama_peft.tokens.batches import pad
from llama_peft.tokens.prompts import PromptEncoder

TASKS = ["classification", "extractive_qa", "generative_qa"]


def edited(base: Path, to: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Return a copy of a base with changed weights."""
    shutil.copytree(base, to)
    tensors = load_file(to / "model.safetensors")
    edit(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("task", TASKS)
def test_every_backbone_weight_is_that_of_the_checkpoint(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], family: str, task: str
) -> None:
    """transformers' own Llama question answering model fails here: its whole backbone is random."""
    folder = make_base(family)
    model = backbone.load(make_recipe(task, folder, lora={"r": 4}), task, 2)
    wanted = AutoModelForCausalLM.from_pretrained(folder).model.state_dict()
    found = model.model.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("bits", [4, 32])
def test_broken_checkpoints_are_refused(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    task: str,
    bits: int,
) -> None:
    base = make_base()
    name = "model.layers.1.mlp.up_proj.weight"
    cases: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
        "lacks": lambda t: t.pop(name),
        "no place": lambda t: t.update({"model.layers.7.mlp.up_proj.weight": t[name].clone()}),
        "another shape": lambda t: t.update({name: t[name][:64].clone()}),
    }
    for i, (message, edit) in enumerate(cases.items()):
        folder = edited(base, tmp_path / str(i), edit)
        with pytest.raises(UserError, match=message):
            backbone.load(make_recipe(task, folder, bits=bits, lora={"r": 4}), task, 2)


def test_pickled_weights_and_missing_files_are_refused(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(make_base(), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        backbone.load(make_recipe("classification", folder), "classification", 2)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        backbone.load(make_recipe("classification", folder), "classification", 2)


def test_a_module_inside_another_saved_module_is_refused(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    """PEFT would keep two copies of it."""
    lora = {"r": 4, "modules_to_save": ["layers.1", "up_proj"]}
    recipe = make_recipe("classification", make_base(), lora=lora)
    model = backbone.load(recipe, "classification", 2)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj is inside of another"):
        add_lora(model, recipe.lora, "classification", recipe)


def test_only_adapter_and_head_train(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    """A 4-bit load leaves embeddings and norms trainable; ours freezes them."""
    folder = make_base()
    for task in TASKS:
        recipe = make_recipe(task, folder, bits=4, lora={"r": 4})
        model = backbone.load(recipe, task, 2)
        assert not any(p.requires_grad for p in model.parameters())
        adapted = add_lora(model, recipe.lora, task, recipe)
        trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
        assert all("lora_" in n or "modules_to_save" in n for n in trained)
        assert any("modules_to_save" in n for n in trained) == (task != "generative_qa")


def test_cpu_4bit_weights_are_never_repacked(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    """Trap 22: after repacking, gradients through Linear4bit are wrong, and no error says so."""
    from bitsandbytes.nn import Linear4bit

    model = backbone.load(
        make_recipe("generative_qa", make_base(), bits=4, lora={"r": 4}), "generative_qa"
    )
    layers = [m for m in model.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 14 and not any(m.support_avx512bf16_for_cpu for m in layers)


def test_targets_that_match_nothing_are_refused(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    folder = make_base()
    for targets in (["q_proj", "c_attn"], "model.layers.*.attn"):
        recipe = make_recipe("generative_qa", folder, lora={"r": 4, "target_modules": targets})
        with pytest.raises(UserError, match=r"matches no linear layer.*q_proj"):
            add_lora(backbone.load(recipe, "generative_qa"), recipe.lora, "generative_qa", recipe)


def test_all_linear_leaves_heads_alone(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    for task in TASKS:
        recipe = make_recipe(
            task, make_base(), bits=4, lora={"r": 4, "target_modules": "all-linear"}
        )
        adapted = add_lora(backbone.load(recipe, task, 2), recipe.lora, task, recipe)
        names = [n for n, _ in adapted.named_parameters() if "lora_A" in n]
        assert len(names) == 14 and all(".layers." in n for n in names)


def test_head_follows_the_seed(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    folder = make_base()
    weights = [
        backbone.load(
            make_recipe("classification", folder, train={"seed": seed}), "classification", 2
        ).score.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_tokens_beyond_the_embedding_are_refused_if_a_prompt_can_hold_them(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    from transformers import AddedToken, AutoTokenizer

    def load(name: str, change: Callable[[AutoTokenizer], object]) -> AutoTokenizer:
        folder = tmp_path / name
        shutil.copytree(make_base(), folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        change(tokenizer)
        tokenizer.save_pretrained(folder)
        return backbone.load_tokenizer(make_recipe("classification", folder).model)

    def turns(tokenizer: AutoTokenizer) -> None:
        tokenizer.add_tokens(AddedToken("<|turn|>", special=True))
        tokenizer.chat_template = "{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}"

    refused: dict[str, Callable[[AutoTokenizer], object]] = {
        "<word>": lambda one: one.add_tokens("<word>"),
        "<end>": lambda one: one.add_special_tokens({"eos_token": "<end>"}),
        r"<\|turn\|>": turns,
    }
    for number, (token, change) in enumerate(refused.items()):
        with pytest.raises(
            UserError, match=f"the token '{token}' with the id .* its embedding has"
        ):
            load(str(number), change)
    image = load("image", lambda one: one.add_tokens(AddedToken("<image>", special=True)))
    text = image("<image> [PAD]", add_special_tokens=False, split_special_tokens=True)
    assert max(text["input_ids"]) < len(image) - 1


def test_transformers_alone_pools_the_same_token(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """It finds the last token by the padding id in the config, and never reads the mask."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path / "base"
    shutil.copytree(make_base(), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    ours = backbone.load(make_recipe("classification", folder), "classification", 2)
    own = PromptEncoder(
        backbone.load_tokenizer(make_recipe("classification", folder).model), Prompt()
    )
    rows = [own.head_input(text, 50) for text in ("A fine film.", "Bad</s>", "a b c d e f g h")]
    ids, mask = pad(rows, ours.config.pad_token_id)
    stock = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, pad_token_id=ours.config.pad_token_id
    )
    stock.score.load_state_dict(ours.score.state_dict())
    with torch.no_grad():
        found = [model(input_ids=ids, attention_mask=mask).logits for model in (ours, stock)]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_tokenizer_pads_with_a_token_of_its_own(
    shared: Path, make_recipe: Callable[..., Recipe]
) -> None:
    """Padding with the end-of-text token would hide that token's labels, and a model would never stop."""
    folder = shared / "llama-3.2-1b"
    tokenizer = backbone.load_tokenizer(make_recipe("classification", folder).model)
    assert tokenizer.pad_token_id == 128004 != tokenizer.eos_token_id
    assert tokenizer.pad_token_id < json.loads((folder / "config.json").read_text())["vocab_size"]


def test_a_refusal_by_peft_is_one_line(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    recipe = make_recipe("generative_qa", make_base(), lora={"r": 4, "exclude_modules": ["q_proj"]})
    lora = recipe.lora.model_copy(update={"target_modules": ["q_proj"]})
    with pytest.raises(UserError, match="lora: PEFT cannot put this on the base: "):
        add_lora(backbone.load(recipe, "generative_qa"), lora, "generative_qa", recipe)


def test_an_adapter_changes_no_bias_of_the_base(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    for wanted, biases in (("lora_only", True), ("all", True), ("all", False)):
        lora = {"r": 4, "bias": wanted}
        recipe = make_recipe("generative_qa", make_base(attention_bias=biases), lora=lora)
        model = backbone.load(recipe, "generative_qa")
        if biases:
            with pytest.raises(UserError, match=f"lora.bias: {wanted} would change"):
                add_lora(model, recipe.lora, "generative_qa", recipe)
        else:
            adapted = add_lora(model, recipe.lora, "generative_qa", recipe)
            assert count_loaded(adapted, "generative_qa").adapter


def test_an_older_gpu_computes_in_float16_and_in_float32_if_that_is_too_narrow(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch counts an emulated bfloat16 as supported, unless it is asked not to."""
    recipes = {
        family: make_recipe("classification", make_base(family), model={"dtype": None}, train={"use_cpu": False})
        for family in ("llama", "gemma", "gemma2", "gemma3_text")
    }  # fmt: skip
    asked = {
        f"{family}, asked": recipe.changed(model={"dtype": "bfloat16"})
        for family, recipe in recipes.items()
    }
    found = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for card, native in (("T4", False), ("RTX 4090", True)):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: including_emulation or native,
        )
        found[card] = {name: backbone.dtype_name(one) for name, one in (recipes | asked).items()}
    assert found["RTX 4090"] == dict.fromkeys(recipes | asked, "bfloat16")
    narrow = {"llama": "float16", "gemma": "float16", "gemma2": "float32", "gemma3_text": "float32"}
    assert found["T4"] == narrow | {f"{family}, asked": dtype for family, dtype in narrow.items()}
