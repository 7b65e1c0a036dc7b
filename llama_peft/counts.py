"""Exact parameter counts of a base, its heads and its adapters, from config.json alone.

Counting a loaded model is slow and, in 4-bit, easy to get wrong: packed weights hide half of their elements, and a wrapped
model counts its head twice. The architecture fixes every shape, so the numbers are known before anything is downloaded.
Nothing heavy is imported here; families without a formula are counted on the meta device by `backbone.count_on_meta`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What a family's config class fills in where config.json is silent (transformers' defaults), and its norms per block:
# (how many of hidden size, how many of head size).
FAMILIES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "llama": ({"tie_word_embeddings": False}, (2, 0)),
    "gemma": ({"tie_word_embeddings": True, "head_dim": 256}, (2, 0)),
    "gemma2": ({"tie_word_embeddings": True, "head_dim": 256}, (4, 0)),
    "gemma3_text": ({"tie_word_embeddings": True, "head_dim": 256}, (4, 2)),
}


_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip


class UncountedFamily(ValueError):
    """The model type has no formula here."""


class BadConfig(ValueError):
    """A config that does not say its shapes in whole numbers."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of parameters.

    base: the causal language model. backbone: without an untied lm_head, which a model with a head does not have.
    """

    base: int
    backbone: int
    head: int = 0
    adapter: int = 0
    quantized: int = 0
    """Weights in the blocks' linear layers: what 4-bit or 8-bit loading packs."""

    @property
    def with_head(self) -> int:
        return self.backbone + self.head

    @property
    def trainable(self) -> int:
        return self.head + self.adapter

    @property
    def total(self) -> int:
        return (self.with_head if self.head else self.base) + self.adapter

    def describe(self) -> str:
        """One line for the log of a run."""
        share = 100 * self.trainable / self.total
        parts = [f"base {self.base:,}"]
        if self.head:
            parts.append(f"with head {self.with_head:,} (head {self.head:,})")
        if self.adapter:
            parts.append(f"with adapter {self.total:,} (adapter {self.adapter:,})")
        return "parameters: " + ", ".join(parts) + f"; trainable {self.trainable:,} ({share:.4g} %)"


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's part of a config.json, with its family's defaults filled in."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UncountedFamily(f"no formula for model type {family!r}")
    filled = {**FAMILIES[family][0], **config}
    for key in _SIZES:
        if type(filled.get(key)) is not int or filled[key] < 1:
            raise BadConfig(f"{key} is {filled.get(key)!r}, not a whole number above 0")
    for key in ("head_dim", "num_key_value_heads"):
        if filled.get(key) is not None and (type(filled[key]) is not int or filled[key] < 1):
            raise BadConfig(f"{key} is {filled[key]!r}, not a whole number above 0")
    return filled


def linear_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(in_features, out_features) of each linear layer of block 0, by its name within the model.

    Every block has the same shapes; `model.layers.0.` is the prefix of each name.
    """
    c = text_config(config)
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    head_dim = c.get("head_dim") or hidden // c["num_attention_heads"]
    queries = c["num_attention_heads"] * head_dim
    keys = (c.get("num_key_value_heads") or c["num_attention_heads"]) * head_dim
    return {
        "model.layers.0.self_attn.q_proj": (hidden, queries),
        "model.layers.0.self_attn.k_proj": (hidden, keys),
        "model.layers.0.self_attn.v_proj": (hidden, keys),
        "model.layers.0.self_attn.o_proj": (queries, hidden),
        "model.layers.0.mlp.gate_proj": (hidden, inner),
        "model.layers.0.mlp.up_proj": (hidden, inner),
        "model.layers.0.mlp.down_proj": (inner, hidden),
    }


def _biases(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]]) -> int:
    """Bias elements of one block: `attention_bias` and `mlp_bias` switch them on."""
    switched = {"self_attn": config.get("attention_bias"), "mlp": config.get("mlp_bias")}
    return sum(out for name, (_, out) in shapes.items() if switched[name.split(".")[3]])


def head_size(config: Mapping[str, Any], task: str, num_labels: int) -> int:
    """Parameters of the task's head: num_labels x hidden without bias, or 2 x hidden + 2 for spans."""
    hidden = config["hidden_size"]
    return {
        "classification": hidden * num_labels,
        "extractive_qa": 2 * hidden + 2,
        "generative_qa": 0,
    }[task]


def count(
    config: Mapping[str, Any],
    task: str = "generative_qa",
    num_labels: int = 2,
    lora: Mapping[str, Any] | None = None,
) -> Counts:
    """Count from a config.json's mapping.

    `lora` holds LoraConfig keys (r, target_modules, exclude_modules, layers_to_transform, rank_pattern, use_dora).
    Raises UncountedFamily for a model type without a formula.
    """
    c = text_config(config)
    shapes = linear_shapes(config)
    blocks, hidden = c["num_hidden_layers"], c["hidden_size"]
    head_dim = c.get("head_dim") or hidden // c["num_attention_heads"]
    wide, narrow = FAMILIES[c["model_type"]][1]
    quantized = blocks * sum(i * o for i, o in shapes.values())
    norms = blocks * (wide * hidden + narrow * head_dim) + hidden
    embeddings = c["vocab_size"] * hidden
    backbone = embeddings + quantized + blocks * _biases(c, shapes) + norms
    untied = 0 if c["tie_word_embeddings"] else embeddings
    return Counts(
        base=backbone + untied,
        backbone=backbone,
        head=head_size(c, task, num_labels),
        adapter=_lora_size(shapes, blocks, lora) if lora else 0,
        quantized=quantized,
    )


def matches(name: str, targets: str | Sequence[str]) -> bool:
    """PEFT's rule: a list names suffixes at a dot, a string is a regular expression for the whole name."""
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith("." + target) for target in targets)


def _lora_size(shapes: Mapping[str, tuple[int, int]], blocks: int, lora: Mapping[str, Any]) -> int:
    """r x (in + out) for each target, and `out` more with DoRA (its magnitude vector)."""
    chosen = lora.get("layers_to_transform")
    layers = range(blocks) if chosen is None else [chosen] if isinstance(chosen, int) else chosen
    total = 0
    for layer in layers:
        for first, (inputs, outputs) in shapes.items():
            name = first.replace(".0.", f".{layer}.", 1)
            excluded = lora.get("exclude_modules") or ()
            if not matches(name, lora["target_modules"]) or matches(name, excluded):
                continue
            rank = next(
                (
                    r
                    for pattern, r in (lora.get("rank_pattern") or {}).items()
                    if re.match(rf"(.*\.)?({pattern})$", name)
                ),
                lora["r"],
            )
            total += rank * (inputs + outputs) + (outputs if lora.get("use_dora") else 0)
    return total
