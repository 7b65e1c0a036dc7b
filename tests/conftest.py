"""Fixtures that several test files share. No test needs a network, a token or a GPU."""

import os
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

# One thread a test: with busy cores two threads can be ten times slower. Set before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest

# Here and in every child process: a test that asks the network for anything fails (law 13).
NO_NETWORK = str(Path(__file__).parent / "no_network")
os.environ["PYTHONPATH"] = os.pathsep.join(
    [NO_NETWORK, *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ.pop("HF_TOKEN", None)
runpy.run_path(str(Path(NO_NETWORK) / "sitecustomize.py"))

from llama_peft import tiny
from llama_peft.recipe import Recipe, validate

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and the real tokenizer, which is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip("real data (../shared) is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a small random base of a family, with the embedded model's tokenizer, and returns its folder."""

    def make(family: str = "llama", **changes: Any) -> Path:
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
        model = AutoModelForCausalLM.from_config(classes[family](**(settings | changes)))
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        for file in tiny.MODEL_DIR.glob("tokenizer*"):
            shutil.copy(file, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Recipe]:
    """A recipe of a task on a base, small and on the CPU; keyword arguments are sections of their own."""

    def make(
        task: str,
        base: Path | str,
        bits: int = 32,
        lora: dict[str, Any] | None = None,
        **sections: Any,
    ) -> Recipe:
        name = "reviews" if task == "classification" else "passages"
        values = {
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
            "train": {"use_cpu": True, "max_steps": 2, "logging_steps": 1},
        }
        for section, keys in sections.items():
            values[section] = {**values.get(section, {}), **keys}
        recipe, faults = validate(values)
        assert recipe is not None and not faults, faults
        return recipe

    return make
