"""Bases that are packed already: unpacked or trained as they are, or refused before a download."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.faults.shop import Fault, Shop
from tests.model.test_quantize import packed

from .case import LORA, SPAN, WRITTEN, Twin, configure, copied, gives, refuses

CONFIGS = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "hqq": {"quant_method": "hqq", "quant_config": {}},
    "a form of tomorrow": {"quant_method": "tomorrow"},
    "a form without a name": {"bits": 4},
    "aqlm in the section of the text": {"quant_method": "aqlm"},
}


def _described(name: str) -> Fault:
    packing = CONFIGS[name]

    def change(base: Path) -> None:
        if "section" in name:
            configure(base, text_config={"quantization_config": packing})
        else:
            configure(base, quantization_config=packing)

    return refuses(f"packed: {name}", change, "which llama_peft cannot train: name the base")


def _plain(shop: Shop, packed_base: Path, to: Path, dtype: torch.dtype) -> Path:
    """What a base holds, packed or not, as a plain one of this type."""
    model = AutoModelForCausalLM.from_pretrained(packed_base)
    if getattr(model, "is_quantized", False):
        model = model.dequantize()
    whole = {name: value.to(dtype) for name, value in model.state_dict().items()}
    whole.pop("lm_head.weight")  # it is the embedding
    shutil.copytree(shop.base, to)
    save_file(whole, to / "model.safetensors", {"format": "pt"})
    return to


def _unpacked(form: str) -> Twin:
    """A packed base, and a plain one with the weights that it holds."""

    def twin(shop: Shop, folder: Path) -> tuple[Path, Path]:
        base = packed(shop.base, folder / "packed", form)
        if form != "fp8":
            return base, _plain(shop, base, folder / "plain", torch.float32)
        plain = copied(shop, folder, "plain")
        tensors = load_file(base / "model.safetensors")
        scales = {name: tensors.pop(name).float() for name in list(tensors) if "_scale" in name}
        whole = {
            name: value.float() * scales.get(f"{name}_scale_inv", torch.ones(()))
            for name, value in tensors.items()
        }
        save_file(whole, plain / "model.safetensors", {"format": "pt"})
        return base, plain

    return twin


def _rounded(form: str) -> Twin:
    """A base that bitsandbytes packed and saved, and one that is packed while it is loaded."""

    def twin(shop: Shop, folder: Path) -> tuple[Path, Path]:
        base = packed(shop.base, folder / "packed", form)
        return base, _plain(shop, shop.base, folder / "plain", torch.bfloat16)

    return twin


def _of_bits(form: str, bits: int, says: str, **keys: object) -> Fault:
    def change(base: Path) -> None:
        made = packed(base, base.with_name("packed"), form)
        base.rename(base.with_name("gone"))
        made.rename(base)

    words = {"load_in_4bit": bits == 4, "load_in_8bit": bits == 8, **keys}
    name = f"packed: {form}, asked for {bits} bits{' of fp4' if keys else ''}"
    return refuses(name, change, says, quantization=words)


def faults() -> Iterator[Fault]:
    yield from map(_described, CONFIGS)
    yield _of_bits("4bit", 8, "load_in_8bit: false and load_in_4bit: true")
    yield _of_bits("fp8", 4, r"quantization\.load_in_4bit: false")
    yield _of_bits("4bit", 4, "bnb_4bit_quant_type: nf4", bnb_4bit_quant_type="fp4")
    words = {"load_in_4bit": True, "bnb_4bit_use_double_quant": False}
    four = {"quantization": words, "model": {"dtype": "bfloat16"}}
    for kind in (LORA, SPAN, WRITTEN):
        yield gives(f"packed: 4bit, unpacked: {kind}", _unpacked("4bit"), kind)
        yield gives(f"packed: fp8, unpacked: {kind}", _unpacked("fp8"), kind)
        yield gives(f"packed: 4bit, as it is: {kind}", _rounded("4bit"), kind, **four)
