"""Small real objects that tests are made of: a random base of a few thousand weights, and a recipe on it."""

import shutil
from pathlib import Path
from typing import Any

from llama_peft import tiny
from llama_peft.recipe import Recipe, validate


def save_base(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """Save a base of a family with two blocks, and the embedded model's tokenizer; `changes` are to its config."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        Gemma2Config,
        Gemma3TextConfig,
        GemmaConfig,
        LlamaConfig,
    )

    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    classes = {
        "llama": LlamaConfig,
        "gemma": GemmaConfig,
        "gemma2": Gemma2Config,
        "gemma3_text": Gemma3TextConfig,
    }
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family in ("gemma2", "gemma3_text"):
        settings |= {"sliding_window": 16, "query_pre_attn_scalar": 32}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(classes[family](**(settings | changes))).save_pretrained(
        folder
    )
    for file in tiny.MODEL_DIR.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def save_seeing_base(folder: Path) -> Path:
    """Save a Gemma 3 with a vision tower of one block beside its two blocks for text."""
    import torch
    from transformers import AutoConfig, Gemma3Config, Gemma3ForConditionalGeneration

    text = AutoConfig.from_pretrained(save_base(folder, "gemma3_text"))
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=1
    )
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def make_recipe(
    task: str,
    base: Path | str,
    bits: int = 32,
    lora: dict[str, Any] | None = None,
    **sections: Any,
) -> Recipe:
    """A recipe of a task on a base, small and on the CPU; keyword arguments are sections of their own."""
    name = "reviews" if task == "classification" else "passages"
    values: dict[str, Any] = {
        "name": "small",
        "task": task,
        "model": {"model_name_or_path": str(base), "dtype": "float32"},
        "quantization": {"load_in_4bit": bits == 4, "load_in_8bit": bits == 8},
        "lora": lora,
        "dataset": {
            "path": "tiny",
            "name": name,
            "parts": {"train": 24, "validation": 8, "test": 16},
        },
        "train": {
            "use_cpu": True,
            "max_steps": 2,
            "logging_steps": 1,
            "learning_rate": 2e-4,
            "num_train_epochs": 3.0,
        },
    }
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys}
    recipe, faults = validate(values)
    assert recipe is not None and not faults, faults
    return recipe
