"""What tuning costs elsewhere: how well the base with the adapter still writes ordinary text, and does
another task that it was not trained on.

Both are measured with the language model's own head, once with the adapter and once without, on a
text of this package and on the embedded task of the other kind.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llama_peft import data
from llama_peft.data import Example, QuestionExample
from llama_peft.errors import UserError
from llama_peft.inference.engine import Loaded
from llama_peft.model import backbone
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.run_folder.layout import LADDER
from llama_peft.run_folder.record import Stored
from llama_peft.run_folder.results import ModelConfig
from llama_peft.run_folder.run import Run
from llama_peft.run_folder.weights import attach_below_head
from llama_peft.system.files import read_summed, write_summed
from llama_peft.system.numbers import Finite
from llama_peft.system.progress import Phase
from llama_peft.tasks import LANGUAGE_MODELLING
from llama_peft.tokens.prompts import PromptEncoder

from ..metrics.columns import FloatArray
from ..metrics.evidence import Evidence, scores_of
from ..metrics.intervals import paired
from ..metrics.measure import Said, evidence_of
from ..predictors.lm_head import open_lm_head
from ..predictors.predictor import Predictor
from ..scoring import gold

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORGETTING = "forgetting.json"
_TEXT = Path(__file__).with_name("plain_text.txt")
_EXAMPLES = 150
"""Of the other task: a difference of ten points is seen."""
_WORSE = 0.02
"""A rise of the mean log-loss below this is not worth a line: perplexity times 1.02."""
_DRAWS = 2000


class Forgetting(Stored):
    """What the untouched base and the tuned one do elsewhere."""

    adapter_sha256: str
    perplexity: list[Finite]
    """Of a token of the text, before and after."""
    rise_ci95: list[Finite]
    """The interval of the rise of the mean log-loss of a token, over the paragraphs."""
    task: str
    """The embedded task."""
    metric: str
    score: list[Finite]
    """Before and after."""
    p_value: Finite

    @property
    def writes_worse(self) -> bool:
        """Whether ordinary text has become less likely, and not by chance."""
        return self.rise_ci95[0] > 0 and math.log(self.perplexity[1] / self.perplexity[0]) > _WORSE

    @property
    def answers_worse(self) -> bool:
        """Whether the other task is done worse, and not by chance."""
        return self.score[1] < self.score[0] and self.p_value < 0.05


def measure(run: Run) -> Forgetting:
    """Measure what a run's adapter costs elsewhere, and record it in the run's ladder.

    A finished measurement of the same weights is not repeated. Raises UserError if the run has no
    adapter.
    """
    if run.recipe.lora is None:
        raise UserError(f"{run.folder}: this run has no adapter, so its base is as it was")
    known = read_forgetting(run.folder)
    if known is not None and known.adapter_sha256 == run.record.weights_sha256:
        return known
    base = backbone.load(run.recipe, LANGUAGE_MODELLING)
    adapted = attach_below_head(base, run)
    other = _other_task(run.recipe)
    dataset = data.load(other)
    examples = dataset.parts["test"][:_EXAMPLES]
    other = _short(other, examples)
    golds = {example.id: gold(example, dataset.labels) for example in examples}
    losses, evidences = [], []
    for is_tuned in (False, True):
        with nullcontext() if is_tuned else adapted.disable_adapter():
            losses.append(list(_losses(base, run.recipe)))
            config = ModelConfig(model_kind="", recipe=other.name)
            engine = Loaded.of(base, other)
            predictor = open_lm_head(engine, other, dataset.labels, "zero-shot", config, None)
            said = dict(_said(predictor, examples, "after" if is_tuned else "before"))
            evidences.append(evidence_of(other.kind.side, said, golds, dataset.labels))
    found = _compared(np.array(losses), evidences, other, run.record.weights_sha256)
    write_summed(run.folder / LADDER, FORGETTING, found.model_dump(mode="json"))
    return found


def _said(
    predictor: Predictor, examples: Sequence[Example], when: str
) -> Iterator[tuple[str, Said]]:
    with Phase(f"another task, {when} tuning", "example", len(examples)) as phase:
        for portion in predictor.predict(examples, 32):
            for one in portion:
                said = one.prediction
                yield one.id, list(said) if isinstance(said, tuple) else said
            phase.advance(len(portion))


def read_forgetting(run: Path) -> Forgetting | None:
    """Return what was measured of a run folder; None if nothing was, or if the record is damaged."""
    try:
        return Forgetting.model_validate(read_summed(run / LADDER, FORGETTING))
    except (OSError, ValueError, UserError):
        return None


def _other_task(recipe: Recipe) -> Recipe:
    """Return the embedded task of the other kind, on the run's base."""
    name = "tiny-squad" if recipe.kind.has_labels else "tiny-sst2"
    packaged = load_recipe(name)
    return packaged.model_copy(
        update={"model": recipe.model, "quantization": recipe.quantization, "lora": None}
    )


def _short(other: Recipe, examples: Sequence[Example]) -> Recipe:
    """Return the recipe that writes no more than the longest right answer takes.

    A base that answers in sentences would write to its limit, which takes most of the time.
    """
    asked = [example for example in examples if isinstance(example, QuestionExample)]
    if not asked:
        return other
    encoder = PromptEncoder(backbone.load_tokenizer(other.model), other.prompt)
    longest = max(len(encoded.completion) for encoded in encoder.encode(asked))
    return other.model_copy(
        update={"eval": other.eval.model_copy(update={"max_new_tokens": longest})}
    )


def _losses(model: "PreTrainedModel", recipe: Recipe) -> Iterator[tuple[float, int]]:
    """Yield the log-loss of each paragraph of the text, in nats, and the tokens that it is a sum over."""
    import torch

    tokenizer = backbone.load_tokenizer(recipe.model)
    for paragraph in _TEXT.read_text("utf-8").strip().split("\n\n"):
        ids = tokenizer(paragraph, return_tensors="pt")["input_ids"].to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits.float()[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        yield float(loss), ids.shape[1] - 1


def _compared(losses: FloatArray, evidences: list[Evidence], other: Recipe, sha: str) -> Forgetting:
    """Compare both models. losses: of shape (2 models, P paragraphs, loss and tokens)."""
    totals = losses.sum(axis=1)
    means = totals[:, 0] / totals[:, 1]
    draws = np.random.default_rng(0).integers(losses.shape[1], size=(_DRAWS, losses.shape[1]))
    drawn = losses[:, draws].sum(axis=2)
    rises = drawn[1, :, 0] / drawn[1, :, 1] - drawn[0, :, 0] / drawn[0, :, 1]
    metric = "accuracy" if other.kind.has_labels else "f1"
    change = paired(evidences[0], evidences[1])[metric]
    before, after = (scores_of(one)[metric] for one in evidences)
    return Forgetting(
        adapter_sha256=sha,
        perplexity=[math.exp(mean) for mean in means],
        rise_ci95=[float(bound) for bound in np.quantile(rises, [0.025, 0.975])],
        task=other.name,
        metric=metric,
        score=[before, after],
        p_value=change.p_value,
    )
