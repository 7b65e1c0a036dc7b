"""Classifiers and question answering models that others made, of any architecture.

A whole checkpoint reads its text as its own tokenizer does. It is loaded unquantised, because its
known scores are those of the unquantised model. An adapter is put on the base that it names, as the
recipe quantises it. A checkpoint that leaves any weight random is refused.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llama_peft.data import Example, QuestionExample, TextExample
from llama_peft.errors import UserError
from llama_peft.inference.predict import (
    Prediction,
    ScoredWindow,
    best_answers,
    classify_rows,
    questions,
    texts,
    warn_of_cuts,
)
from llama_peft.model import backbone
from llama_peft.model.fingerprint import base_fingerprint
from llama_peft.recipe import Eval, Recipe
from llama_peft.run_folder.results import ModelConfig
from llama_peft.run_folder.weights import attach_adapter
from llama_peft.tasks import Side
from llama_peft.tokens.generate import positions
from llama_peft.tokens.prompts import trim
from llama_peft.tokens.spans import Window

from .kinds import KIND_NAMES
from .predictor import Predictor
from .recognise import Adapter

log = logging.getLogger(__name__)

_WINDOW = 512
"""The longest window of a reader in tokens, as in the scripts that readers are trained with."""


def open_classifier(
    recipe: Recipe, labels: tuple[str, ...], adapter: Adapter | None = None
) -> Predictor:
    """Load a ...ForSequenceClassification, or an adapter on one.

    Its labels are matched to the task's by name, or by number if they have no names.
    """
    tokenizer = backbone.load_tokenizer(recipe.model)
    model = _load(AutoModelForSequenceClassification, recipe, tokenizer.pad_token_id, adapter)
    opened = _Classifier(
        model=model,
        tokenizer=tokenizer,
        labels=labels,
        order=_label_order(model.config, labels, recipe),
        limit=_max_length(model, tokenizer),
        side=recipe.kind.side,
    )
    name = KIND_NAMES["classifier"] if adapter is None else "adapter, sequence classification"
    return Predictor(
        config=_config(name, recipe, model, adapter),
        labels=labels,
        predict=opened.predict,
        prompt=opened.prompt,
        fits_threshold=recipe.kind.fits_threshold,
        fits_temperature=recipe.kind.fits_temperature,
    )


def open_reader(recipe: Recipe, adapter: Adapter | None = None) -> Predictor:
    """Load a ...ForQuestionAnswering, or an adapter on one.

    It reads the question and the passage as a pair. "No answer" is at the first token, or at [CLS]
    if its tokenizer has this token.
    """
    tokenizer = backbone.load_tokenizer(recipe.model)
    model = _load(AutoModelForQuestionAnswering, recipe, tokenizer.pad_token_id, adapter)
    opened = _Reader(
        model=model,
        tokenizer=tokenizer,
        settings=recipe.eval,
        limit=min(_max_length(model, tokenizer), _WINDOW),
        stride=recipe.train.doc_stride,
    )
    name = KIND_NAMES["reader"] if adapter is None else "adapter, question answering"
    return Predictor(
        config=_config(name, recipe, model, adapter),
        labels=(),
        predict=opened.predict,
        prompt=opened.prompt,
        length=lambda answer: len(tokenizer(answer, add_special_tokens=False)["input_ids"]),
        fits_threshold=True,
    )


@dataclass(frozen=True, kw_only=True)
class _Classifier:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    order: list[int]
    """For each label of the task, its number in the checkpoint."""
    limit: int
    side: Side

    def predict(self, examples: Sequence[Example], batch_size: int) -> Iterator[list[Prediction]]:
        encoded = [(example.id, *self.encode(example)) for example in texts(examples)]
        rows = [(id_, ids) for id_, ids, _ in encoded]
        cut = sum(not whole for *_, whole in encoded)
        warn_of_cuts(cut, len(rows), "texts", f"the model's {self.limit} tokens")
        pad_id = self.tokenizer.pad_token_id
        return classify_rows(
            self.model, rows, self.labels, self.order, pad_id, batch_size, self.side
        )

    def encode(self, example: TextExample) -> tuple[list[int], bool]:
        """Return the ids, and whether they hold the whole text. A text of two fields is a pair."""
        fields = list(example.values.values())
        text = fields if len(fields) == 2 else [example.text]
        ids = self.tokenizer(*text, split_special_tokens=True, verbose=False)["input_ids"]
        if len(ids) <= self.limit:
            return ids, True
        cut = self.tokenizer(
            *text, truncation=True, max_length=self.limit, split_special_tokens=True
        )
        return cut["input_ids"], False

    def prompt(self, example: Example) -> str:
        (text,) = texts([example])
        return str(self.tokenizer.decode(self.encode(text)[0]))


@dataclass(frozen=True, kw_only=True)
class _Reader:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: Eval
    limit: int
    """The most tokens of a window."""
    stride: int

    def predict(self, examples: Sequence[Example], batch_size: int) -> Iterator[list[Prediction]]:
        rows = [(example, self.windows(example)) for example in questions(examples)]
        return best_answers(rows, self.score, self.settings, batch_size)

    def windows(self, example: QuestionExample) -> list["Pair"]:
        return windows(self.tokenizer, self.limit, self.stride, example)

    def score(self, pairs: Sequence["Pair"]) -> Iterator[ScoredWindow]:
        features = self.tokenizer.pad(
            [pair.features for pair in pairs], padding_side="right", return_tensors="pt"
        )
        with torch.inference_mode():
            output = self.model(**features.to(self.model.device))
        starts, ends = output.start_logits.tolist(), output.end_logits.tolist()
        return map(Pair.scored, pairs, starts, ends)

    def prompt(self, example: Example) -> str:
        (question,) = questions([example])
        return str(self.tokenizer.decode(self.windows(question)[0].input_ids))


class Pair(NamedTuple):
    """A question with a window of its passage: as the tokenizer makes it, and as `spans` reads it.

    `spans` has "no answer" at the last position of a window. Here it is at `null`, so a copy of
    this position is added at the end.
    """

    features: Mapping[str, Sequence[int]]
    window: Window
    null: int

    @property
    def input_ids(self) -> tuple[int, ...]:
        return self.window.input_ids[:-1]

    def scored(self, starts: list[float], ends: list[float]) -> ScoredWindow:
        """Return the window with its scores."""
        return ScoredWindow(self.window, self._own(starts), self._own(ends))

    def _own(self, row: list[float]) -> list[float]:
        """Return a row of scores without padding, with the score of "no answer" at the end."""
        return [*row[: len(self.input_ids)], row[self.null]]


def windows(
    tokenizer: PreTrainedTokenizerBase, limit: int, stride: int, example: QuestionExample
) -> list[Pair]:
    """Return windows of at most `limit` tokens that cover the passage.

    A question fills at most half of a window, so that there is room for the stride.
    """
    question = example.question.strip()
    pieces = tokenizer(
        question, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
    )["offset_mapping"]
    if len(pieces) > limit // 2:
        question = question[: pieces[limit // 2 - 1][1]]
    encoded = tokenizer(
        question,
        example.context,
        truncation="only_second",
        max_length=limit,
        stride=min(stride, limit // 4),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        split_special_tokens=True,
    )
    found = []
    for i, ids in enumerate(encoded["input_ids"]):
        own = [at for at, part in enumerate(encoded.sequence_ids(i)) if part == 1]
        offsets = [trim(example.context, *encoded["offset_mapping"][i][at]) for at in own]
        null = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        names = [name for name in tokenizer.model_input_names if name in encoded]
        window = Window(example.id, (*ids, ids[null]), own[0] if own else 0, tuple(offsets))
        found.append(Pair({name: encoded[name][i] for name in names}, window, null))
    return found


def _label_order(config: PreTrainedConfig, labels: tuple[str, ...], recipe: Recipe) -> list[int]:
    """Return for each label of the task its number in the checkpoint; for a number, its output."""
    name = recipe.model.model_name_or_path
    if recipe.kind.side == "numbers":
        return [0]
    theirs = {str(text).casefold(): int(number) for number, text in config.id2label.items()}
    if set(theirs) == {label.casefold() for label in labels}:
        return [theirs[label.casefold()] for label in labels]
    unnamed = all(text == f"label_{number}" for text, number in theirs.items())
    if unnamed and len(theirs) == len(labels):
        pairs = ", ".join(f"{number} is {label}" for number, label in enumerate(labels))
        log.warning(
            "%s: its labels have no names (LABEL_0, ...), so they are taken by their numbers: %s; "
            "if this is wrong, set dataset.labels in the checkpoint's order",
            *(name, pairs),
        )
        return list(range(len(labels)))
    raise UserError(
        f"{name}: its labels are {', '.join(theirs)}, but the task's labels are "
        f"{', '.join(labels)}; set dataset.labels to its names, in the order of the data's numbers"
    )


def _load(auto: type, recipe: Recipe, pad_id: int, adapter: Adapter | None) -> PreTrainedModel:
    """Load a model. Every weight must be there; weights without a place (a pooler) are not used."""
    place, dtype = backbone.place_of(recipe), getattr(torch, backbone.dtype_name(recipe))
    name = backbone.source(recipe.model)
    extra: dict[str, object] = {}
    if adapter is not None and adapter.kind.has_labels:
        # The head of an encoder has no fixed name that 4-bit could skip.
        extra["num_labels"] = adapter.num_labels
    elif adapter is not None:
        # A causal checkpoint calls its backbone `model`, and the library's class `transformer`.
        extra["key_mapping"] = {r"^model\.": "transformer."}
        extra["config"] = config = backbone.load_config(recipe.model)
        packing = backbone.quantization_config(recipe.quantization, dtype, config)
        extra["quantization_config"] = packing
    model, info = backbone.from_pretrained(
        auto,
        name,
        revision=recipe.model.revision,
        dtype=dtype,
        device_map={"": place},
        **extra,
    )
    brought = adapter.whole if adapter is not None else frozenset()
    missing = [key for key in info["missing_keys"] if key not in brought]
    backbone.check_loading(name, {**info, "missing_keys": missing, "unexpected_keys": []}, None)
    model.config.pad_token_id = pad_id
    if adapter is not None:
        backbone.mend_cpu_4bit(model)
        model = attach_adapter(model, adapter.folder)
    return model.eval()


def _max_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens that the model reads: its tokenizer's limit, or its positions.

    RoBERTa's positions start after that of its padding. The recipe's train.max_length is not used,
    because it is for the models that the recipe trains.
    """
    limit = positions(model) or tokenizer.model_max_length
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and module.padding_idx is not None:
            limit -= module.padding_idx + 1
    return int(min(tokenizer.model_max_length, limit))


def _config(
    kind: str, recipe: Recipe, model: PreTrainedModel, adapter: Adapter | None
) -> ModelConfig:
    total = model.num_parameters()
    return ModelConfig(
        model_kind=kind,
        recipe=recipe.name,
        model=recipe.model.model_name_or_path,
        adapter=None if adapter is None else str(adapter.folder),
        parameters={"total": total, "trainable": 0, "base": total},
        base_fingerprint=base_fingerprint(recipe),
        adapter_sha256=None if adapter is None else adapter.sha256,
    )
