"""A base of the true shape without its weights: from a config alone, on the fake GPU.

The product's loader runs. Only its last call, which reads the checkpoint, is replaced.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llama_peft import tiny
from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.recipe import Model
from llama_peft.rehearsal.device import replace
from llama_peft.system import files

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import (
        BitsAndBytesConfig,
        PretrainedConfig,
        PreTrainedModel,
    )

_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "intermediate_size": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
_GEMMA = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": True,
    "vocab_size": 262144,
}
SHAPES: Mapping[str, Mapping[str, object]] = {
    "meta-llama/Llama-3.2-1B": {
        **_LLAMA,
        **{"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64},
    },
    "meta-llama/Llama-3.2-3B": {
        **_LLAMA,
        **{
            "hidden_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "head_dim": 128,
        },
    },
    "google/gemma-3-1b-pt": {
        **_GEMMA,
        **{"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26},
        **{"num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 512},
    },
}
"""Published shapes of bases that need an accepted licence, for a machine that has no copy."""
_CONFIG = "config.json"


def place_base(model: Model, folder: Path) -> Path:
    """Write the config of a recipe's base into a folder, and return the folder.

    Raises UserError if the shape is known neither here nor in the Hub's cache.
    """
    from huggingface_hub import try_to_load_from_cache

    name = backbone.source(model)
    if Path(name).is_dir():
        return Path(name)
    cached = try_to_load_from_cache(name, _CONFIG, revision=model.revision)
    folder.mkdir()
    if isinstance(cached, str):
        for path in Path(cached).parent.iterdir():
            if path.suffix != ".safetensors":
                shutil.copy(path, folder / path.name)
    elif name in SHAPES:
        files.write_text(folder, _CONFIG, json.dumps(SHAPES[name]))
    else:
        raise UserError(
            f"{name}: its shape is not known here, and a rehearsal downloads nothing: name a folder "
            f"with its config.json with --base, or take one of {', '.join(SHAPES)}"
        )
    return folder


def place_tokenizer(base: Path, given: str | None) -> str:
    """Make the loader use a tokenizer that stands in for the base's, if that is not here.

    given: the folder of one, or None for the embedded model's. Returns a note about it, empty if
    the base has its own.
    """
    if given is None and any(base.glob("tokenizer*")):
        return ""
    tokenizer = backbone.load_tokenizer(Model(model_name_or_path=given or str(tiny.MODEL_DIR)))
    replace(backbone, "_load_tokenizer", lambda *_: tokenizer)
    return f"the tokenizer of {given or 'the embedded model'} stands in for the base's own"


def build(
    auto: "type[PreTrainedModel]",
    name: str,
    *,
    config: "PretrainedConfig",
    dtype: "torch.dtype",
    attn_implementation: str | None,
    quantization_config: "BitsAndBytesConfig | None",
    device_map: Mapping[str, "torch.device"],
    **_: object,
) -> "tuple[PreTrainedModel, backbone.LoadingInfo]":
    """Return what `backbone.from_pretrained` would return if the checkpoint were there.

    Weights are packed one by one from their full size, as while loading.
    """
    import torch
    from transformers.quantizers.auto import AutoHfQuantizer

    place = device_map[""]
    make = getattr(auto, "from_config", None) or auto._from_config
    with torch.device(place):
        model = make(config, dtype=dtype, attn_implementation=attn_implementation)
    model.tie_weights()
    if quantization_config is not None:
        quantizer = AutoHfQuantizer.from_config(quantization_config, pre_quantized=False)
        with torch.utils._python_dispatch._disable_current_modes():
            quantizer.preprocess_model(model=model, device_map=device_map, dtype=dtype)
        for module in model.modules():
            _pack(module, dtype, place)
        model.hf_quantizer = quantizer
        quantizer.postprocess_model(model)
    model.hf_device_map = {"": place.index or 0}
    model.config._name_or_path = model.name_or_path = str(name)
    nothing: list[str] = []
    return model, dict.fromkeys(("missing_keys", "unexpected_keys", "mismatched_keys"), nothing)


def _pack(module: "nn.Module", dtype: "torch.dtype", place: "torch.device") -> None:
    """Give a layer of bitsandbytes its packed weight.

    Its own parameter class cannot hold a fake tensor, so a plain one has the same attributes.
    """
    import torch
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    if not isinstance(module, Linear4bit | Linear8bitLt):
        return
    full = torch.empty(module.out_features, module.in_features, dtype=dtype, device=place)
    old = module.weight
    if isinstance(module, Linear8bitLt):
        packed, scales, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(full.half())
        module.weight = torch.nn.Parameter(packed, requires_grad=False)
        module.weight.CB, module.weight.SCB, module.weight.has_fp16_weights = packed, scales, False
        return
    packed, state = quantize_4bit(
        full,
        blocksize=old.blocksize,
        compress_statistics=old.compress_statistics,
        quant_type=old.quant_type,
        quant_storage=old.quant_storage,
    )
    module.weight = torch.nn.Parameter(packed, requires_grad=False)
    for key in ("blocksize", "compress_statistics", "quant_type", "quant_storage"):
        setattr(module.weight, key, getattr(old, key))
    module.weight.quant_state = module.quant_state = state
    module.weight.bnb_quantized = True


def replace_unpacking() -> None:
    """Make PEFT's DoRA unpack weights that `_pack` made: it knows them by the name of their class."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from peft.tuners.lora import dora

    def unpacked(module: "nn.Linear") -> "torch.Tensor":
        weight: torch.Tensor = module.weight
        if isinstance(module, Linear4bit):
            weight = dequantize_4bit(weight.data, module.quant_state)
        elif isinstance(module, Linear8bitLt):
            scales = module.weight.SCB if module.state.SCB is None else module.state.SCB
            weight = int8_vectorwise_dequant(weight.data, scales)
        return weight

    replace(dora, "dequantize_module_weight", unpacked)
    replace(dora, "deepcopy", lambda layer: layer)  # a fake tensor has no copy


def replace_apply() -> None:
    """Make `nn.Module.to`, `.float` and others give a module new parameters.

    torch would swap the contents of two tensors, which fake ones do not bear. A parameter that two
    modules share stays shared.
    """
    import torch

    def apply(
        self: "nn.Module", change: "Callable[[torch.Tensor], torch.Tensor]", recurse: bool = True
    ) -> "nn.Module":
        made: dict[int, nn.Parameter] = {}
        for module in self.modules() if recurse else [self]:
            for key, old in module._parameters.items():
                if old is None:
                    continue
                with torch.no_grad():
                    new = change(old)
                if new is not old:
                    fresh = torch.nn.Parameter(new, old.requires_grad)
                    module._parameters[key] = made.setdefault(id(old), fresh)
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = change(buffer)
        return self

    replace(torch.nn.Module, "_apply", apply)
