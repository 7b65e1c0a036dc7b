"""What is measured: a model of random weights and real questions.

Speed does not depend on what weights say, only on their shapes. On a CPU that is a Llama of 51M
parameters in float32; on CUDA the shape of Llama-3.2-1B in NF4 with bfloat16. Where the real data
(../shared) are not on this machine, generated passages stand in, and the results say so.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llama_peft import data, tiny
from llama_peft.data import QuestionExample
from llama_peft.model import backbone
from llama_peft.model.lora import add_lora
from llama_peft.prefix_tree import varlen
from llama_peft.recipe import Recipe, schedule, validate
from llama_peft.tokens.prompts import Encoded, PromptEncoder
from tests.support.paths import SHARED

DENSITY = 7
"""Questions a paragraph: SQuAD v2's train set has 6.85; its dev set, read here, has 9.6."""

CPU_SHAPE: dict[str, Any] = {
    "hidden_size": 640,
    "intermediate_size": 1728,
    "num_hidden_layers": 10,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
CUDA_SHAPE: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


@dataclass(frozen=True)
class Questions:
    """Questions, paragraph by paragraph, and where they are from."""

    examples: list[QuestionExample]
    source: str

    def facts(self) -> dict[str, Any]:
        paragraphs = len({example.context for example in self.examples})
        return {"data": self.source, "questions": len(self.examples), "paragraphs": paragraphs}


SQUAD = SHARED / "data/squad/squad_v2.json"
MANY = 10**6
"""Rows with which a recipe has the usual rate and epochs, whatever it is measured with."""
SST2 = SHARED / "data/sst2/train.tsv"


def questions(count: int, seed: int = 0, path: Path = SQUAD) -> Questions:
    """`count` questions of random SQuAD paragraphs, `DENSITY` of each; generated ones without the file."""
    if not path.is_file():
        parts = {"train": count, "validation": 1, "test": 1}
        drawn = {"path": "tiny", "name": "passages", "parts": parts}
        found = data.load(recipe(tiny.MODEL_DIR, dataset=drawn)).parts["train"]
        return Questions([e for e in found if isinstance(e, QuestionExample)], "tiny passages")
    rng = random.Random(seed)
    paragraphs = [group for group in by_paragraph(squad(path)) if len(group) >= DENSITY]
    rng.shuffle(paragraphs)
    drawn_examples = [e for group in paragraphs for e in rng.sample(group, DENSITY)]
    name = "SQuAD v2 dev" if path == SQUAD else path.name
    return Questions(drawn_examples[:count], f"{name}, {DENSITY} questions a paragraph")


def squad(path: Path = SQUAD) -> list[QuestionExample]:
    """All questions of a file, in its order."""
    found = data.load_file(recipe(tiny.MODEL_DIR), str(path)).parts["data"]
    return [example for example in found if isinstance(example, QuestionExample)]


def by_paragraph(examples: Sequence[QuestionExample]) -> list[list[QuestionExample]]:
    """Neighbours on one paragraph together."""
    return [list(group) for _, group in groupby(examples, key=lambda example: example.context)]


@dataclass(frozen=True)
class Base:
    """A saved base model and how this machine loads it."""

    folder: Path
    dtype: str = ""
    """Of activations; empty: the fast one of a GPU, and float32 on a CPU."""
    packed: bool = torch.cuda.is_available()
    """Whether its weights are loaded as NF4."""

    @property
    def encoder(self) -> PromptEncoder:
        its = self.recipe()
        return PromptEncoder(backbone.load_tokenizer(its.model), its.prompt)

    def recipe(self, attention: str | None = None) -> Recipe:
        return recipe(
            self.folder,
            None if attention == varlen.NAME else attention,  # `load` puts it in its place
            self.dtype or precision(),
            quantization={"load_in_4bit": self.packed},
        )

    def load(self, attention: str | None = None) -> PreTrainedModel:
        """The frozen base, fresh, in evaluation mode. On a CPU varlen attention is its plain twin."""
        model = backbone.load(self.recipe(attention), "generative_qa")
        if attention == varlen.NAME:
            varlen.register(model.config)
        return model

    def adapted(self, attention: str | None = None) -> PeftModel:
        """The base with LoRA r16 on the seven projections; every call draws the same weights."""
        its = self.recipe(attention)
        model = self.load(attention)
        assert its.lora is not None
        torch.manual_seed(0)
        return add_lora(model, its.lora, "generative_qa", its)

    def facts(self) -> dict[str, Any]:
        config = AutoConfig.from_pretrained(self.folder)
        with torch.device("meta"):
            parameters = AutoModelForCausalLM.from_config(config).num_parameters()
        kind = f"{'NF4, ' if self.packed else ''}{self.dtype or precision()}"
        return {
            "model": f"Llama, random weights, hidden {config.hidden_size}, "
            f"{config.num_hidden_layers} layers, vocabulary {config.vocab_size}",
            "parameters": parameters,
            "precision": kind,
            "lora": "r 16 on the seven projections",
        }


def precision() -> str:
    """The type of activations on this machine."""
    if not torch.cuda.is_available():
        return "float32"
    return str(backbone.fast_dtype(backbone.device())).removeprefix("torch.")


def random_base(folder: Path, **changes: Any) -> Base:
    """Save a Llama of random weights with the tokenizer that this machine has for it."""
    cuda = torch.cuda.is_available()
    name = "llama-3.2-1b" if cuda else "llama-mini"
    source = SHARED / name if (SHARED / name).is_dir() else tiny.MODEL_DIR
    tokenizer = AutoTokenizer.from_pretrained(source)
    shape = (CUDA_SHAPE | {"vocab_size": 128256} if cuda else CPU_SHAPE) | changes
    shape.setdefault("vocab_size", len(tokenizer))
    config = LlamaConfig(
        **shape,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return save_random(folder, config, tokenizer)


def save_random(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Base:
    """Save a model of this config with seeded random weights, made on the GPU if there is one."""
    # Wide enough for attention that picks out tokens: answers then differ between questions.
    config.initializer_range = 1.3 / config.hidden_size**0.5
    torch.manual_seed(0)
    with backbone.device():
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, precision()))
    # A random tied model repeats its last token for ever, unless its layers outweigh its embedding.
    model.get_input_embeddings().weight.data *= 0.02
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Base(folder)


def recipe(
    folder: Path, attention: str | None = None, dtype: str | None = None, **sections: Any
) -> Recipe:
    """A generative recipe on a base, as this machine runs it; `sections` replace its own."""
    cuda = torch.cuda.is_available()
    values: dict[str, Any] = {
        "name": "benchmark",
        "task": "generative_qa",
        "model": {
            "model_name_or_path": str(folder),
            "dtype": dtype or precision(),
            "attn_implementation": attention,
        },
        "quantization": {"load_in_4bit": cuda},
        "lora": {"r": 16},
        "train": {"use_cpu": not cuda},
        "dataset": {"path": str(SQUAD)},
        **sections,
    }
    found, faults = validate(values)
    if found is None:
        raise ValueError(json.dumps([str(fault) for fault in faults]))
    return found.with_train(schedule.choose(found, MANY, None))


def encoded(encoder: PromptEncoder, examples: Sequence[QuestionExample]) -> Iterator[Encoded]:
    """The examples as training sees them."""
    return encoder.encode(examples)
