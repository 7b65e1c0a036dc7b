"""Loads the base model in 4-bit, 8-bit or unquantised, checks every weight, and freezes it.

A base whose checkpoint lacks a backbone weight, or holds one that no layer takes, is refused:
transformers would fill the gap with random numbers and continue.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from llama_peft import tiny
from llama_peft.errors import UserError
from llama_peft.model import bounds
from llama_peft.model.quantize import (
    check_packed_shapes,
    mend_cpu_4bit,
    packed_form,
    quantization_config,
    settle,
)
from llama_peft.recipe import Model, Recipe
from llama_peft.system.memory import gpu_kind, is_out_of_memory
from llama_peft.system.progress.downloads import download
from llama_peft.tasks import TASKS, Task

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

LoadingInfo = Mapping[str, Iterable[str]]
"""What transformers says about a load: missing_keys, unexpected_keys and mismatched_keys."""

_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "<|endoftext|>")
_ADVICE = "Use a complete safetensors checkpoint"


def source(model: Model) -> str:
    """Return the Hub id or folder of the base that transformers loads."""
    return source_of(model.model_name_or_path)


def source_of(name: str) -> str:
    """Return what a name in a recipe stands for: `tiny` is the embedded model's folder.

    Raises UserError for a folder with a pipe or a device in it: transformers would wait for ever.
    """
    if name == "tiny":
        return str(tiny.MODEL_DIR)
    if Path(name).is_dir():
        bounds.check_folder(Path(name))
    return name


def device() -> "torch.device":
    """Return the GPU of this process (by LOCAL_RANK under torchrun), or the CPU."""
    import torch

    kind = gpu_kind()
    if kind is None:
        return torch.device("cpu")
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))


def fast_dtype(place: "torch.device") -> "torch.dtype":
    """Return the narrowest type that this machine multiplies fast.

    It is bfloat16 on recent GPUs and on CPUs with bfloat16 instructions, float16 on older GPUs, and
    float32 on any other CPU, because bfloat16 was 20 times slower there. Older GPUs (T4, V100, RTX
    20xx) emulate bfloat16: attention then falls back to a kernel that holds all scores at once.
    """
    import torch

    if place.type != "cpu":
        native = getattr(torch, place.type).is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    flags = torch.backends.cpu.get_cpu_capability()
    native = torch.cpu._is_avx512_bf16_supported() if flags.startswith("AVX512") else False
    return torch.bfloat16 if native else torch.float32


def place_of(recipe: Recipe) -> "torch.device":
    """Return the device that a recipe's model is loaded on."""
    import torch

    return torch.device("cpu") if recipe.train.use_cpu else device()


def dtype_name(recipe: Recipe) -> str:
    """Return the type of the weights that are not quantised, and of activations, as "bfloat16".

    It is the recipe's, or the fast one of this machine that is wide enough for the base. A GPU that
    only emulates bfloat16 computes in that too: attention would hold all scores at once.
    """
    asked, fast = recipe.model.dtype, str(fast_dtype(place_of(recipe))).removeprefix("torch.")
    if asked and (asked, fast) != ("bfloat16", "float16"):
        return asked
    if fast == "float16" and overflows_float16(load_config(recipe.model).to_dict()):
        return "float32"
    return fast


def overflows_float16(config: Mapping[str, object]) -> bool:
    """Return whether activations of a base exceed 65,504, the largest number of float16.

    They do in every Gemma after the first (https://unsloth.ai/blog/gemma-3n): then every result
    is infinite or NaN.

    config: the mapping of a config.json.
    """
    return re.match(r"gemma\d", str(config.get("model_type"))) is not None


def load_config(model: Model) -> "PretrainedConfig":
    """Return the config of the base. Raises UserError, with advice, if it cannot be loaded."""
    from transformers import AutoConfig

    name = source(model)
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise UserError(
            f"{name}: there is no config.json in this folder, so it holds no base model"
        )
    with _in_one_line(name):
        bounds.read_config(_config_file(name, model.revision))
        config: PretrainedConfig = AutoConfig.from_pretrained(
            name, revision=model.revision, trust_remote_code=False
        )
    return config


def positions(config: "PretrainedConfig") -> int | None:
    """Return the largest number of tokens that a model reads; None if its config sets no limit.

    Bloom has no limit, and XLNet says -1.
    """
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if found is not None and found > 0 else None


def _config_file(name: str, revision: str) -> Path:
    """Return the config.json of a base. The network is not used if it is in the cache."""
    from huggingface_hub import try_to_load_from_cache
    from transformers.utils.hub import cached_file

    if Path(name).is_dir():
        return Path(name, "config.json")
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(
        found
        if isinstance(found, str)
        else str(cached_file(name, "config.json", revision=revision))
    )


@contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    """Make a UserError of whatever the libraries raise for the files of a base.

    What they raise is of any class: that of a missing key, a wrong type, an unknown setting.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{name}: {first_line(error)}") from error


def commit(model: Model) -> str:
    """Return the Hub's commit of the base's files: the name of its folder in the cache.

    Configs do not store the commit.
    """
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(source(model), "config.json", revision=model.revision)
    except (OSError, ValueError) as error:
        raise UserError(f"{source(model)}: {first_line(error)}") from error
    return Path(str(path)).parent.name


def load_tokenizer(model: Model) -> "PreTrainedTokenizerBase":
    """Return the base's tokenizer, with padding on the right and a padding token in the embedding.

    Raises UserError if text or a prompt could hold an id that the embedding has no row for.
    """
    return _load_tokenizer(source(model), model.revision)


@lru_cache(maxsize=1)  # a 128,256-token vocabulary takes seconds to read
def _load_tokenizer(name: str, revision: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    with _in_one_line(f"{name}: its tokenizer does not load"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=False
        )
    config = load_config(Model(model_name_or_path=name, revision=revision))
    size = getattr(config.get_text_config(), "vocab_size", len(tokenizer))
    # If the files are missing, transformers makes a tokenizer of special tokens, to which all text
    # is unknown.
    if len(tokenizer) < size / 2:
        raise UserError(
            f"{name}: its tokenizer has {len(tokenizer):,} tokens and its config {size:,}: "
            "add the tokenizer's files that belong to it"
        )
    _check_ids(name, tokenizer, size)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= size:
        # Masks and labels here go by length. transformers alone takes the last token that is not
        # padding, and the end-of-text token is never in a text.
        known = tokenizer.get_vocab()
        usual = (token for token in _PAD_TOKENS if known.get(token, size) < size)
        tokenizer.pad_token = next(usual, tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0))
    tokenizer.padding_side = "right"
    return tokenizer


def _check_ids(name: str, tokenizer: "PreTrainedTokenizerBase", size: int) -> None:
    """Refuse tokens without a row in the embedding, unless they are control tokens of no prompt.

    Gemma 3 has such a token for images, and padding is replaced. In text from data, the strings of
    control tokens are ordinary text.
    """
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    template = str(tokenizer.chat_template or "")
    for number, token in tokenizer.added_tokens_decoder.items():
        written = not token.special or number in used or token.content in template
        if number >= size and written:
            raise UserError(
                f"{name}: its tokenizer has the token {token.content!r} with the id {number:,}, but "
                f"its embedding has {size:,} rows: use a checkpoint that was saved with this tokenizer"
            )


def load(recipe: Recipe, task: Task, num_labels: int = 0) -> "PreTrainedModel":
    """Return the frozen base of a recipe with the task's head, in evaluation mode.

    `generative_qa` uses the LM head. Any other head is float32, and its first weights are random
    and depend on `train.seed` only. Raises UserError if a weight is missing, is unexpected or has
    another shape.
    """
    import torch

    from llama_peft.model import heads

    name, head = source(recipe.model), TASKS[task].head
    config = load_config(recipe.model)
    packed = packed_form(config.to_dict()) is not None
    for part in (config, config.get_text_config()):
        part.pad_token_id = load_tokenizer(recipe.model).pad_token_id
    if TASKS[task].has_labels:
        config.num_labels = TASKS[task].outputs(num_labels)
        config.problem_type = TASKS[task].problem_type
        config.head_pooling = recipe.head.pooling
    blocks = _blocks_kept(recipe, task)
    if blocks is not None:
        _cut(config, blocks, name)
    model, info = _load_weights(recipe, config, task)
    if blocks is not None:  # the blocks above are not read, on purpose
        left = [key for key in info["unexpected_keys"] if _block(key) < blocks]
        info = {**info, "unexpected_keys": left}
    check_loading(name, info, head)
    check_packed_shapes(name, model)
    if packed:
        settle(model, recipe.quantization, getattr(torch, dtype_name(recipe)))
    mend_cpu_4bit(model)
    if head:
        setattr(model, head, heads.as_float32(getattr(model, head)))
    # A 4-bit load leaves embeddings, norms and head trainable.
    return model.requires_grad_(False).eval()


def _load_weights(
    recipe: Recipe, config: "PretrainedConfig", task: Task
) -> "tuple[PreTrainedModel, LoadingInfo]":
    """Return the model with its weights, and what transformers says about them."""
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    from llama_peft.model import heads

    name = source(recipe.model)
    dtype = getattr(torch, dtype_name(recipe))
    lm_head = TASKS[task].head is None
    attention = recipe.model.attn_implementation
    try:
        auto = AutoModelForCausalLM if lm_head else heads.model_class(config, task)
    except KeyError:
        raise UserError(f"{name}: {config.model_type} is not a causal language model") from None
    set_seed(recipe.train.seed)  # the head's first weights are drawn while loading
    return from_pretrained(
        auto,
        name,
        config=config,
        revision=recipe.model.revision,
        dtype=dtype,
        # Varlen attention is ours: training puts it in the place of the library's default.
        attn_implementation=None if attention == "varlen" else attention,
        quantization_config=quantization_config(recipe.quantization, dtype, config),
        device_map={"": place_of(recipe)},
    )


def from_pretrained(
    auto: "type[PreTrainedModel]", name: str, **arguments: object
) -> "tuple[PreTrainedModel, LoadingInfo]":
    """Return the model of a safetensors checkpoint, and what transformers says about its weights.

    Raises UserError if the checkpoint cannot be read.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # loading takes seconds
    with _in_one_line(name), download() as bar:
        try:
            found: tuple[PreTrainedModel, LoadingInfo] = auto.from_pretrained(
                name,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                tqdm_class=bar,
                **arguments,
            )
        except RuntimeError as error:
            # transformers logs which weights these are; the error itself does not name them.
            if "mismatched" not in str(error):
                raise
            raise UserError(
                f"{name}: the checkpoint holds weights of another shape than its config says. "
                f"{_ADVICE} of a causal language model"
            ) from error
    return found


def _blocks_kept(recipe: Recipe, task: Task) -> int | None:
    """Return how many blocks the model keeps if its head reads an inner layer, else None."""
    layer = recipe.head.layer
    inner = isinstance(layer, int) and layer > 0 and TASKS[task].head is not None
    return int(layer) if inner else None


def _cut(config: "PretrainedConfig", layer: int, name: str) -> None:
    """Change the config to that of the model that ends after a block and the final norm."""
    text = config.get_text_config()
    if layer > text.num_hidden_layers:
        raise UserError(
            f"{name}: head.layer is {layer}, but this base has {text.num_hidden_layers} blocks: "
            "choose a smaller number"
        )
    text.num_hidden_layers = layer
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layer]


def _block(key: str) -> int:
    """Return the number of the block that a weight belongs to; -1 for one outside of the blocks."""
    found = re.search(r"\.layers\.(\d+)\.", key)
    return int(found.group(1)) if found else -1


def check_loading(name: str, info: LoadingInfo, head: str | None) -> None:
    """Refuse a checkpoint that leaves a backbone weight random or unused.

    Only the head may be missing, and only lm_head may be unused.
    """
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
                f"{name}: the checkpoint {problem}: {len(keys)}, first {keys[0]}. {_ADVICE}"
            )


def _outside(keys: Iterable[str], module: str | None) -> list[str]:
    return sorted(key for key in keys if module is None or key.split(".")[0] != module)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has no message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
