"""Bases with another padding token, other tokens, other positions or a tower that sees."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors.torch import load_file
from transformers import AddedToken, PreTrainedTokenizerBase

from tests.faults.shop import Fault, Seen, Shop
from tests.support.small import save_seeing_base

from .case import (
    LORA,
    SPAN,
    WRITTEN,
    Twin,
    configure,
    copied,
    failed,
    gives,
    learned,
    refuses,
    retokenize,
)

Change = Callable[[Path], object]


def without_padding(base: Path) -> None:
    for file in base.glob("tokenizer*"):
        text = file.read_text().replace("<|finetune_right_pad_id|>", "<|reserved_9|>")
        file.write_text(re.sub(r'\s*"pad_token": "[^"]*",', "", text))


def _with(**words: str) -> Change:
    return lambda base: retokenize(base, lambda one: one.add_special_tokens(words))


def _end_as_padding(base: Path) -> None:
    retokenize(base, lambda one: setattr(one, "pad_token", one.eos_token))


def _image(base: Path) -> None:
    retokenize(base, lambda one: one.add_tokens(AddedToken("<image>", special=True)))


def _left(base: Path) -> None:
    retokenize(base, lambda one: setattr(one, "padding_side", "left"))


def _short(base: Path) -> None:
    retokenize(base, lambda one: setattr(one, "model_max_length", 7))


SAME: dict[str, Change] = {
    "no padding token": without_padding,
    "no padding token in the config": lambda base: configure(base, pad_token_id=None),
    "a padding token of -1": lambda base: configure(base, pad_token_id=-1),
    "[PAD] beyond the embedding": _with(pad_token="[PAD]"),
    "the end token pads": _end_as_padding,
    "an image token beyond the embedding": _image,
    "padding on the left": _left,
    "a tokenizer that says 7 tokens are the most": _short,
    "a cache that is off": lambda base: configure(base, use_cache=False),
    "a type that is half": lambda base: configure(base, dtype="float16", torch_dtype="float16"),
}


def _changed(change: Change) -> Twin:
    def twin(shop: Shop, folder: Path) -> tuple[Path, Path]:
        base = copied(shop, folder)
        change(base)
        return base, shop.base

    return twin


def _turns(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_tokens(AddedToken("<|turn|>", special=True))
    tokenizer.chat_template = "{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}"


def _saved_whole(name: str, kind: str) -> Fault:
    """A module that trains whole on a bfloat16 base is in the adapter, and the run loads back."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        lora = {"r": 2, "target_modules": ["v_proj"], "modules_to_save": [name]}
        model = {"dtype": "bfloat16"}
        recipe = shop.recipe(kind, folder, model=model, train={"max_steps": 2})
        values = recipe.changed(lora=lora)  # type: ignore[union-attr]
        done = shop.run(shop.write(values, folder))
        run = folder / "runs/run"
        if done.code == 0:
            done = shop.run(["run", "--model", str(run), "--output", str(folder / "out")], "eval")
        if done.code != 0:
            return failed(done)
        kept = load_file(run / "adapter/adapter_model.safetensors")
        return Seen("right" if any(f"{name}." in key for key in kept) else "wrong", ", ".join(kept))

    return Fault(
        "model", f"modules_to_save: [{name}] on a bfloat16 base: {kind}", inflict, cheap=False
    )


def _seeing(kind: str) -> Fault:
    """LoRA on a base that also sees lies on its language model only."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        base = save_seeing_base(folder / "base")
        outcome = learned(shop, folder, kind, base)
        if outcome.done.code != 0:
            return failed(outcome.done)
        tensors = load_file(folder / "runs/run/adapter/adapter_model.safetensors")
        names = [name for name in tensors if "lora_" in name]
        right = names and all("language_model." in name for name in names)
        return Seen("right" if right else "wrong", ", ".join(names[:2]))

    return Fault("model", f"a base that also sees: {kind}", inflict, cheap=False)


def _long(kind: str) -> Fault:
    """A limit beyond the positions, which no row reaches, changes nothing and is told."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        done = shop.run(_words(shop, folder, kind))
        if done.code != 0:
            return failed(done)
        told = "more than the 1024 positions" in done.text
        return Seen("right" if told else "wrong", "a line says so")

    return Fault("model", f"max_length beyond the positions: {kind}", inflict, cheap=False)


def _words(shop: Shop, folder: Path, kind: str) -> list[str]:
    recipe = shop.recipe(kind, folder, train={"max_steps": 1, "max_length": 2000})
    return shop.write(recipe, folder)


def faults() -> Iterator[Fault]:
    for name, change in SAME.items():
        yield gives(name, _changed(change), LORA, cheap=name == "no padding token")
    for name in ("no padding token", "[PAD] beyond the embedding", "the end token pads"):
        yield gives(f"{name}: {SPAN}", _changed(SAME[name]), SPAN)
        yield gives(f"{name}: {WRITTEN}", _changed(SAME[name]), WRITTEN)
    beyond = "with the id .* its embedding has"
    words = {
        "a word": lambda one: one.add_tokens("<word>"),
        "an end token": lambda one: one.add_special_tokens({"eos_token": "<end>"}),
        "a token of its chat template": _turns,
    }
    for name, edit in words.items():
        yield refuses(
            f"{name} beyond the embedding", lambda base, e=edit: retokenize(base, e), beyond
        )
    few = {"max_position_embeddings": 16}
    for kind in (LORA, SPAN, WRITTEN):
        yield refuses(
            f"rows beyond the positions: {kind}",
            lambda base: configure(base, **few), "16 positions", kind, eval={"max_new_tokens": 4},
        )  # fmt: skip
        yield _seeing(kind)
        yield _long(kind)
    yield _saved_whole("embed_tokens", LORA)
    yield _saved_whole("norm", SPAN)
    yield _saved_whole("lm_head", WRITTEN)
