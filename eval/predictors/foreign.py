"""Checkpoints that somebody else made: recognised by their files, and opened as transformers and PEFT wrote them.

A whole classifier or question answering model of any architecture reads its text in its own tokenizer's way and is loaded
unquantised, since that is the model whose number is known; an adapter goes onto the base that it names, as the recipe
quantises it. A checkpoint that leaves any weight random is refused: a random head has no score.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification
from transformers.utils.hub import cached_file

from llama_peft.data import Example, QuestionExample, TextExample
from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.model.fingerprint import base_fingerprint
from llama_peft.recipe import Recipe
from llama_peft.run_folder.predict import Prediction, positions, warn_of_cuts
from llama_peft.run_folder.weights import attach_adapter
from llama_peft.system.files import sha256
from llama_peft.tasks import TASKS, Task
from llama_peft.tokens import spans
from llama_peft.tokens.batches import batches, grouped, pad
from llama_peft.tokens.prompts import trim
from llama_peft.tokens.spans import Window

from ..kinds import KINDS, Kind

log = logging.getLogger(__name__)

NAMES: dict[Kind, str] = {
    "run": "run",
    "adapter": "PEFT adapter",
    "causal": "causal language model",
    "classifier": "sequence classification checkpoint",
    "reader": "question answering checkpoint",
}
_SUFFIXES: dict[str, Kind] = {
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",  # GPT-2 and others of its time
    "ForConditionalGeneration": "causal",
    "ForSequenceClassification": "classifier",
    "ForQuestionAnswering": "reader",
}
_WINDOW = 512
"""The most tokens of a reader's window, as in the scripts that they were trained by, however long its positions reach."""
_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
"""The last weight of a classification head: a causal model's, most encoders', RoBERTa's."""
_ADAPTER, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Opened(NamedTuple):
    """A checkpoint ready to answer; the fields are those of `predictors.Predictor`."""

    kind: str
    predict: Callable[[Sequence[Example], int], Iterator[Prediction]]
    prompt: Callable[[Example], str]
    facts: dict[str, Any]
    abstains: bool


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What a PEFT adapter's files say of it."""

    folder: Path
    base: str
    revision: str
    """The base's, where the adapter pins it."""
    task: Task
    num_labels: int
    whole: frozenset[str]
    """Names of the weights that it brings whole: its head's."""
    is_librarys: bool
    """Made on transformers' own class for the task, an encoder's or one whose backbone is not called `model`."""
    sha256: str


def recognise(model: str, revision: str) -> Kind:
    """What a model is, by its files. Raises UserError, naming --kind, where they do not tell."""
    adapter, config = _json(model, _ADAPTER, revision), _json(model, "config.json", revision)
    whole = {
        kind
        for suffix, kind in _SUFFIXES.items()
        for a in _architectures(config)
        if a.endswith(suffix)
    }
    found: set[Kind] = whole | ({"adapter"} if adapter is not None else set())
    if adapter is not None and not whole:
        return "adapter"
    if len(found) == 1:
        return found.pop()
    what = (
        f"both {' and '.join(sorted(NAMES[k] for k in found))}"
        if found
        else "nothing that is known"
    )
    raise UserError(f"{model}: its files say {what}; say what it is with --kind {'|'.join(KINDS)}")


def _architectures(config: dict[str, Any] | None) -> list[str]:
    return [str(name) for name in (config or {}).get("architectures") or ()]


def _json(model: str, name: str, revision: str) -> dict[str, Any] | None:
    """A JSON file of a model's, None where there is none."""
    path = _file(model, name, revision)
    if path is None:
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return value if isinstance(value, dict) else None


def _file(model: str, name: str, revision: str) -> Path | None:
    model = backbone.source_of(model)
    try:
        path = cached_file(
            model, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: {str(error).strip().splitlines()[0]}") from None
    return None if path is None else Path(path)


def fetch(model: str, revision: str) -> Path:
    """The folder of an adapter; one on the Hub is downloaded, its two files and nothing else."""
    paths = [_file(model, name, revision) for name in (_ADAPTER, _WEIGHTS)]
    if None in paths:
        missing = (_ADAPTER, _WEIGHTS)[paths.index(None)]
        raise UserError(f"{model}: no {missing}; an adapter in another format is not loaded")
    return Path(str(paths[0])).parent


def read_adapter(folder: Path) -> Adapter:
    """Raises UserError where the adapter does not say its base or its task."""
    config = json.loads((folder / _ADAPTER).read_text("utf-8"))
    tasks = {kind.peft_task_type: kind.name for kind in TASKS.values()}
    base, task = config.get("base_model_name_or_path"), tasks.get(config.get("task_type"))
    if not base or task is None:
        raise UserError(
            f"{folder / _ADAPTER}: base_model_name_or_path {base!r}, task_type {config.get('task_type')!r}: "
            f"needs a base and one of {', '.join(tasks)}"
        )
    try:
        with safe_open(folder / _WEIGHTS, "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / _WEIGHTS}: cannot be read: {error}") from None
    names = {key.removeprefix("base_model.model."): shape for key, shape in shapes.items()}
    heads = [shape[0] for name, shape in names.items() if name in _HEADS]
    return Adapter(
        folder=folder,
        base=base,
        revision=config.get("revision") or "main",
        task=task,
        num_labels=heads[0] if heads else 0,
        whole=frozenset(name for name in names if ".lora_" not in name),
        is_librarys=any(".lora_" in name and not name.startswith("model.") for name in names),
        sha256=sha256(folder / _WEIGHTS),
    )


def open_classifier(
    recipe: Recipe, labels: tuple[str, ...], adapter: Adapter | None = None
) -> Opened:
    """A ...ForSequenceClassification of any architecture, or an adapter on one. Its labels are matched to the task's by
    name, or by number where it has no names of its own.
    """
    tokenizer = backbone.load_tokenizer(recipe.model, for_training=False)
    model = _load(AutoModelForSequenceClassification, recipe, tokenizer.pad_token_id, adapter)
    order = _label_order(model.config, labels, recipe.model.model_name_or_path)
    limit = _max_length(model, tokenizer)

    def encode(text: str) -> tuple[list[int], bool]:
        """The ids, and whether they are of the whole text."""
        ids = tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]
        if len(ids) <= limit:
            return ids, True
        cut = tokenizer(text, truncation=True, max_length=limit, split_special_tokens=True)
        return cut["input_ids"], False

    def predict(examples: Sequence[Example], batch_size: int) -> Iterator[Prediction]:
        encoded = [(e.id, *encode(e.text)) for e in examples if isinstance(e, TextExample)]
        rows = [(id_, ids) for id_, ids, _ in encoded]
        cut = sum(not whole for *_, whole in encoded)
        warn_of_cuts(cut, len(rows), "texts", f"the model's {limit} tokens")
        for batch in batches(rows, batch_size):
            input_ids, mask = pad([ids for _, ids in batch], tokenizer.pad_token_id)
            with torch.inference_mode():
                logits = model(
                    input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device)
                ).logits
            for (id_, _), row in zip(
                batch, logits[:, order].float().softmax(-1).tolist(), strict=True
            ):
                best = max(range(len(labels)), key=row.__getitem__)
                yield Prediction(
                    id=id_,
                    prediction=labels[best],
                    probabilities=tuple(row),
                    more=id_ != batch[-1][0],
                )

    def prompt(example: Example) -> str:
        return str(tokenizer.decode(encode(getattr(example, "text", ""))[0]))

    kind = NAMES["classifier"] if adapter is None else "adapter, sequence classification"
    return Opened(kind, predict, prompt, _facts(recipe, model, adapter), abstains=False)


def _label_order(config: Any, labels: tuple[str, ...], name: str) -> list[int]:
    """For each label of the task, its number in the checkpoint."""
    theirs = {str(text).casefold(): int(number) for number, text in config.id2label.items()}
    if set(theirs) == {label.casefold() for label in labels}:
        return [theirs[label.casefold()] for label in labels]
    unnamed = all(text == f"label_{number}" for text, number in theirs.items())
    if unnamed and len(theirs) == len(labels):
        pairs = ", ".join(f"{number} is {label}" for number, label in enumerate(labels))
        log.info("%s: its labels have no names and are taken by number: %s", name, pairs)
        return list(range(len(labels)))
    raise UserError(
        f"{name}: its labels are {', '.join(theirs)} and the task's {', '.join(labels)}; "
        "set dataset.labels to its names, in the order of the data's numbers"
    )


def open_reader(recipe: Recipe, adapter: Adapter | None = None) -> Opened:
    """A ...ForQuestionAnswering of any architecture, or an adapter on one: question and passage as a pair, "no answer" at
    the first token, or [CLS] where the tokenizer has one.
    """
    tokenizer = backbone.load_tokenizer(recipe.model, for_training=False)
    model = _load(AutoModelForQuestionAnswering, recipe, tokenizer.pad_token_id, adapter)
    limit = min(_max_length(model, tokenizer), _WINDOW)
    windows = partial(_windows, tokenizer, limit, recipe.train.doc_stride)

    def predict(examples: Sequence[Example], batch_size: int) -> Iterator[Prediction]:
        questions = [e for e in examples if isinstance(e, QuestionExample)]
        rows = [(e, windows(e)) for e in questions]
        rows.sort(key=lambda row: -sum(len(window.input_ids) for window in row[1]))
        for group in grouped(rows, batch_size):
            starts: list[list[float]] = []
            ends: list[list[float]] = []
            its = [window for _, each in group for window in each]
            for first in range(0, len(its), batch_size):
                part = its[first : first + batch_size]
                features = tokenizer.pad(
                    [window.features for window in part], padding_side="right", return_tensors="pt"
                )
                with torch.inference_mode():
                    output = model(**features.to(model.device))
                for window, start, end in zip(
                    part, output.start_logits.tolist(), output.end_logits.tolist(), strict=True
                ):
                    starts.append(window.scores(start))
                    ends.append(window.scores(end))
            taken = 0
            for example, each in group:
                last = taken + len(each)
                best = spans.best_span(
                    [window.window for window in each],
                    starts[taken:last],
                    ends[taken:last],
                    example.context,
                    recipe.eval.n_best_size,
                    recipe.eval.max_answer_length,
                )
                taken = last
                yield Prediction(
                    id=example.id,
                    prediction=best.text if best.no_answer_probability <= 0.5 else "",
                    no_answer_probability=best.no_answer_probability,
                    raw=best.text,
                    more=example.id != group[-1][0].id,
                )

    def prompt(example: Example) -> str:
        assert isinstance(example, QuestionExample)
        return str(tokenizer.decode(windows(example)[0].input_ids))

    kind = NAMES["reader"] if adapter is None else "adapter, question answering"
    return Opened(kind, predict, prompt, _facts(recipe, model, adapter), abstains=True)


class _Pair(NamedTuple):
    """A window as the tokenizer made it, and as `spans` reads it.

    `spans` has "no answer" at a window's last position; here it is at `null`, so a copy of that position is put behind.
    """

    features: dict[str, Any]
    window: Window
    null: int

    @property
    def input_ids(self) -> tuple[int, ...]:
        return self.window.input_ids[:-1]

    def scores(self, row: list[float]) -> list[float]:
        """A row of scores, padding cut off, with that of "no answer" behind."""
        return [*row[: len(self.input_ids)], row[self.null]]


def _windows(tokenizer: Any, limit: int, stride: int, example: QuestionExample) -> list[_Pair]:
    """Windows of at most `limit` tokens over the passage; a question keeps half of one at most, so that the stride fits."""
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
        found.append(_Pair({name: encoded[name][i] for name in names}, window, null))
    return found


def _load(auto: Any, recipe: Recipe, pad_id: int, adapter: Adapter | None = None) -> Any:
    """The model, whole: no weight may be missing; weights without a place (a pooler) are left aside."""
    place = torch.device("cpu") if recipe.train.use_cpu else backbone.device()
    dtype = getattr(torch, recipe.model.dtype) if recipe.model.dtype else backbone.fast_dtype(place)
    name = backbone.source(recipe.model)
    extra: dict[str, Any] = {}
    if adapter is not None and adapter.task == "extractive_qa":
        # A causal checkpoint's backbone is `model`, the library's class calls it `transformer`.
        extra["key_mapping"] = {r"^model\.": "transformer."}
        extra["quantization_config"] = backbone.quantization_config(recipe.quantization, dtype)
    elif adapter is not None:  # an encoder's; its head has no one name that 4-bit leaves alone
        extra["num_labels"] = adapter.num_labels
    try:
        model, info = auto.from_pretrained(
            name,
            revision=recipe.model.revision,
            dtype=dtype,
            device_map={"": place},
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **extra,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{name}: {str(error).strip().splitlines()[0]}") from error
    except RuntimeError as error:
        if "mismatched" not in str(error):  # transformers says no more than this of them
            raise
        raise UserError(
            f"{name}: the checkpoint holds weights of another shape than its config says. "
            "Use a complete safetensors checkpoint"
        ) from error
    brought = adapter.whole if adapter is not None else frozenset()
    missing = [key for key in info["missing_keys"] if key not in brought]
    backbone.check_loading(name, info | {"missing_keys": missing, "unexpected_keys": []}, None)
    model.config.pad_token_id = pad_id
    if adapter is not None:
        backbone.mend_cpu_4bit(model)
        model = attach_adapter(model, adapter.folder)
    return model.eval()


def _max_length(model: Any, tokenizer: Any) -> int:
    """The most tokens that the model was made for: its tokenizer's, or its positions (RoBERTa's start behind its padding's).

    The recipe's train.max_length is of the models that it trains.
    """
    limit = positions(model) or tokenizer.model_max_length
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and module.padding_idx is not None:
            limit -= module.padding_idx + 1
    return int(min(tokenizer.model_max_length, limit))


def _facts(recipe: Recipe, model: Any, adapter: Adapter | None) -> dict[str, Any]:
    total = model.num_parameters()
    return {
        **({} if adapter is None else {"adapter": str(adapter.folder)}),
        "model": recipe.model.model_name_or_path,
        "parameters": {"total": total, "trainable": 0, "base": total},
        "base_fingerprint": base_fingerprint(recipe),
        "adapter_sha256": None if adapter is None else adapter.sha256,
    }
