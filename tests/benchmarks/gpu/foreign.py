"""Libraries of others that change torch and transformers, or keep the GPU's memory: each in a process of its own.

They are measured if they are installed. Their answers and losses are not compared with ours.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from trl import SFTTrainer

from llama_peft.data import QuestionExample
from llama_peft.tokens.prompts import Encoded
from tests.benchmarks import decoding, measure, training
from tests.benchmarks.material import precision
from tests.benchmarks.measure import Contestant, Prepared

from .setting import Part, Setting


def unsloth(setting: Setting) -> Part:
    """Yield what its model takes in the stock trainer, on the examples of the part `training`.

    Raises ModuleNotFoundError if it is not installed.
    """
    its: Any = import_module("unsloth").FastLanguageModel
    questions, lora = setting.drawn(), setting.base.recipe().lora
    assert lora is not None

    def make(examples: Sequence[QuestionExample], folder: Path) -> SFTTrainer:
        model, _ = its.from_pretrained(
            model_name=str(setting.base.folder), max_seq_length=2048, dtype=None, load_in_4bit=True
        )
        adapted: PreTrainedModel = its.get_peft_model(
            model,
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=_PROJECTIONS,
            use_gradient_checkpointing=False,
        )
        return SFTTrainer(
            model=adapted,
            args=training.arguments(folder, max_length=2048),
            train_dataset=training.as_text(setting.base, examples),
            processing_class=setting.base.encoder.tokenizer,
        )

    contestant = Contestant(name="unsloth", prepare=training.preparation(make, questions.examples))
    for measured in measure.turns([contestant], setting.amount.repeats):
        rows = measure.rows(measured, len(questions.examples), lambda state: state.global_step)
        facts = {**questions.facts(), **setting.base.facts()}
        yield measure.result(
            "unsloth", rows, {}, **facts, flop_per_token=4 * setting.linear_weights()
        )


_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def vllm(setting: Setting) -> Part:
    """Yield what its engine takes for the prompts of the part `decoding`, with its own prefix cache.

    Its weights are not packed, as its users have them. Raises ModuleNotFoundError if it is not installed.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    library: Any = import_module("vllm")
    questions = setting.drawn()
    encoder = setting.base.encoder
    prompts = [Encoded(one.id, encoder.question(one)) for one in questions.examples]
    engine = library.LLM(
        model=str(setting.base.folder),
        dtype=precision(),
        gpu_memory_utilization=0.6,
        enable_prefix_caching=True,
        max_model_len=4096,
    )
    limits = library.SamplingParams(
        temperature=0.0,
        max_tokens=decoding.MAX_NEW_TOKENS,
        stop_token_ids=decoding.stop_tokens(setting.shape().vocab_size),
    )

    def answer() -> int:
        engine.reset_prefix_cache()
        given = [{"prompt_token_ids": list(prompt.prompt)} for prompt in prompts]
        return len(engine.generate(given, limits, use_tqdm=False))

    contestant = Contestant(name="vllm", prepare=lambda: Prepared(None, answer))
    for measured in measure.turns([contestant], setting.amount.repeats):
        rows = measure.rows(measured, len(prompts))
        yield measure.result("vllm", rows, {}, **questions.facts(), precision=precision())
