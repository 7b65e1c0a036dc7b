"""Chat templates of many families, and tokenizers of many kinds."""

import json
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, set_seed

from tests.faults.shop import Fault, Seen, Shop
from tests.tokens.small_tokenizers import KINDS, small_tokenizer
from tests.tokens.test_encoder import FAMILIES

from .case import WRITTEN, failed, predictions, words_of


def save(shop: Shop, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A base of random weights with this tokenizer."""
    config = AutoConfig.from_pretrained(shop.base)
    config.update({"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id})
    config.update({"bos_token_id": tokenizer.bos_token_id, "pad_token_id": None})
    set_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _answers(shop: Shop, folder: Path, model: list[str]) -> Seen:
    """Right if answers with shared prompts are those of whole prompts, one by one."""
    said = []
    for decoding in ("prefix_tree", "plain"):
        out = folder / decoding
        words = ["run", *model, f"eval.decoding={decoding}", "--output", str(out)]
        done = shop.run(words, "eval")
        if done.code != 0:
            return failed(done)
        lines = map(json.loads, predictions(out))
        said.append([(line["id"], line["prediction"], line["raw"]) for line in lines])
    return Seen("right" if said[0] == said[1] else "wrong", "the same answers")


def _family(name: str) -> Fault:
    """A base with the template of a family trains, and writes the same answers either way."""
    template, control, _ = FAMILIES[name]

    def inflict(shop: Shop, folder: Path) -> Seen:
        base = save(shop, folder / "base", small_tokenizer("llama3", template, *control))
        done = shop.run(words_of(shop, folder, WRITTEN, base))
        if done.code != 0:
            return failed(done)
        return _answers(shop, folder, ["--model", str(folder / "runs/run")])

    return Fault("model", f"the chat template of {name}", inflict, cheap=name == "llama 2")


def _tokenizer(kind: str) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        base = save(shop, folder / "base", small_tokenizer(kind))
        (recipe,) = shop.write(shop.recipe(WRITTEN, folder, base), folder)[1:]
        return _answers(shop, folder, ["--task", recipe])

    return Fault("model", f"a tokenizer like that of {kind}", inflict, cheap=kind == "smollm2")


def faults() -> Iterator[Fault]:
    yield from map(_family, FAMILIES)
    yield from map(_tokenizer, KINDS)
