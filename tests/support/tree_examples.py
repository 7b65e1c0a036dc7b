"""Small real models and examples for the tests of shared prefixes."""

import json
import random
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from llama_peft.prefix_tree import varlen
from llama_peft.prefix_tree.mask import install, mask_rule
from llama_peft.prefix_tree.pack import EncodedLike, Example, TreeRow, collate, pack

VOCABULARY = 96
WINDOW = 6  # shorter than any row, and than most prompts
ROOM = 64
"""Tokens in a row of the tests."""
TOLERANCE = 1e-5
MODELS = ("llama-sdpa", "llama-eager", "gemma2-eager", "gemma3-sdpa", "gemma3-eager")
VARLEN = ("llama-varlen", "gemma3-varlen")
"""The same on tree rows as sequences, which only training computes."""


def plain_rows(examples: Iterable[EncodedLike]) -> list[TreeRow]:
    """One row per example, in the order given: the plain twin of `pack`."""
    return [row for example in examples for row in pack([example], sys.maxsize)]


def tiny_model(kind: str, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """A random model, its weights wide enough that outputs differ from prompt to prompt."""
    family, attention = kind.split("-")
    config = _config(family, vocabulary)
    if attention == varlen.NAME:
        varlen.register(config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, dtype=torch.float32
    )
    return model.eval()


def _config(family: str, vocabulary: int) -> PreTrainedConfig:
    shape: dict[str, int | float | bool] = {
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

    def examples() -> Iterator[Example]:
        for paragraph in paragraphs:
            prefix = instruction + encode(f"Passage: {paragraph['context']}\n\n")
            for entry in paragraph["qas"]:
                answer = entry["answers"][0]["text"] if entry["answers"] else "unanswerable"
                prompt = prefix + encode(f"Question: {entry['question']}\nAnswer:")
                completion = (*encode(f" {answer}"), tokenizer.eos_token_id)
                yield Example(entry["id"], prompt, completion)

    return list(islice(examples(), count))


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple)
ANSWERS = st.lists(st.integers(0, 2), min_size=0, max_size=3).map(tuple)
lists_of_examples = st.lists(st.tuples(TOKENS, ANSWERS), min_size=1, max_size=14).map(
    lambda pairs: [Example(str(i), *pair) for i, pair in enumerate(pairs)]
)


def drawn_examples() -> list[Example]:
    """The examples of the row that the docstrings of `pack` and `mask` draw."""
    i, A, q, a, r, b, B, s, c = range(9)
    examples = [Example("1", (i, A, q), (a,)), Example("2", (i, A, r), (b,))]
    return [*examples, Example("3", (i, B, s), (c,))]


def with_lora(kind: str) -> PeftModel:
    """Return a model with random B matrices, so that no gradient is zero for a trivial reason."""
    config = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = get_peft_model(tiny_model(kind), config)
    install(model)
    return model.train()


def gradients(model: torch.nn.Module) -> torch.Tensor:
    grads = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return torch.cat(grads)


def seen_by(row: TreeRow) -> torch.Tensor:
    """Return the mask (Q, K) of a row, made in a batch where it is padded by three tokens."""
    width = len(row["input_ids"])
    batch = collate([row, *plain_rows([Example("wider", (0,) * (width + 3))])])
    index = torch.arange(width + 3)
    mask = mask_rule(batch["subtree_end"], batch["position_ids"])(0, 0, index[:, None], index)
    assert torch.equal(mask[width:], torch.eye(width + 3, dtype=torch.bool)[width:])
    assert not mask[:width, width:].any()
    return mask[:width, :width]


def paths(row: TreeRow) -> dict[str, list[int]]:
    """Return the indices of each example's tokens, which are those that its last token sees."""
    mask = seen_by(row)
    ends = [row["subtree_end"][start] - 1 for start in row["starts"]]
    return {
        name: mask[end].nonzero()[:, 0].tolist() for name, end in zip(row["ids"], ends, strict=True)
    }
