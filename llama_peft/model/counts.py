"""Exact parameter counts of a base, its heads and its adapters, from config.json alone.

Counting a loaded model is slow and, in 4-bit, easy to get wrong: packed weights hide half of their elements, and a wrapped
model counts its head twice. The architecture fixes every shape, so the numbers are known before anything is downloaded.
Nothing heavy is imported here; families without a formula are counted on the meta device by `backbone.count_on_meta`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_peft.tasks import LANGUAGE_MODELLING, TASKS, Task

# What a family's config class fills in where config.json is silent (transformers' defaults), and the norms of each block:
# those of hidden size, then those of head size.
_TWO = ("input_layernorm", "post_attention_layernorm")
_FOUR = (*_TWO, "pre_feedforward_layernorm", "post_feedforward_layernorm")
FAMILIES: dict[str, tuple[dict[str, Any], tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "llama": ({"tie_word_embeddings": False}, (_TWO, ())),
    "gemma": ({"tie_word_embeddings": True, "head_dim": 256}, (_TWO, ())),
    "gemma2": ({"tie_word_embeddings": True, "head_dim": 256}, (_FOUR, ())),
    "gemma3_text": (
        {"tie_word_embeddings": True, "head_dim": 256},
        (_FOUR, ("self_attn.q_norm", "self_attn.k_norm")),
    ),
}


_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip


LM_HEAD = "lm_head"


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


def _modules(c: Mapping[str, Any]) -> dict[str, int]:
    """Parameters of each module of the causal model, also of a tied lm_head: what a copy of it would take."""
    hidden, embeddings = c["hidden_size"], c["vocab_size"] * c["hidden_size"]
    head_dim = c.get("head_dim") or hidden // c["num_attention_heads"]
    biased = {"self_attn": c.get("attention_bias"), "mlp": c.get("mlp_bias")}
    block = {
        name: inputs * outputs + (outputs if biased[name.split(".")[3]] else 0)
        for name, (inputs, outputs) in linear_shapes(c).items()
    }
    for norms, size in zip(FAMILIES[c["model_type"]][1], (hidden, head_dim), strict=True):
        block |= {f"model.layers.0.{norm}": size for norm in norms}
    return {
        "model.embed_tokens": embeddings,
        **{
            name.replace(".0.", f".{layer}.", 1): size
            for layer in range(c["num_hidden_layers"])
            for name, size in block.items()
        },
        "model.norm": hidden,
        LM_HEAD: embeddings,
    }


def head_size(config: Mapping[str, Any], task: Task, num_labels: int) -> int:
    """Parameters of the task's head: num_labels x hidden without bias, or 2 x hidden + 2 for spans."""
    return TASKS[task].head_size(config["hidden_size"], num_labels)


def count(
    config: Mapping[str, Any],
    task: Task = LANGUAGE_MODELLING,
    num_labels: int = 2,
    lora: Mapping[str, Any] | None = None,
) -> Counts:
    """Count from a config.json's mapping.

    `lora` holds LoraConfig keys, those that bear on shapes: targets, layers and ranks, use_dora, lora_bias,
    modules_to_save, trainable_token_indices. Raises UncountedFamily for a model type without a formula.
    """
    c = text_config(config)
    shapes, modules = linear_shapes(c), _modules(c)
    backbone = sum(modules.values()) - modules[LM_HEAD]
    untied = 0 if c["tie_word_embeddings"] else modules[LM_HEAD]
    if TASKS[task].head is not None:  # a model with a head has none for words
        del modules[LM_HEAD]
    return Counts(
        base=backbone + untied,
        backbone=backbone,
        head=head_size(c, task, num_labels),
        adapter=_lora_size(c, modules, lora) + _copied(c, modules, lora) if lora else 0,
        quantized=c["num_hidden_layers"] * sum(i * o for i, o in shapes.values()),
    )


def matches(name: str, targets: str | Sequence[str]) -> bool:
    """PEFT's rule: a list names suffixes at a dot, a string is a regular expression for the whole name."""
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith("." + target) for target in targets)


def _lora_size(c: Mapping[str, Any], modules: Mapping[str, int], lora: Mapping[str, Any]) -> int:
    """r x (in + out) for each target, and `out` more with DoRA (its magnitude vector) and with `lora_bias`."""
    chosen = lora.get("layers_to_transform")
    layers = range(c["num_hidden_layers"]) if chosen is None else chosen
    linear = {
        name.replace(".0.", f".{layer}.", 1): shape
        for layer in ([layers] if isinstance(layers, int) else layers)
        for name, shape in linear_shapes(c).items()
    }
    if LM_HEAD in modules and lora["target_modules"] != "all-linear":
        linear[LM_HEAD] = (c["hidden_size"], c["vocab_size"])
    vectors = bool(lora.get("use_dora")) + bool(lora.get("lora_bias"))
    total = 0
    for name, (inputs, outputs) in linear.items():
        excluded = matches(name, lora.get("exclude_modules") or ()) or _is_copied(name, lora)
        if excluded or not matches(name, lora["target_modules"]):
            continue
        rank = next(
            (
                r
                for pattern, r in (lora.get("rank_pattern") or {}).items()
                if re.match(rf"(.*\.)?({pattern})$", name)
            ),
            lora["r"],
        )
        total += rank * (inputs + outputs) + vectors * outputs
    return total


def _is_copied(name: str, lora: Mapping[str, Any]) -> bool:
    """Whether a module is in `modules_to_save`, or in one that is: PEFT compares the ends of their names."""
    path = name.split(".")
    above = [".".join(path[:end]) for end in range(1, len(path) + 1)]
    return any(
        one.endswith(target) for target in lora.get("modules_to_save") or () for one in above
    )


def _copied(c: Mapping[str, Any], modules: Mapping[str, int], lora: Mapping[str, Any]) -> int:
    """Copies that train whole: `modules_to_save`, and rows of the embedding by `trainable_token_indices`."""
    whole = sum(size for name, size in modules.items() if _is_copied(name, lora))
    rows = lora.get("trainable_token_indices") or ()
    if isinstance(rows, Mapping):  # rows of a tied lm_head are those of the embedding
        tied = c["tie_word_embeddings"] and "embed_tokens" in rows
        rows = [i for name, its in rows.items() if not (tied and name == LM_HEAD) for i in its]
    return whole + c["hidden_size"] * len(rows)
