"""The kinds of model that can be evaluated, without heavy imports: `llama-eval --help` reads this room."""

from typing import Literal, get_args

Kind = Literal["run", "adapter", "causal", "classifier", "reader"]
"""What a model is: a run folder of ours, a PEFT adapter, or a whole checkpoint by its class in transformers:
...ForCausalLM, ...ForSequenceClassification or ...ForQuestionAnswering."""
KINDS: tuple[Kind, ...] = get_args(Kind)
