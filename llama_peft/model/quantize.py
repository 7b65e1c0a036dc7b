"""Packed weights of 4 and 8 bits: what is packed, and what bitsandbytes does not check.

A checkpoint may be packed already. Then transformers follows the `quantization_config` in its
config.json, and not what it is asked for.
"""

import logging
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from llama_peft.errors import UserError
from llama_peft.recipe import Quantization

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

# Passing a list replaces the library's own, so it must name the tied lm_head too.
_NEVER_QUANTIZED = ["lm_head", "score", "qa_outputs"]
_OURS = "4bit", "8bit"
"""The forms of bitsandbytes."""
_UNPACKED = ("fp8",)
"""The forms that transformers unpacks while it loads them, on any machine."""
_SECTIONS = "", "text_config"
"""Where a config says how its weights are packed: at its top, or in that of its language model."""


_ROUNDING = 0.3
"""How far off a product of 4-bit weights may be. About a tenth is usual."""


def packed_form(config: Mapping[str, object]) -> str | None:
    """Return how a checkpoint's weights are packed: 4bit, 8bit, fp8, gptq, ...; None if they are not.

    config: the mapping of a config.json.
    """
    own = _own(config)
    if own is None:
        return None
    return next(
        (form for form in _OURS if own.get(f"load_in_{form}")), str(own.get("quant_method"))
    )


def packed_problems(config: Mapping[str, object], quantization: Quantization) -> list[str]:
    """Return why a checkpoint that is packed already cannot be loaded as a recipe says."""
    form, own = packed_form(config), _own(config)
    asked = next((name for name in _OURS if getattr(quantization, f"load_in_{name}")), None)
    if form is None or own is None:
        return []
    if form not in (*_OURS, *_UNPACKED):
        return [
            f"its weights are packed as {form[:40]!r}, which llama_peft cannot train: name the base "
            "that it was made from, which quantization.load_in_4bit packs while it is loaded"
        ]
    if asked is not None and asked != form:
        keys = f"load_in_{asked}: false" + (f" and load_in_{form}: true" if form in _OURS else "")
        return [f"its weights are packed as {form} already: set quantization.{keys}"]
    kind = own.get("bnb_4bit_quant_type", "fp4")
    if asked == "4bit" and kind != quantization.bnb_4bit_quant_type:
        return [f"its 4-bit weights are {kind}: set quantization.bnb_4bit_quant_type: {kind}"]
    return []


def _own(config: Mapping[str, object]) -> dict[str, object] | None:
    """Return what a config says of its packed weights. It is that object, so it can be changed."""
    for name in _SECTIONS:
        section = config.get(name) if name else config
        found = section.get("quantization_config") if isinstance(section, Mapping) else None
        if isinstance(found, dict):
            return found
    return None


def quantization_config(
    quantization: Quantization, dtype: "torch.dtype", config: "PretrainedConfig"
) -> "BitsAndBytesConfig | None":
    """Return how bitsandbytes packs the base; None if the recipe loads it unquantised, or if the
    checkpoint is packed already. Then its config is changed: the heads are not packed either.
    """
    import torch

    # bitsandbytes reports its CPU fallbacks line by line while it is imported.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from transformers import BitsAndBytesConfig

    chosen = quantization.bnb_4bit_compute_dtype
    if packed_form(config.to_dict()) is not None:
        own = _own(vars(config)) or _own(vars(config.get_text_config())) or {}
        if own.get("load_in_4bit") or own.get("load_in_8bit"):
            skipped = own.get("llm_int8_skip_modules")
            names = skipped if isinstance(skipped, list) else []
            own["llm_int8_skip_modules"] = [*names, *_NEVER_QUANTIZED]
            own["bnb_4bit_compute_dtype"] = chosen or str(dtype).removeprefix("torch.")
        else:
            own["dequantize"] = True
        return None
    if quantization.load_in_4bit:
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


@cache  # what is wrong with a library stays wrong in a process
def packing_trouble(device: str) -> str | None:
    """Return why bitsandbytes does not multiply 4-bit weights on a device, and what to do; else None.

    A small product is compared with the plain one. Nothing is drawn from torch's generators.
    """
    import torch

    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    weight_OI = torch.sin(torch.arange(64.0 * 64)).reshape(64, 64).to(device)
    inputs_BI = torch.cos(torch.arange(2.0 * 64)).reshape(2, 64).to(device)
    try:
        import bitsandbytes
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(weight_OI, quant_type="nf4", compress_statistics=True)
        found_BO = bitsandbytes.matmul_4bit(inputs_BI, packed.t(), quant_state=state)
        off = float((found_BO - inputs_BI @ weight_OI.T).norm() / (inputs_BI @ weight_OI.T).norm())
        reason = f"a 4-bit product is off by {off:.0%}" if not off < _ROUNDING else None
    except Exception as error:  # it loads compiled code, and whatever that lacks may be raised
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return reason and (
        f"bitsandbytes does not work here ({reason}): install it again with `make clean setup`, or set "
        "quantization.load_in_4bit: false"
    )


def settle(model: "PreTrainedModel", quantization: Quantization, dtype: "torch.dtype") -> None:
    """Make a model that was loaded from a packed checkpoint what the recipe says.

    Its weights are unpacked if the recipe packs nothing, and all others get the type that they have
    in other bases: transformers leaves them as the checkpoint stores them.
    """
    if not (quantization.load_in_4bit or quantization.load_in_8bit):
        if packed_form(model.config.to_dict()) in _OURS:
            model.dequantize(dtype=dtype)
            # transformers leaves these, and then TRL rounds a new adapter to bfloat16.
            model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
        # Saving would apply the steps of loading in reverse, and these have none.
        model._weight_conversions = [
            step
            for step in model._weight_conversions
            if not any(
                getattr(part, "hf_quantizer", None) for part in getattr(step, "operations", ())
            )
        ]
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def check_packed_shapes(name: str, model: "PreTrainedModel") -> None:
    """Refuse a packed weight of another shape than its layer, which bitsandbytes does not check."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for path, module in model.named_modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            found = () if state is None else tuple(state.shape)
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
