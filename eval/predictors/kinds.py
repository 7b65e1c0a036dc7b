"""The kinds of model that can be evaluated, without heavy imports: `llama-eval --help` needs them."""

from typing import Literal, get_args

Kind = Literal["run", "adapter", "causal", "classifier", "reader"]
"""A run folder of ours, a PEFT adapter, or a whole checkpoint by its class in transformers:
...ForCausalLM, ...ForSequenceClassification or ...ForQuestionAnswering."""
KINDS: tuple[Kind, ...] = get_args(Kind)
KIND_NAMES: dict[Kind, str] = {
    "run": "run",
    "adapter": "PEFT adapter",
    "causal": "causal language model",
    "classifier": "sequence classification checkpoint",
    "reader": "question answering checkpoint",
}
"""What messages and tables call them."""
