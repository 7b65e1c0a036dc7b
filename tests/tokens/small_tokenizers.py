"""Small tokenizers of the kinds that causal models have, and chat templates of their families."""

import json
import string
from collections.abc import Callable
from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from llama_peft.tiny.generator import generate

BOS, EOS, UNK = "<|bos|>", "<|eos|>", "<unk>"
_WORDS = r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLIT = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?" + _WORDS,
    "qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?" + _WORDS.replace("{1,3}", ""),
    "gpt4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}\p{M}]+|" + _WORDS.replace("]*|", "/]*|", 1),
}


def byte_level(*before: pre_tokenizers.PreTokenizer, regex: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, last])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def by_pattern(name: str) -> Tokenizer:
    return byte_level(pre_tokenizers.Split(Regex(_SPLIT[name]), "isolated"), regex=False)


def pythia() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def falcon() -> Tokenizer:
    punctuation = pre_tokenizers.Punctuation(behavior="contiguous")
    tokenizer = byte_level(punctuation, pre_tokenizers.Digits(individual_digits=False))
    return tokenizer


def sentencepiece() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token=UNK))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def llama2() -> Tokenizer:
    tokenizer = sentencepiece()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def mistral() -> Tokenizer:
    tokenizer = sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def gemma() -> Tokenizer:
    tokenizer = sentencepiece()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_tokens([AddedToken("\n", normalized=False), AddedToken("\n\n", normalized=False)])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": byte_level,
    "smollm2": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "pythia": pythia,
    "falcon": falcon,
    "llama3": lambda: by_pattern("llama3"),
    "qwen": lambda: by_pattern("qwen"),
    "phi4": lambda: by_pattern("gpt4o"),
    "llama2": llama2,
    "mistral": mistral,
    "gemma": gemma,
    "unigram": unigram,
}


SENTENCEPIECE = ("llama2", "mistral", "gemma")


@cache
def corpus() -> list[str]:
    """Return generated text with the words of the prompts."""
    passages = [
        f"Passage: {row['context']}\n\nQuestion: {row['question']}\nAnswer: unanswerable\n\n"
        for row in generate("passages", "train", 60, seed=1)
    ]
    return [*passages, "Text: a film...\n\nLabel: positive\n\nuser\nassistant\n" * 50]


@cache
def trained(kind: str) -> str:
    """Return a tokenizer of a kind as JSON. It is trained here: no vocabulary is copied."""
    tokenizer = KINDS[kind]()
    special = [UNK, BOS, EOS]
    if kind == "unigram":
        trainer: trainers.Trainer = trainers.UnigramTrainer(
            vocab_size=600,
            special_tokens=[UNK],
            initial_alphabet=list(string.printable + "東京は日本👩🔬"),
            unk_token=UNK,
            show_progress=False,
        )
    else:
        bytes_ = [] if kind in SENTENCEPIECE else pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=1500, special_tokens=special, initial_alphabet=bytes_, show_progress=False
        )
    kept = json.loads(tokenizer.to_str())["pre_tokenizer"]
    if kind in SENTENCEPIECE:  # it learns words, and reads text without looking for them
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *([tokenizer.pre_tokenizer] if kept else []),
                pre_tokenizers.Split("▁", "merged_with_next"),
                pre_tokenizers.Split(Regex(r"\n+|[^\w\s▁]"), "isolated"),
            ]
        )
    tokenizer.train_from_iterator(corpus(), trainer)
    described = json.loads(tokenizer.to_str()) | {"pre_tokenizer": kept}
    if kind in SENTENCEPIECE:  # every byte is a token, which the trainer does not add
        vocab = described["model"]["vocab"]
        vocab |= {f"<0x{i:02X}>": len(vocab) + i for i in range(256)}
        for token in described["added_tokens"]:
            token["id"] = vocab.setdefault(token["content"], token["id"])
    return json.dumps(described)


def small_tokenizer(
    kind: str, template: str | None = None, *control: str, special: bool = True
) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a chat template and its control tokens.

    special: False adds these as ordinary tokens, as some checkpoints do.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained(kind)),
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
    )
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(control)})
    else:
        tokenizer.add_tokens([AddedToken(token, special=False) for token in control])
    tokenizer.chat_template = template
    return tokenizer
