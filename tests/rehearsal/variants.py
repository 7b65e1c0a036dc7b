"""What a recipe can ask for beside its defaults, as rehearsals: storage, adapters, types, attention, optimizers, a larger base.

`python -m tests.rehearsal --variants` rehearses them all. Each is a recipe of the README with settings, on rows as long as the
recipe allows, and on the first blocks of its base, which has its true shape otherwise: the other blocks are like these, and
take the longest to rehearse.
"""

import json
from pathlib import Path
from typing import NamedTuple

from llama_peft.rehearsal.base import SHAPES

BLOCKS = 2
SMALL, BIG = "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B"
GEMMA = "google/gemma-3-1b-pt"
EIGHT_BITS = "quantization.load_in_4bit=false", "quantization.load_in_8bit=true"
VARLEN = "model.attn_implementation=varlen"
SHORT = (
    *("dataset.path=tiny", "dataset.name=reviews", "dataset.parts={train: 400, validation: 64}"),
    "eval.splits=[validation]",
)
"""Generated rows: invented ones are all as long as they may be, and share nothing."""
COMPILED = "train.torch_compile=true"
AGAIN, DORA = "train.activation_checkpointing=true", "lora.use_dora=true"


class Variant(NamedTuple):
    """Settings of a recipe on a card, and a base in place of its own."""

    recipe: str
    settings: tuple[str, ...]
    card: str = "4090"
    base: str | None = None


def _on(recipes: str, *settings: str, card: str = "4090", base: str = SMALL) -> list[Variant]:
    return [Variant(recipe, settings, card, base) for recipe in recipes.split()]


VARIANTS = [
    # How the base is stored.
    *_on("squad sst2", *EIGHT_BITS),
    *_on("squad", *EIGHT_BITS, card="t4"),
    *_on("squad", "quantization.load_in_4bit=false"),
    # What is trained.
    *_on("squad squad-span", DORA),
    *_on("squad", DORA, *EIGHT_BITS),
    *_on("squad", "lora.use_rslora=true", "lora.r=64"),
    *_on("squad", "lora.modules_to_save=[norm]"),
    *_on("sst2", "lora.modules_to_save=[embed_tokens]"),
    *_on("squad", "lora.trainable_token_indices=[5,6,7]"),
    *_on("squad sst2", "lora.layers_to_transform=[1]"),
    # The type and the attention.
    *_on("squad", "model.dtype=bfloat16", card="t4"),
    *_on("squad", "model.dtype=float32"),
    *_on("squad", "model.attn_implementation=sdpa"),
    *_on("squad", "model.attn_implementation=flex_attention"),
    *_on("squad", "model.attn_implementation=eager"),
    *_on("squad", VARLEN),
    *_on("sst2", VARLEN, *SHORT),
    *_on("gemma-squad", VARLEN, base=GEMMA),
    # Memory against time.
    *_on("squad squad-span", AGAIN),
    *_on("squad", AGAIN, DORA),
    *_on("squad", AGAIN, "train.max_length=32768"),
    *_on("squad", AGAIN, "train.max_length=16384", card="t4"),
    *_on("squad", "train.optim=paged_adamw_8bit"),
    *_on("squad", "train.optim=adamw_8bit"),
    *_on("squad", "train.optim=adafactor"),
    # Compiled blocks.
    *_on("squad sst2", COMPILED),
    *_on("squad", VARLEN, COMPILED),
    *_on("gemma-squad", VARLEN, COMPILED, base=GEMMA),
    # A larger base.
    *_on("squad-span", base=BIG),
]  # fmt: skip


def first_blocks(base: str, folder: Path) -> str:
    """Write the config of a base with few of its blocks into a folder, and return that."""
    place = folder / base.rpartition("/")[2]
    place.mkdir(exist_ok=True)
    config = {**SHAPES[base], "num_hidden_layers": BLOCKS}
    (place / "config.json").write_text(json.dumps(config), "utf-8")
    return str(place)
