"""Makes `llama_peft/tiny/model/`: `python -m tests.tiny.build [--output FOLDER] [--seed N]`.

Provenance: `corpus.py` writes every word of the corpus from the phrasings and syllables in
`llama_peft/tiny/`; no outside text, tokenizer or weights are used. On one machine, the same seed
gives the same files, bit for bit. Another processor or torch version rounds differently and gives a
similar model.
"""

import argparse
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llama_peft.tiny import MODEL_DIR
from llama_peft.tiny.names import SYLLABLES
from tests.tiny.corpus import write_document
from tests.tiny.pretrain import batches, pretrain, start_copying

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"


@dataclass(frozen=True, kw_only=True)
class Build:
    """Everything that decides the files. Widths are multiples of 64, which NF4 needs on a CPU."""

    seed: int = 0
    steps: int = 4000
    tokens_per_step: int = 1024
    row_width: int = 256
    matrix_rate: float = 0.0015
    circuit_rate: float = 0.0008
    rate: float = 1e-3
    vocab_size: int = 1536
    tokenizer_documents: int = 4000
    shape: dict[str, int] = field(
        default_factory=lambda: {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
        }
    )


def train_tokenizer(build: Build) -> "PreTrainedTokenizerBase":
    """Return a byte-level BPE like Llama 3's; a text or a pair of texts starts with one BOS."""
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
    # Names are split into onset and ending here, so that no merge crosses the two: a name of the
    # test part is then split into the same pieces as one of the training part.
    joint = re.compile(
        "|".join(f"\\b({'|'.join(o)})({'|'.join(e)})\\b" for o, e in SYLLABLES.values())
    )
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
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **build.shape,
    )
    model = LlamaForCausalLM(config)
    start_copying(model, build.seed)
    return model


def save(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    import torch

    model.to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(build: Build, folder: Path, report: Callable[[int, float], None]) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums then have the same order on any number of cores
    try:
        tokenizer = train_tokenizer(build)
        model = new_model(build, tokenizer)
        data = batches(tokenizer, build.seed, build.steps, build.tokens_per_step, build.row_width)
        pretrain(
            model, data, build.steps, build.matrix_rate, build.circuit_rate, build.rate, report
        )
        save(model, tokenizer, folder)
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the embedded tiny model again.")
    parser.add_argument("--output", type=Path, default=MODEL_DIR)
    parser.add_argument("--seed", type=int, default=Build.seed)
    arguments = parser.parse_args()

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"step {step}/{Build.steps} loss {loss:.3f}", flush=True)

    run(Build(seed=arguments.seed), arguments.output, report)


if __name__ == "__main__":
    main()
