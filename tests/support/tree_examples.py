"""Small real models and examples for the tests of shared prefixes."""

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

VOCABULARY = 96
WINDOW = 6  # shorter than any row, and than most prompts
MODELS = ("llama-sdpa", "llama-eager", "gemma2-eager", "gemma3-sdpa", "gemma3-eager")


class Example(NamedTuple):
    id: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...] = ()


def tiny_model(kind: str, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """A random model, its weights wide enough that outputs differ from prompt to prompt."""
    family, attention = kind.split("-")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        _config(family, vocabulary), attn_implementation=attention, dtype=torch.float32
    )
    return model.eval()


def _config(family: str, vocabulary: int) -> PreTrainedConfig:
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,  # a random tied model repeats its last token for ever
    }
    if family == "llama":
        return LlamaConfig(**shape)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    gemma = Gemma2Config if family == "gemma2" else Gemma3TextConfig
    return gemma(**shape, sliding_window=WINDOW, layer_types=kinds, query_pre_attn_scalar=16)


def families(count: int, seed: int = 0, questions: int = 6) -> list[Example]:
    """Examples that share an instruction, families that share a paragraph, one asked twice."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(low, high)))

    instruction, examples = tokens(4, 4), []
    for family in range(count):
        prefix = instruction + tokens(5, 18)
        for question in range(rng.randint(1, questions)):
            prompt = prefix + tokens(1, 6)
            examples.append(Example(f"{family}-{question}", prompt, (*tokens(0, 4), 1)))
    return [*examples, examples[0]._replace(id="again")]


def real_questions(shared: Path, count: int, seed: int = 0) -> list[Example]:
    """SQuAD questions of random paragraphs: instruction, passage, question, and the answer."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "llama-mini")

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    data = json.loads((shared / "data/squad/squad_v2.json").read_text())["data"]
    paragraphs = [paragraph for title in data for paragraph in title["paragraphs"]]
    random.Random(seed).shuffle(paragraphs)
    instruction = (tokenizer.bos_token_id, *encode("Answer from the passage.\n\n"))

    def examples() -> Any:
        for paragraph in paragraphs:
            prefix = instruction + encode(f"Passage: {paragraph['context']}\n\n")
            for entry in paragraph["qas"]:
                answer = entry["answers"][0]["text"] if entry["answers"] else "unanswerable"
                prompt = prefix + encode(f"Question: {entry['question']}\nAnswer:")
                completion = (*encode(f" {answer}"), tokenizer.eos_token_id)
                yield Example(entry["id"], prompt, completion)

    return list(islice(examples(), count))
