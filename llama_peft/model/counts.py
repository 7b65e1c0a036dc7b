"""Exact parameter counts of a base, its heads and its adapters, from config.json alone.

Counting a loaded model is slow and, in 4-bit, easy to get wrong: packed weights hide half of their
elements, and a wrapped model counts its head twice. The architecture fixes every shape, so the
numbers are known before anything is downloaded. Nothing heavy is imported here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from llama_peft.model import bounds
from llama_peft.recipe import Lora
from llama_peft.tasks import LANGUAGE_MODELLING, TASKS, Task

LM_HEAD = "lm_head"


class Family(NamedTuple):
    """What a family's config class assumes if config.json is silent, and its norms."""

    tie_word_embeddings: bool
    head_dim: int | None
    norms: tuple[str, ...]
    """The norms of hidden size in each block."""
    head_norms: tuple[str, ...] = ()
    """The norms of head size in each block."""


_TWO = ("input_layernorm", "post_attention_layernorm")
_FOUR = (*_TWO, "pre_feedforward_layernorm", "post_feedforward_layernorm")
FAMILIES: Mapping[str, Family] = {
    "llama": Family(False, None, _TWO),
    "gemma": Family(True, 256, _TWO),
    "gemma2": Family(True, 256, _FOUR),
    "gemma3_text": Family(True, 256, _FOUR, ("self_attn.q_norm", "self_attn.k_norm")),
}


class UncountedFamily(ValueError):
    """There is no formula for the model type."""


class BadConfig(ValueError):
    """A size in a config is not a whole number, or there are fewer blocks than needed."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The shapes of a language model, with the defaults of its family filled in."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool

    @property
    def family(self) -> Family:
        """The row of FAMILIES."""
        return FAMILIES[self.model_type]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of parameters."""

    base: int
    """The causal language model."""
    backbone: int
    """Without an lm_head of its own, which a model with a head does not have."""
    head: int = 0
    adapter: int = 0
    quantized: int = 0
    """Weights in the linear layers of the blocks: 4-bit or 8-bit loading packs these."""

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
        """Return one line for the log of a run."""
        share = 100 * self.trainable / self.total
        parts = [f"base {self.base:,}"]
        if self.head:
            parts.append(f"with head {self.with_head:,} (head {self.head:,})")
        if self.adapter:
            parts.append(f"with adapter {self.total:,} (adapter {self.adapter:,})")
        return "parameters: " + ", ".join(parts) + f"; trainable {self.trainable:,} ({share:.4g} %)"


def text_config(config: Mapping[str, object]) -> TextConfig:
    """Return the shapes that a config.json describes.

    Raises UncountedFamily for a model type without a formula, and BadConfig for a size that is not
    a whole number.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UncountedFamily(f"there is no formula for model type {name!r}")
    family = FAMILIES[name]
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    given_dim = _size_or_none({"head_dim": family.head_dim, **config}, "head_dim")
    return TextConfig(
        model_type=name,
        vocab_size=_size(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_size(config, "intermediate_size"),
        num_hidden_layers=_size(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_size_or_none(config, "num_key_value_heads") or heads,
        head_dim=given_dim or hidden // heads,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", family.tie_word_embeddings)),
        attention_bias=bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
    )


def _size(config: Mapping[str, object], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadConfig(f"config.json: {key} is {value!r}, not a whole number above 0")
    return value


def _size_or_none(config: Mapping[str, object], key: str) -> int | None:
    return None if config.get(key) is None else _size(config, key)


def cut(c: TextConfig, layer: int | str) -> TextConfig:
    """Return the shapes of what is loaded: the blocks above the one that a head reads are not."""
    if not isinstance(layer, int) or layer <= 0:
        return c
    if layer > c.num_hidden_layers:
        raise BadConfig(
            f"head.layer is {layer}, but this base has {c.num_hidden_layers} blocks: "
            "choose a smaller number"
        )
    return replace(c, num_hidden_layers=layer)


def linear_shapes(c: TextConfig) -> dict[str, tuple[int, int]]:
    """Return (in_features, out_features) of each linear layer of block 0, by its name in the model.

    Every block has the same shapes; `model.layers.0.` is the prefix of each name.
    """
    hidden, inner = c.hidden_size, c.intermediate_size
    queries = c.num_attention_heads * c.head_dim
    keys = c.num_key_value_heads * c.head_dim
    return {
        "model.layers.0.self_attn.q_proj": (hidden, queries),
        "model.layers.0.self_attn.k_proj": (hidden, keys),
        "model.layers.0.self_attn.v_proj": (hidden, keys),
        "model.layers.0.self_attn.o_proj": (queries, hidden),
        "model.layers.0.mlp.gate_proj": (hidden, inner),
        "model.layers.0.mlp.up_proj": (hidden, inner),
        "model.layers.0.mlp.down_proj": (inner, hidden),
    }


def _modules(c: TextConfig) -> dict[str, int]:
    """Return the parameters of each module of the causal model.

    An lm_head is listed even if it is tied, because a copy of it would take as much.
    """
    embeddings = c.vocab_size * c.hidden_size
    biased = {"self_attn": c.attention_bias, "mlp": c.mlp_bias}
    block = {
        name: inputs * outputs + (outputs if biased[name.split(".")[3]] else 0)
        for name, (inputs, outputs) in linear_shapes(c).items()
    }
    block |= {f"model.layers.0.{norm}": c.hidden_size for norm in c.family.norms}
    block |= {f"model.layers.0.{norm}": c.head_dim for norm in c.family.head_norms}
    return {
        "model.embed_tokens": embeddings,
        **{
            name.replace(".0.", f".{layer}.", 1): size
            for layer in range(c.num_hidden_layers)
            for name, size in block.items()
        },
        "model.norm": c.hidden_size,
        LM_HEAD: embeddings,
    }


def count(
    config: Mapping[str, object],
    task: Task = LANGUAGE_MODELLING,
    num_labels: int = 2,
    lora: Lora | None = None,
) -> Counts:
    """Return the counts of a config.json's mapping. Raises what `text_config` raises."""
    return count_text(text_config(config), task, num_labels, lora)


def count_text(
    c: TextConfig,
    task: Task = LANGUAGE_MODELLING,
    num_labels: int = 2,
    lora: Lora | None = None,
) -> Counts:
    """Return the counts of a language model of these shapes, with a head and an adapter."""
    shapes, modules = linear_shapes(c), _modules(c)
    backbone = sum(modules.values()) - modules[LM_HEAD]
    untied = 0 if c.tie_word_embeddings else modules[LM_HEAD]
    if TASKS[task].head is not None:  # a model with a head has no lm_head
        del modules[LM_HEAD]
    if lora is not None:
        bounds.check_patterns(lora.model_dump(), modules, "lora.")
    return Counts(
        base=backbone + untied,
        backbone=backbone,
        head=TASKS[task].head_size(c.hidden_size, num_labels),
        adapter=_lora_size(c, modules, lora) + _copied(c, modules, lora) if lora else 0,
        quantized=c.num_hidden_layers * sum(i * o for i, o in shapes.values()),
    )


def matches(name: str, targets: str | Sequence[str]) -> bool:
    """Return whether a module is a target, by PEFT's rule.

    A list names suffixes at a dot; a string is a regular expression for the whole name.
    """
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith("." + target) for target in targets)


def _lora_size(c: TextConfig, modules: Mapping[str, int], lora: Lora) -> int:
    """Return the sum of r x (in + out) over the targets.

    DoRA (its magnitude vector) and `lora_bias` each add `out` for each target.
    """
    chosen = lora.layers_to_transform
    layers = range(c.num_hidden_layers) if chosen is None else chosen
    linear = {
        name.replace(".0.", f".{layer}.", 1): shape
        for layer in ([layers] if isinstance(layers, int) else layers)
        for name, shape in linear_shapes(c).items()
    }
    if LM_HEAD in modules and lora.target_modules != "all-linear":
        linear[LM_HEAD] = (c.hidden_size, c.vocab_size)
    vectors = lora.use_dora + lora.lora_bias
    total = 0
    for name, (inputs, outputs) in linear.items():
        excluded = matches(name, lora.exclude_modules or ()) or _is_copied(name, lora)
        if not excluded and matches(name, lora.target_modules):
            total += _rank(name, lora) * (inputs + outputs) + vectors * outputs
    return total


def _rank(name: str, lora: Lora) -> int:
    """Return the rank of a target: that of the first pattern that matches its name, or r."""
    ranks = lora.rank_pattern.items()
    return next((r for end, r in ranks if re.match(rf"(.*\.)?({end})$", name)), lora.r)


def _is_copied(name: str, lora: Lora) -> bool:
    """Return whether a module is in `modules_to_save`, or is inside of one that is.

    PEFT compares the ends of their names.
    """
    path = name.split(".")
    above = [".".join(path[:end]) for end in range(1, len(path) + 1)]
    return any(one.endswith(target) for target in lora.modules_to_save or () for one in above)


def _copied(c: TextConfig, modules: Mapping[str, int], lora: Lora) -> int:
    """Return the size of what trains whole.

    These are `modules_to_save`, and the rows of the embedding in `trainable_token_indices`.
    """
    whole = sum(size for name, size in modules.items() if _is_copied(name, lora))
    rows = lora.trainable_token_indices or []
    if isinstance(rows, dict):  # rows of a tied lm_head are those of the embedding
        tied = c.tie_word_embeddings and "embed_tokens" in rows
        rows = [i for name, its in rows.items() if not (tied and name == LM_HEAD) for i in its]
    return whole + c.hidden_size * len(rows)
