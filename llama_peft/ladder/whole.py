"""Fine-tunes a model whole, on the same examples: the base itself, to know what LoRA leaves behind, or
an encoder, because a small one often does what a decoder does.

It is what the library's own scripts do: ...ForSequenceClassification, the plain Trainer, all weights.
The result is an ordinary checkpoint, which any tool loads.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_peft import data
from llama_peft.data import TextExample
from llama_peft.errors import Stopped, UserError
from llama_peft.model import backbone, room
from llama_peft.model.fingerprint import base_fingerprint
from llama_peft.model.hub import read_config
from llama_peft.model.quantize import packed_form
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.run_folder.ladder.whole import MODEL_FOLDER, WholeRecord, read_whole, write_whole
from llama_peft.run_folder.layout import CHECKPOINTS
from llama_peft.system import files
from llama_peft.system.disk import free_disk
from llama_peft.system.files import sha256_of, sum_of
from llama_peft.system.lock import only_process
from llama_peft.system.memory import available, is_out_of_memory, peak_memory
from llama_peft.system.progress import Phase
from llama_peft.training.callbacks import SealCheckpoints, StopOnSignal, show_progress
from llama_peft.training.checkpoints import Origin, newest_sealed, read_origin, read_spent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

log = logging.getLogger(__name__)

_RATE, _BATCH, _EPOCHS, _STEPS = 5e-5, 16, 3.0, 300
"""Devlin et al. 2019 (arXiv 1810.04805) take 2e-5 to 5e-5 and 2 to 4 passes; Mosbach et al. 2021 (arXiv
2006.04884) show that small data need more steps than these passes have."""
_PART = 0.1
"""The share of all steps between two validations."""
_BYTES = 16
"""Of each weight: itself, its gradient and the two averages of AdamW, in float32."""
_ON_DISK = 28
"""Of each weight: two checkpoints with the averages of AdamW, and the result."""
_LONGEST = 512
"""Tokens of a text; later ones are cut."""


def train(
    recipe: Recipe, given: Mapping[str, data.Rows] | None = None, fresh: bool = False
) -> Path:
    """Fine-tune all weights of the model that a recipe names, and return the folder of its checkpoint.

    Only `dataset`, `train.seed` and `train.use_cpu` of the recipe count. An interrupted training
    continues from its newest whole checkpoint; a finished one is not repeated. Raises UserError on
    bad input.
    """
    folder = Path(recipe.run_folder)
    with only_process(folder, "training"):
        dataset = data.load(recipe, given)
        origin = Origin(base_fingerprint(recipe), _recipe_sum(recipe), data.content_sum(dataset))
        done = None if fresh else read_whole(folder)
        if done is not None and done.origin == list(origin):
            return folder / MODEL_FOLDER
        _forget(folder, origin, fresh)
        _fit(recipe, dataset, folder, origin)
    return folder / MODEL_FOLDER


def _recipe_sum(recipe: Recipe) -> str:
    """Return a sum of what the training depends on, beside base and data."""
    own = recipe.train.model_copy(update={"output_dir": None})
    return sha256_of(dump_recipe(recipe.model_copy(update={"train": own})))


def _forget(folder: Path, origin: Origin, fresh: bool) -> None:
    """Remove the checkpoints of another training; with `fresh`, all."""
    newest = newest_sealed(folder / CHECKPOINTS)
    if fresh or (newest is not None and read_origin(newest) != origin):
        files.remove_tree(folder, CHECKPOINTS)
    files.remove_tree(folder, MODEL_FOLDER)


def _fit(recipe: Recipe, dataset: data.Dataset, folder: Path, origin: Origin) -> None:
    started, earlier = time.monotonic(), read_spent(newest_sealed(folder / CHECKPOINTS))
    _check_base(recipe, folder)
    tokenizer = backbone.load_tokenizer(recipe.model)
    stop = StopOnSignal()
    resumed = newest_sealed(folder / CHECKPOINTS)
    try:
        trainer = _trainer(recipe, dataset, tokenizer, folder)
        trainer.add_callback(SealCheckpoints(1, started, earlier, origin))
        trainer.add_callback(stop)
        with Phase("training", "step") as phase:
            show_progress(trainer, phase)
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    except Exception as error:  # each library has a class of its own for it
        if is_out_of_memory(error):
            name = recipe.model.model_name_or_path
            raise UserError(f"{name}: the memory is too small to train all weights") from error
        raise
    finally:
        stop.restore()
    if stop.received is not None and trainer.state.global_step < trainer.state.max_steps:
        raise Stopped(stop.received)
    partial = f"{MODEL_FOLDER}.partial"
    files.remove_tree(folder, partial)
    trainer.model.save_pretrained(folder / partial)
    tokenizer.save_pretrained(folder / partial)
    files.rename(folder, partial, MODEL_FOLDER)
    held = sorted(path for path in (folder / MODEL_FOLDER).iterdir() if path.is_file())
    record = WholeRecord(
        origin=list(origin),
        files={path.name: sum_of(folder / MODEL_FOLDER, path.name) for path in held},
        bytes=sum(path.stat().st_size for path in held),
        examples=len(dataset.parts["train"]),
        steps=trainer.state.global_step,
        wall_seconds=time.monotonic() - started + earlier.seconds,
        peak_memory_bytes=max(peak_memory(), earlier.peak_memory_bytes),
    )
    write_whole(folder, record)
    files.remove_tree(folder, CHECKPOINTS)
    log.info("trained in %.0f s; the model is %s", record.wall_seconds, folder / MODEL_FOLDER)


def _trainer(
    recipe: Recipe, dataset: data.Dataset, tokenizer: "PreTrainedTokenizerBase", folder: Path
) -> "Trainer":
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    train, validation = (
        _encoded(recipe, dataset, dataset.parts.get(part, []), tokenizer)
        for part in data.TRAINED_ON
    )
    place = backbone.place_of(recipe)
    epochs = max(_EPOCHS, math.ceil(_STEPS * _BATCH / len(train)))
    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        learning_rate=_RATE,
        per_device_train_batch_size=_BATCH,
        per_device_eval_batch_size=recipe.train.per_device_eval_batch_size,
        num_train_epochs=epochs,
        warmup_steps=0.1,
        weight_decay=0.01,
        seed=recipe.train.seed,
        use_cpu=place.type == "cpu",
        bf16=place.type != "cpu" and backbone.fast_dtype(place).itemsize == 2,
        eval_strategy="steps" if validation else "no",
        save_strategy="steps",
        eval_steps=_PART,
        save_steps=_PART,
        logging_steps=_PART,
        load_best_model_at_end=bool(validation),
        report_to=[],
        disable_tqdm=True,
    )
    return Trainer(
        model=_model(recipe, dataset, tokenizer),
        args=arguments,
        train_dataset=train,
        eval_dataset=validation or None,
        data_collator=DataCollatorWithPadding(tokenizer),
    )


def _model(
    recipe: Recipe, dataset: data.Dataset, tokenizer: "PreTrainedTokenizerBase"
) -> "PreTrainedModel":
    """Return the model with a new head. Every other weight must be in its checkpoint."""
    import torch
    from transformers import AutoModelForSequenceClassification, set_seed

    name, kind = backbone.source(recipe.model), recipe.kind
    outputs = kind.outputs(len(dataset.labels))
    named = dict(enumerate(dataset.labels)) or {0: "LABEL_0"}
    set_seed(recipe.train.seed)  # the head's first weights are drawn while loading
    model, info = backbone.from_pretrained(
        AutoModelForSequenceClassification,
        name,
        revision=recipe.model.revision,
        dtype=torch.float32,
        num_labels=outputs,
        id2label=named,
        label2id={label: number for number, label in named.items()},
        problem_type=kind.problem_type or "single_label_classification",
    )
    inner = f"{model.base_model_prefix}."
    missing = [
        key for key in info["missing_keys"] if key.startswith(inner) and ".pooler." not in key
    ]
    backbone.check_loading(name, {**info, "missing_keys": missing, "unexpected_keys": []}, None)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(backbone.place_of(recipe))


def _check_base(recipe: Recipe, folder: Path) -> None:
    """Raise UserError for a base whose weights are packed, or too many, before they are loaded."""
    name = recipe.model.model_name_or_path
    if form := packed_form(read_config(name, recipe.model.revision)):
        raise UserError(f"{name}: its weights are packed ({form}), so they cannot all be trained")
    weights = room.base_weights(recipe)
    if weights is None:  # those of encoders are not counted, and few
        return
    for what, each, free in (
        ("memory", _BYTES, room.free_memory(recipe)),
        ("memory to load it", 4, available()),
        ("disk", _ON_DISK, free_disk(folder)),
    ):
        if weights * each > free:
            raise UserError(
                f"{name}: to train all of its {weights:,} weights takes at least "
                f"{room.gb(weights * each)} of {what}, but {room.gb(free)} are free"
            )


def _encoded(
    recipe: Recipe,
    dataset: data.Dataset,
    examples: Sequence[data.Example],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[dict[str, object]]:
    """Return rows of token ids with what is learned. A text of two fields is read as a pair."""
    limit = min(int(tokenizer.model_max_length), _LONGEST)
    rows = []
    for example in examples:
        assert isinstance(example, TextExample), "questions are not trained whole"
        fields = list(example.values.values())
        text = fields if len(fields) == 2 else [example.text]
        row = tokenizer(*text, truncation=True, max_length=limit, split_special_tokens=True)
        rows.append({**row, "labels": _target(example, recipe, len(dataset.labels))})
    return rows


def _target(example: TextExample, recipe: Recipe, labels: int) -> int | float | list[float]:
    if recipe.kind.side == "label_sets":
        own = example.label if isinstance(example.label, tuple) else (example.label,)
        return [float(number in own) for number in range(labels)]
    assert not isinstance(example.label, tuple)
    return example.label
