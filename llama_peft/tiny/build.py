"""Makes `tiny/model/`: `python -m llama_peft.tiny.build [--output FOLDER] [--seed N]`.

Provenance: every word of the corpus is written by `corpus.py` from the phrasings and syllables in this folder; no outside
text, tokenizer or weights take part. From one seed and one machine the files come out bit-identical;
another processor or torch version rounds differently and gives a model of the same quality, not the same bits.
"""

import argparse
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_peft.tiny import MODEL_DIR
from llama_peft.tiny.corpus import Document, write_document
from llama_peft.tiny.names import SYLLABLES

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"


@dataclass(frozen=True, kw_only=True)
class Build:
    """All that decides the files. Widths are multiples of 64, which NF4 on a CPU asks for."""

    seed: int = 0
    steps: int = 2400
    tokens_per_step: int = 3072
    learning_rate: float = 2e-3
    vocab_size: int = 1536
    tokenizer_documents: int = 4000
    shape: dict[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
        }
    )


def train_tokenizer(build: Build) -> "PreTrainedTokenizerBase":
    """Byte-level BPE in Llama 3's manner; BOS once, in front, also for a pair of texts."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=build.vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(f"tokenizer {build.seed}")
    documents = (write_document(rng, 0.5) for _ in range(build.tokenizer_documents))
    texts = ("".join(stretch.text for stretch in document) for document in documents)
    # Names are cut at their joint here, so that no merge crosses it: a name of the test part then falls into
    # the same pieces, onset and ending, as one of the training part.
    joint = re.compile("|".join(f"\\b({'|'.join(o)})({'|'.join(e)})\\b" for o, e in SYLLABLES.values()))
    cut = (joint.sub(lambda m: "\n".join(filter(None, m.groups())), text) for text in texts)
    tokenizer.train_from_iterator(cut, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B:1",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def new_model(build: Build, tokenizer: "PreTrainedTokenizerBase") -> "LlamaForCausalLM":
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(build.seed)
    config = LlamaConfig(
        vocab_size=build.vocab_size,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **build.shape,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: "PreTrainedTokenizerBase", document: Document) -> tuple[list[int], list[float]]:
    """Tokens between BOS and EOS, and the weight of each as a target."""
    ids = [tokenizer.bos_token_id]
    weights = [0.0]
    for text, weight in document:
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        weights += [weight] * len(piece)
    return [*ids, tokenizer.eos_token_id], [*weights, 0.2]


def batches(
    tokenizer: "PreTrainedTokenizerBase", build: Build
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """Fresh documents for every step, padded on the right: (ids_BT, weights_BT)."""
    import torch

    rng = random.Random(f"corpus {build.seed}")
    for step in range(build.steps):
        rows: list[tuple[list[int], list[float]]] = []
        longest = 0
        while True:
            row = encode(tokenizer, write_document(rng, step / build.steps))
            longest = max(longest, len(row[0]))
            if rows and (len(rows) + 1) * longest > build.tokens_per_step:
                break
            rows.append(row)
        ids_BT = torch.full((len(rows), max(len(r[0]) for r in rows)), tokenizer.pad_token_id)
        weights_BT = torch.zeros(ids_BT.shape)
        for i, (ids, weights) in enumerate(rows):
            ids_BT[i, : len(ids)] = torch.tensor(ids)
            weights_BT[i, : len(ids)] = torch.tensor(weights)
        yield ids_BT, weights_BT


def pretrain(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerBase", build: Build) -> None:
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=build.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    import time
    t0=time.time(); avg=0;avga=0
    for step, (ids_BT, weights_BT) in enumerate(batches(tokenizer, build)):
        warm = min(1.0, (step + 1) / 60)
        decay = 0.5 * (1 + math.cos(math.pi * step / build.steps))
        for group in optimizer.param_groups:
            group["lr"] = build.learning_rate * warm * (0.05 + 0.95 * decay)
        states_BTD = model.model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
        targets_BT, weights_BT = ids_BT[:, 1:], weights_BT[:, 1:]
        learnt = weights_BT > 0
        losses_N = torch.nn.functional.cross_entropy(
            model.lm_head(states_BTD[learnt]), targets_BT[learnt], reduction="none"
        )
        weights_N = weights_BT[learnt]
        loss = (losses_N * weights_N).sum() / weights_N.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        a=losses_N[weights_N==1.0].mean().item()
        avga=0.98*avga+0.02*a; avg=.98*avg+.02*loss.item()
        if step%100==99: print(step+1, round(time.time()-t0), "loss",round(avg/(1-.98**(step+1)),3),"answers",round(avga/(1-.98**(step+1)),3), flush=True)


def save(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    import torch

    model.to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(build: Build, folder: Path) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums then have one order, on any number of cores
    try:
        tokenizer = train_tokenizer(build)
        model = new_model(build, tokenizer)
        pretrain(model, tokenizer, build)
        save(model, tokenizer, folder)
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the embedded tiny model again.")
    parser.add_argument("--output", type=Path, default=MODEL_DIR)
    parser.add_argument("--seed", type=int, default=Build.seed)
    arguments = parser.parse_args()
    run(Build(seed=arguments.seed), arguments.output)


if __name__ == "__main__":
    main()
