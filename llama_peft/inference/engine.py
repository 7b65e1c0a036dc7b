"""What continues prompts: a model that is loaded here, or a server that has loaded it.

Whoever asks gives token ids, and does not know which of the two answers. The servers are in
`eval/predictors/engines`, because only an evaluation asks them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.tokens import generate
from llama_peft.tokens.generate import Decoding, Request
from llama_peft.tokens.prompts import Encoded, PromptEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Written(NamedTuple):
    """What a model wrote after a prompt."""

    text: str
    ids: tuple[int, ...]
    """Its token ids, the one that ended it included; empty if a server does not tell them."""


class Engine(Protocol):
    """Continues prompts greedily, and scores continuations."""

    @property
    def encoder(self) -> PromptEncoder:
        """Makes the prompts, and knows what ends an answer."""

    @property
    def positions(self) -> int | None:
        """The largest number of tokens that the model reads; None if there is no limit."""

    def write(
        self, prompts: Sequence[Encoded], max_new_tokens: int, not_first: int | None = None
    ) -> dict[str, Written]:
        """Return by id what the model writes until a stop token of the encoder.

        not_first: the id of a token that no answer begins with.
        """

    def loglikelihoods(self, requests: Sequence[Request]) -> list[float] | None:
        """Return log p(continuation | prompt) of each request; None if a server does not tell them."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in the memory of this process."""

    model: "PreTrainedModel"
    encoder: PromptEncoder
    decoding: Decoding

    @classmethod
    def of(cls, model: "PreTrainedModel", recipe: Recipe) -> "Loaded":
        """Return a loaded model with the tokenizer and the prompts of a recipe."""
        encoder = PromptEncoder(backbone.load_tokenizer(recipe.model), recipe.prompt)
        return cls(model=model, encoder=encoder, decoding=recipe.eval.decoding)

    @property
    def positions(self) -> int | None:
        return generate.positions(self.model)

    def write(
        self, prompts: Sequence[Encoded], max_new_tokens: int, not_first: int | None = None
    ) -> dict[str, Written]:
        found = generate.greedy(
            self.model,
            prompts,
            decoding=self.decoding,
            stop_token_ids=self.encoder.stop_ids,
            max_new_tokens=max_new_tokens,
            not_first=not_first,
        )
        return {id_: Written(self.encoder.text(list(ids)), ids) for id_, ids in found}

    def loglikelihoods(self, requests: Sequence[Request]) -> list[float] | None:
        return generate.loglikelihoods(self.model, requests, decoding=self.decoding)
