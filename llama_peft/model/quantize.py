"""Packed weights of 4 and 8 bits: what is packed, and what bitsandbytes does not check."""

import logging
from typing import TYPE_CHECKING

from llama_peft.errors import UserError
from llama_peft.recipe import Quantization

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

# Passing a list replaces the library's own, so it must name the tied lm_head too.
_NEVER_QUANTIZED = ["lm_head", "score", "qa_outputs"]


def quantization_config(
    quantization: Quantization, dtype: "torch.dtype"
) -> "BitsAndBytesConfig | None":
    """Return how bitsandbytes packs the base; None if the recipe loads it unquantised."""
    import torch

    # bitsandbytes reports its CPU fallbacks line by line while it is imported.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from transformers import BitsAndBytesConfig

    if quantization.load_in_4bit:
        chosen = quantization.bnb_4bit_compute_dtype
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=getattr(torch, chosen) if chosen else dtype,
            llm_int8_skip_modules=_NEVER_QUANTIZED,
        )
    if quantization.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_NEVER_QUANTIZED)
    return None


def check_packed_shapes(name: str, model: "PreTrainedModel") -> None:
    """Refuse a packed weight of another shape than its layer, which bitsandbytes does not check."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for path, module in model.named_modules():
        if isinstance(module, Linear4bit):
            found = tuple(module.weight.quant_state.shape)
        elif isinstance(module, Linear8bitLt):
            found = tuple(module.weight.shape)
        else:
            continue
        expected = (module.out_features, module.in_features)
        if found != expected:
            raise UserError(
                f"{name}: {path} has another shape ({found}) than its config says ({expected}). "
                "Use a complete safetensors checkpoint"
            )


def mend_cpu_4bit(model: "PreTrainedModel") -> None:
    """Keep every Linear4bit from repacking its weights for AVX512 in its first forward pass.

    After that repacking the gradients are wrong, and no error says so.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
