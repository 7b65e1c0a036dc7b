"""A head alone predicts from states of its texts that are computed once, as it was trained on them.

Heads of several seeds and sizes on one base read the same states. Which texts are computed together
depends on all of them, and not on what an interrupted evaluation has left, so the predictions keep
their bits. The plain way is `head.features: none`.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from llama_peft.data import Example
from llama_peft.errors import UserError
from llama_peft.features.cache import compute, sums_of
from llama_peft.features.shards import Stored
from llama_peft.features.states import Key, Row, tokens_of
from llama_peft.inference.predict import Prediction, head_rows, of_logits, predict, texts
from llama_peft.run_folder.weights import TunedModel
from llama_peft.system.sequences.spool import Spool

_TOGETHER = 2048
"""Texts whose tokens are in memory at once."""
log = logging.getLogger(__name__)


class HeadOnStates:
    """The head of a run without LoRA, whose states are kept in a folder beside the runs."""

    def __init__(self, tuned: TunedModel, cache: Path) -> None:
        self._tuned, self._cache = tuned, cache
        self._stored: Stored | None = None

    def prepare(self, examples: Sequence[Example]) -> float:
        """Compute the states of texts, or find them. Returns the seconds that one took, whenever it
        was computed; 0 if the folder takes none, so that each text is computed as it is predicted.
        """
        tuned, model = self._tuned, self._tuned.model
        rows = Spool[Row]()
        for first in range(0, len(examples), _TOGETHER):
            some = texts(examples[first : first + _TOGETHER])
            rows.extend({"input_ids": ids} for _, ids in head_rows(tuned, some))
        layers = model.config.get_text_config().num_hidden_layers
        key = Key(layers, tuned.recipe.head.pooling)
        try:
            folder = compute(tuned.recipe, model, "evaluation", rows, self._cache, (key,))
        except (OSError, UserError) as error:
            log.info("no states are kept: %s", error)
            return 0.0
        self._stored = Stored(folder, key.name)
        tokens = sum(len(tokens_of(row)) for row in rows)
        return self._stored.seconds_a_token * tokens / len(rows)

    def predict(self, examples: Sequence[Example], batch_size: int) -> Iterator[list[Prediction]]:
        """Yield the predictions of texts, all of which were prepared, or none."""
        if self._stored is None:
            yield from predict(self._tuned, examples, batch_size)
            return
        tuned, stored = self._tuned, self._stored
        rows = head_rows(tuned, texts(examples))
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            places = stored.places(sums_of([{"input_ids": ids} for _, ids in batch]))
            with torch.inference_mode():
                states_ND = torch.stack([stored[int(place)] for place in places])
                logits_NC = tuned.model.score(states_ND.to(tuned.model.device))
            side = tuned.recipe.kind.side
            yield of_logits([id_ for id_, _ in batch], logits_NC, tuned.labels, side)
