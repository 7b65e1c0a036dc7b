"""The kinds of model that can be evaluated, without heavy imports: `llama-eval --help` needs them."""

from dataclasses import dataclass
from typing import Literal, get_args

from llama_peft.errors import UserError
from llama_peft.run_folder.layout import BASELINES, Baseline

Kind = Literal["run", "adapter", "causal", "classifier", "reader", "baseline"]
"""A run folder of ours, a PEFT adapter, or a whole checkpoint by its class in transformers:
...ForCausalLM, ...ForSequenceClassification or ...ForQuestionAnswering; or a baseline, which has no
files."""
KINDS: tuple[Kind, ...] = get_args(Kind)
KIND_NAMES: dict[Kind, str] = {
    "run": "run",
    "adapter": "PEFT adapter",
    "causal": "causal language model",
    "classifier": "sequence classification checkpoint",
    "reader": "question answering checkpoint",
    "baseline": "baseline",
}
"""What messages and tables call them."""
BASELINE_WORDS: dict[Baseline, str] = {
    "majority": "the most frequent label, or the mean number, of the train part",
    "no-answer": "never an answer",
    "tf-idf": "words and pieces of words with a linear model, fitted on the train part",
    "bm25": "a few words of the passage's sentence that is most like the question",
}
"""What each baseline says, for the help."""

EngineName = Literal["openai", "vllm"]


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """A server that is asked for what a causal model writes, in place of this process."""

    name: EngineName
    base_url: str | None = None
    """Of openai; vllm is started here."""
    served_model: str | None = None
    """What the server calls the model; None if it is the name of the model, or of its folder."""
    concurrency: int = 8
    """Requests at the same time, at most."""
    prices: tuple[float, float] | None = None
    """Of a million tokens that are read, and that are written."""


def chosen_engine(
    engine: EngineName | None,
    base_url: str | None,
    served_model: str | None,
    concurrency: int,
    prices: tuple[float, float] | None,
) -> EngineChoice | None:
    """Return who answers in place of this process; None if nobody does. Raises UserError if what is
    given does not fit together.
    """
    if engine is not None and engine not in get_args(EngineName):
        raise UserError(f"engine {engine!r}: the engines are {', '.join(get_args(EngineName))}")
    given = {"--base-url": base_url, "--served-model": served_model}
    for name, value in given.items():
        if value is not None and engine != "openai":
            raise UserError(f"{name} is for --engine openai: add that, or leave {name} out")
    if prices is not None and (engine is None or not min(prices) >= 0):
        raise UserError("--prices is for --engine, and takes two numbers of at least 0")
    if engine is None:
        return None
    return EngineChoice(
        name=engine,
        base_url=base_url,
        served_model=served_model,
        concurrency=concurrency,
        prices=prices,
    )


def baseline_of(name: str) -> Baseline | None:
    """Return the baseline of a name; None if there is none."""
    return next((one for one in BASELINES if one == name), None)
