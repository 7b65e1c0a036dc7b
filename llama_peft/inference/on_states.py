"""Runs whose frozen part is computed once for all of them: a head alone, and LoRA on upper blocks.

Runs of several seeds and sizes on one base read the same states of a text. Which texts are computed
together depends on all of them, and not on what an interrupted evaluation has left, so the
predictions keep their bits. The plain ways are `head.features: none` and
`train.reuse_frozen_blocks: false`.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llama_peft.data import Example
from llama_peft.errors import UserError
from llama_peft.features import blocks
from llama_peft.features.cache import cache_folder, compute, sums_of
from llama_peft.features.shards import Stored
from llama_peft.features.states import Key, Row, tokens_of
from llama_peft.inference.predict import (
    Prediction,
    head_rows,
    of_logits,
    predict,
    questions,
    span_windows,
    texts,
)
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.run_folder.layout import LADDER, LADDER_RECIPE
from llama_peft.run_folder.weights import TunedModel
from llama_peft.system.memory import is_out_of_memory
from llama_peft.system.sequences.spool import Spool

_TOGETHER = 2048
"""Examples whose tokens are in memory at once."""
log = logging.getLogger(__name__)


def shares_states(recipe: Recipe, run: Path) -> bool:
    """Return whether a run predicts from states that lie beside it: a head alone, which keeps one for a
    text, and LoRA on upper blocks, which keeps one for a token, if its ladder trains several. A run that
    writes answers does not: each token that it writes passes all blocks.
    """
    if not cache_folder(run).is_dir():
        return False
    upper = recipe.train.reuse_frozen_blocks and recipe.lora is not None
    return recipe.on_states or (upper and recipe.kind.head is not None and _is_of_several(run))


def _is_of_several(run: Path) -> bool:
    """Return whether the ladder of a run trains several."""
    place = run.parent if run.parent.name == LADDER else run / LADDER
    try:
        ladder = load_recipe(place / LADDER_RECIPE).ladder
    except (OSError, UserError):
        return False
    return len(ladder.seeds) > 1 or any(size != "all" for size in ladder.sizes)


class OnStates:
    """A run that `shares_states`, whose states are kept in a folder beside the runs."""

    def __init__(self, tuned: TunedModel, cache: Path) -> None:
        self._tuned, self._cache = tuned, cache
        self._frozen = () if tuned.recipe.lora is None else blocks.frozen(tuned.model)
        self._stored: Stored | None = None

    def prepare(self, examples: Sequence[Example]) -> float:
        """Compute the states of examples, or find them. Returns the seconds that one took, whenever it
        was computed; 0 if the folder takes none, so that each example is computed as it is predicted.
        """
        tuned = self._tuned
        rows = Spool[Row]()
        for first in range(0, len(examples), _TOGETHER):
            read = _read(tuned, examples[first : first + _TOGETHER])
            rows.extend({"input_ids": ids} for ids in read)
        try:
            folder = compute(
                tuned.recipe, tuned.model, "evaluation", rows, self._cache, (self._key,)
            )
        except Exception as error:
            if not (isinstance(error, OSError | UserError) or is_out_of_memory(error)):
                raise
            log.info("no states are kept: %s", error)
            return 0.0
        self._stored = Stored(folder, self._key.name)
        tokens = sum(len(tokens_of(row)) for row in rows)
        return self._stored.seconds_a_token * tokens / len(examples)

    @property
    def _key(self) -> Key:
        if self._tuned.recipe.lora is not None:
            return Key(len(self._frozen), "tokens")
        layers = self._tuned.model.config.get_text_config().num_hidden_layers
        return Key(layers, self._tuned.recipe.head.pooling)

    def predict(self, examples: Sequence[Example], batch_size: int) -> Iterator[list[Prediction]]:
        """Yield the predictions of examples, all of which were prepared, or none.

        Raises KeyError for one that was not.
        """
        if self._stored is None:
            yield from predict(self._tuned, examples, batch_size)
        elif self._tuned.recipe.lora is None:
            yield from self._of_head(self._stored, examples, batch_size)
        else:
            model, above = self._tuned.model, partial(self._above, self._stored)
            with blocks.replaced([model], partial(above, model.forward)):
                yield from predict(self._tuned, examples, batch_size)

    def _of_head(
        self, stored: Stored, examples: Sequence[Example], batch_size: int
    ) -> Iterator[list[Prediction]]:
        tuned = self._tuned
        rows = head_rows(tuned, texts(examples))
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            states = _states(stored, [ids for _, ids in batch])
            with torch.inference_mode():
                logits_NC = tuned.model.score(torch.stack(states).to(tuned.model.device))
            side = tuned.recipe.kind.side
            yield of_logits([id_ for id_, _ in batch], logits_NC, tuned.labels, side)

    def _above(
        self,
        stored: Stored,
        forward: Any,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        **others: Tensor,
    ) -> Any:
        """Run the model above its frozen blocks."""
        masks = zip(input_ids, attention_mask.bool(), strict=True)
        states = _states(stored, [ids[mask].tolist() for ids, mask in masks])
        states_BTD = pad_sequence(states, batch_first=True).to(input_ids.device)
        with blocks.given(self._frozen, states_BTD):
            return forward(input_ids=input_ids, attention_mask=attention_mask, **others)


def _read(tuned: TunedModel, examples: Sequence[Example]) -> Iterable[Sequence[int]]:
    """Yield the token ids of all that a run reads of examples: texts, or windows of passages."""
    if tuned.recipe.kind.has_labels:
        return (ids for _, ids in head_rows(tuned, texts(examples), warns=False))
    asked = span_windows(tuned, questions(examples))
    return (window.input_ids for _, windows in asked for window in windows)


def _states(stored: Stored, read: Iterable[Sequence[int]]) -> list[Tensor]:
    places = stored.places(sums_of([{"input_ids": ids} for ids in read]))
    return [stored[int(place)] for place in places]
