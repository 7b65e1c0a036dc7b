"""The base model: loaded in 4-bit, 8-bit or unquantised, checked weight for weight, frozen, with LoRA beside it.

A base whose checkpoint lacks a backbone weight, or holds one that no layer takes, is refused: transformers would fill the
gap with random numbers and go on.
"""

import logging
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_peft import tiny
from llama_peft.errors import UserError
from llama_peft.recipe import Model, Quantization, Recipe
from llama_peft.tasks import TASKS, Task

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# Passing a list replaces the library's own, so it must name the tied lm_head too.
_NEVER_QUANTIZED = ["lm_head", "score", "qa_outputs"]
_LLAMA_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "<|endoftext|>")


def source(model: Model) -> str:
    """The Hub id or folder that transformers loads; `tiny` is the embedded model's folder."""
    return source_of(model.model_name_or_path)


def source_of(name: str) -> str:
    return str(tiny.MODEL_DIR) if name == "tiny" else name


def device() -> "torch.device":
    """The accelerator of this process (by LOCAL_RANK under torchrun), or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def fast_dtype(place: "torch.device") -> "torch.dtype":
    """The narrowest type that this machine multiplies fast.

    bfloat16 on recent GPUs and on CPUs with bfloat16 instructions; float16 on older GPUs; float32 on any other CPU, where
    bfloat16 was measured 20 times slower.
    """
    import torch

    if place.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    flags = torch.backends.cpu.get_cpu_capability()
    native = torch.cpu._is_avx512_bf16_supported() if flags.startswith("AVX512") else False
    return torch.bfloat16 if native else torch.float32


def load_config(model: Model) -> "PretrainedConfig":
    """The config of the base. Raises UserError, with what to do, where it cannot be had."""
    from transformers import AutoConfig

    name = source(model)
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise UserError(f"{name}: no config.json in this folder, so it holds no base model")
    try:
        return AutoConfig.from_pretrained(name, revision=model.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: {first_line(error)}") from error


def commit(model: Model) -> str:
    """The Hub's commit that a base's files are of: the cached snapshot's name, since configs do not keep it."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(source(model), "config.json", revision=model.revision)
    except (OSError, ValueError) as error:
        raise UserError(f"{source(model)}: {first_line(error)}") from error
    return Path(str(path)).parent.name


def load_tokenizer(model: Model, for_training: bool = True) -> "PreTrainedTokenizerBase":
    """The base's tokenizer, with padding on the right and a padding token of its own.

    for_training: False lets the end-of-text token be the padding if there is no other. In training this would hide the
    labels of the end-of-text token, and a model would never stop.
    """
    return _load_tokenizer(source(model), model.revision, for_training)


@lru_cache(maxsize=1)  # a 128,256-token vocabulary takes seconds to read
def _load_tokenizer(name: str, revision: str, for_training: bool) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: its tokenizer does not load: {first_line(error)}") from error
    config = load_config(Model(model_name_or_path=name, revision=revision))
    size = getattr(config.get_text_config(), "vocab_size", 0)
    # Where the files are missing, transformers makes up a tokenizer of special tokens: all text would be unknown.
    if len(tokenizer) < size / 2:
        raise UserError(
            f"{name}: its tokenizer has {len(tokenizer):,} tokens and its config {size:,}: "
            "add the tokenizer's files that belong to it"
        )
    if tokenizer.pad_token_id is None:
        known = tokenizer.get_vocab().keys() - {tokenizer.eos_token}
        last = None if for_training else tokenizer.eos_token
        pad = next((token for token in _LLAMA_PAD_TOKENS if token in known), last)
        if pad is None:
            raise UserError(f"{name}: its tokenizer has no token to pad with")
        tokenizer.pad_token = pad
    tokenizer.padding_side = "right"
    return tokenizer


def load(
    recipe: Recipe, task: Task, num_labels: int = 0, for_training: bool = True
) -> "PreTrainedModel":
    """The frozen base of a recipe with the task's head, in evaluation mode; `generative_qa` has the LM head.

    for_training: see `load_tokenizer`.
    Heads are float32 and random by `train.seed`. Raises UserError where a weight is missing, unexpected or of another shape.
    """
    import torch
    from transformers import AutoModelForCausalLM, set_seed
    from transformers.utils import logging as transformers_logging

    from llama_peft.model import heads

    config = load_config(recipe.model)
    tokenizer = load_tokenizer(recipe.model, for_training)
    config.pad_token_id = tokenizer.pad_token_id
    kind = TASKS[task]
    if kind.has_labels:
        config.num_labels = num_labels
        config.head_pooling = recipe.head.pooling
    layer = recipe.head.layer
    cut = layer if kind.head is not None and isinstance(layer, int) and layer > 0 else 0
    if cut:
        _cut(config, cut, source(recipe.model))
    place = torch.device("cpu") if recipe.train.use_cpu else device()
    dtype = getattr(torch, recipe.model.dtype) if recipe.model.dtype else fast_dtype(place)
    try:
        auto = AutoModelForCausalLM if kind.head is None else heads.model_class(config, task)
    except KeyError:
        raise UserError(f"{source(recipe.model)}: {config.model_type} is no causal model") from None
    transformers_logging.disable_progress_bar()  # loading takes seconds
    set_seed(recipe.train.seed)  # the head's first weights are drawn while loading
    model, info = from_pretrained(
        auto,
        source(recipe.model),
        config=config,
        revision=recipe.model.revision,
        dtype=dtype,
        attn_implementation=recipe.model.attn_implementation,
        quantization_config=quantization_config(recipe.quantization, dtype),
        device_map={"": place},
    )
    head = kind.head
    if cut:  # what stands above is left unread on purpose
        info["unexpected_keys"] = [key for key in info["unexpected_keys"] if _block(key) < cut]
    check_loading(source(recipe.model), info, head)
    _check_packed_shapes(source(recipe.model), model)
    mend_cpu_4bit(model)
    if head:
        setattr(model, head, heads.as_float32(getattr(model, head)))
    # A 4-bit load leaves embeddings, norms and head trainable.
    return model.requires_grad_(False).eval()


def from_pretrained(
    auto: type, name: str, **arguments: object
) -> "tuple[PreTrainedModel, dict[str, list[str]]]":
    """Load a safetensors checkpoint, and return what transformers says about its weights too.

    Raises UserError if the checkpoint cannot be read.
    """
    from safetensors import SafetensorError

    try:
        model, info = auto.from_pretrained(  # type: ignore[attr-defined]
            name,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **arguments,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{name}: {first_line(error)}") from error
    except RuntimeError as error:
        # transformers logs which weights these are, and its error says nothing else.
        if "mismatched" not in str(error):
            raise
        raise UserError(
            f"{name}: the checkpoint holds weights of another shape than its config says. "
            "Use a complete safetensors checkpoint"
        ) from error
    return model, info


def _cut(config: "PretrainedConfig", layer: int, name: str) -> None:
    """Make it the config of the model that ends after a block: its final norm follows, the blocks above are not loaded."""
    text = config.get_text_config()
    if layer > text.num_hidden_layers:
        raise UserError(
            f"{name}: head.layer is {layer}, and it has {text.num_hidden_layers} blocks"
        )
    text.num_hidden_layers = layer
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layer]


def _block(key: str) -> int:
    """The number of the block that a weight belongs to; -1 for one outside of the blocks."""
    found = re.search(r"\.layers\.(\d+)\.", key)
    return int(found.group(1)) if found else -1


def check_loading(name: str, info: dict[str, Any], head: str | None) -> None:
    """Refuse a checkpoint that leaves a backbone weight random or unused. Only the head may be missing, only lm_head be left over."""
    missing = _outside(info["missing_keys"], head)
    unexpected = _outside(info["unexpected_keys"], "lm_head")
    mismatched = [str(key) for key in info.get("mismatched_keys") or ()]
    for problem, keys in (
        ("lacks weights, which would be random", missing),
        ("holds weights that the model has no place for", unexpected),
        ("holds weights of another shape than its config says", mismatched),
    ):
        if keys:
            raise UserError(
                f"{name}: the checkpoint {problem}: {len(keys)}, first {keys[0]}. "
                "Use a complete safetensors checkpoint"
            )


def _outside(keys: Iterable[str], module: str | None) -> list[str]:
    return sorted(key for key in keys if module is None or key.split(".")[0] != module)


def quantization_config(quantization: Quantization, dtype: "torch.dtype") -> Any:
    """A BitsAndBytesConfig, or None where the recipe loads unquantised."""
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


def _check_packed_shapes(name: str, model: "PreTrainedModel") -> None:
    """Refuse a packed weight of another shape than its layer: it takes the checkpoint's without a word."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for path, module in model.named_modules():
        if isinstance(module, Linear4bit):
            found = tuple(module.weight.quant_state.shape)
        elif isinstance(module, Linear8bitLt):
            found = tuple(module.weight.shape)
        else:
            continue
        if found != (module.out_features, module.in_features):
            raise UserError(
                f"{name}: {path} has the shape {found} where its config says "
                f"{(module.out_features, module.in_features)}, another shape than the model's"
            )


def mend_cpu_4bit(model: "PreTrainedModel") -> None:
    """Keep Linear4bit from repacking its weights for AVX512 in its first forward, after which gradients are silently wrong."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def count_on_meta(model: Model) -> int:
    """Parameters of a causal model that has no formula in `counts`, built without storage."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(model)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
