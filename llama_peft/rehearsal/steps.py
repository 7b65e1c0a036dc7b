"""The steps of a rehearsal, by the product's own loader, Trainer and decoding.

Which batches come is decided here: one of middle length, then the fullest one, whose step finds
the optimizer's states in place. Nothing is saved, and nothing is logged inside a step.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from transformers import Trainer, TrainerCallback, TrainerControl

from llama_peft import data
from llama_peft.inference import predict
from llama_peft.model.estimate import Batches
from llama_peft.recipe import Recipe
from llama_peft.rehearsal import rows as material
from llama_peft.rehearsal.device import replace
from llama_peft.rehearsal.device.mode import Rehearsal as Mode
from llama_peft.rehearsal.device.watch import Watch
from llama_peft.rehearsal.report import ATTENTION, Step, sites
from llama_peft.run_folder.weights import TunedModel
from llama_peft.training import setup
from llama_peft.training.rows import Batch as Inputs
from llama_peft.training.rows import ClassificationRow, Row

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from llama_peft.features.states import Input

_CHECKED = 2
"""Examples of the self-check."""
_WRITTEN = 2
"""Tokens that a rehearsal writes of each answer."""
_ASKED = 48
"""Questions that it writes answers to: they fill a row of prompts."""


class Batch(NamedTuple):
    """The size of what a step computed."""

    rows: int
    tokens: int
    """In a row; 0 if rows are states."""


class Stages:
    """Which step runs, and what the finished ones took."""

    def __init__(self, mode: Mode) -> None:
        self.mode, self.done, self.name = mode, list[Step](), "loading"

    def begin(self, name: str) -> None:
        """Begin a step."""
        gc.collect()
        self.name = name
        self.mode.start()

    def end(self, batch: Batch, kept: int = 0) -> None:
        """End the step, and note what it took."""
        counts, peak = self.mode.counts, self.mode.watch.peak
        attention = (word for name, word in ATTENTION.items() if counts.kernels[name])
        step = Step(
            name=self.name,
            rows=batch.rows,
            tokens=batch.tokens,
            peak=peak.total,
            memory={kind: size for kind, size in peak.by_kind.items() if size},
            at=peak.at,
            kept=kept,
            kernels=dict(counts.kernels.most_common()),
            flop=dict(counts.flop),
            syncs=sites(counts.syncs),
            copies=sites(counts.copies),
            guesses=counts.guesses.total(),
            attention=tuple(attention),
        )
        self.done.append(step)


def run(recipe: Recipe, given: material.Material, folder: Path, stages: Stages) -> Batches:
    """Load, train two steps, validate a batch and predict one, as `training.fit` and `inference` do.

    Returns the widest batches, as a training finds them.
    """
    watch = stages.mode.watch
    _use_rows(given)
    if recipe.on_states:
        _measure_features(stages)
    recipe = _for_two_steps(recipe)
    encoded = setup.encode(recipe, given.dataset)
    loaded = setup.load(recipe, encoded, given.dataset, folder)
    _mark(watch, loaded.base)
    stages.name = "attaching the adapter or head"
    attached = setup.attach(loaded, folder)
    batches = {
        part: material.batches(loaded.rows[part] or loaded.rows["train"], size)
        for part, size in _sizes(recipe).items()
    }
    fed = [*batches["train"].typical, *batches["train"].fullest]
    held = attached.rows["train"][: len(fed)] if recipe.on_states else fed
    stages.name = "building the Trainer"
    trainer = setup.build_trainer(
        *(loaded.recipe, attached.model, loaded.encoder, held, (), attached.collate, folder),
        weights=attached.weights,
    )
    _mark(watch, loaded.base)
    _mark(watch, trainer.model)
    stages.name = "the self-check of prefix trees"
    few = {"train": given.dataset.parts["train"][:_CHECKED]}
    setup.compile_and_check(loaded, attached, data.Dataset(labels=(), parts=few), trainer)
    _train(trainer, stages)
    if not recipe.on_states:
        _validate(trainer, attached.collate, batches["validation"].fullest, stages)
    _predict(loaded, trainer, given, batches["validation"].fullest, stages)
    return loaded.widest(recipe)


def _for_two_steps(recipe: Recipe) -> Recipe:
    train = recipe.train.model_copy(
        update={
            **{"max_steps": 2, "eval_steps": 1000, "logging_steps": 1000},
            **{"learning_rate": 1e-4, "num_train_epochs": 1.0},  # they could be auto
            "reuse_frozen_blocks": False,  # all blocks are its most
        }
    )
    evaluated = recipe.eval.model_copy(
        update={"max_new_tokens": min(_WRITTEN, recipe.eval.max_new_tokens)}
    )
    head = recipe.head
    if head.layer == "auto":  # the choice reads every layer, so the whole base is its most
        head = head.model_copy(update={"layer": -1})
    return recipe.model_copy(update={"train": train, "eval": evaluated, "head": head})


def _sizes(recipe: Recipe) -> dict[str, int]:
    """Return how many rows a step takes, of the train and the validation part."""
    step = recipe.train_batch_size * recipe.train.gradient_accumulation_steps
    return {"train": step, "validation": recipe.validation_batch_size}


def _use_rows(given: material.Material) -> None:
    """Make the product take synthetic rows where it would encode the examples of a part."""
    rows = given.synthetic
    if rows is not None:
        replace(setup, "encode_part", lambda recipe, encoder, part, examples: rows[part])


def _measure_features(stages: Stages) -> None:
    """Make the pass over all texts compute its fullest group only, and write nothing.

    The states that the head then trains on are zeros.
    """
    from llama_peft.features.states import Key, grouped, pooled
    from llama_peft.training.features import head

    def states_of(
        recipe: Recipe,
        model: "PreTrainedModel",
        part: str,
        rows: Sequence[ClassificationRow],
        _: Path,
    ) -> list[head.FeatureRow]:
        if part == "train":
            _mark(stages.mode.watch, model)
            groups = grouped(recipe, rows, model)
            group = max(groups, key=lambda group: _width(group.given))
            stages.begin("features")
            pooled(model, group, (Key(-1, recipe.head.pooling),))
            stages.end(
                Batch(1 if isinstance(group.given, dict) else len(group.given), _width(group.given))
            )
        size = model.config.get_text_config().hidden_size
        return [
            head.FeatureRow(ids=row["ids"], features=torch.zeros(size), labels=row["labels"])
            for row in rows
        ]

    replace(head, "states_of", states_of)


def _width(given: "Input") -> int:
    return len(given["input_ids"]) if isinstance(given, dict) else max(map(len, given))


def _mark(watch: Watch, model: "nn.Module") -> None:
    """Say which tensors are weights, and which of them are trained."""
    for parameter in model.parameters():
        watch.mark(parameter, "trained weights" if parameter.requires_grad else "weights")
        state = getattr(parameter, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            for tensor in vars(part).values() if part is not None else ():
                if isinstance(tensor, torch.Tensor):
                    watch.mark(tensor, "weights")
        watch.mark(getattr(parameter, "SCB", None), "weights")
    for buffer in model.buffers():
        watch.mark(buffer, "weights")


class _Boundaries(TrainerCallback):
    """Ends a step after its optimizer step, keeps the Trainer from saving, and begins the next."""

    def __init__(self, stages: Stages, trainer: Trainer) -> None:
        self._stages, self._trainer = stages, trainer
        self._names = ["fullest step"]
        self.batch = Batch(0, 0)
        self.kept = 0

    def on_train_begin(
        self, args: object, state: object, control: TrainerControl, **_: object
    ) -> None:
        self._stages.begin("typical step")

    def on_step_end(
        self, args: object, state: object, control: TrainerControl, **_: object
    ) -> None:
        self._stages.end(self.batch, self.kept)
        control.should_save = False
        for states in self._trainer.optimizer.state.values():
            for tensor in states.values():
                if isinstance(tensor, torch.Tensor):
                    self._stages.mode.watch.mark(tensor, "optimizer")
        if self._names:
            self._stages.begin(self._names.pop())

    def on_epoch_end(
        self, args: object, state: object, control: TrainerControl, **_: object
    ) -> None:
        control.should_save = False


def _train(trainer: Trainer, stages: Stages) -> None:
    """Make two optimizer steps."""
    watch = stages.mode.watch
    for key, value in {
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "dataloader_num_workers": 0,
        "logging_first_step": False,
        "disable_tqdm": True,
    }.items():
        setattr(trainer.args, key, value)
    boundaries = _Boundaries(stages, trainer)
    trainer.add_callback(boundaries)
    backward, step = trainer.accelerator.backward, trainer.training_step

    def backward_of(loss: "Tensor", **arguments: object) -> None:
        watch.keep_all()
        boundaries.kept = watch.live["activations"]
        backward(loss, **arguments)

    def step_of(model: "nn.Module", inputs: "dict[str, Tensor]", *rest: object) -> "Tensor":
        ids = inputs.get("input_ids")  # a head alone reads states
        boundaries.batch = Batch(len(inputs["features"]), 0) if ids is None else Batch(*ids.shape)
        found: Tensor = step(model, inputs, *rest)
        return found

    trainer.accelerator.backward, trainer.training_step = backward_of, step_of
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda one: watch.mark(one.grad, "gradients")
            )
    with torch.autograd.graph.saved_tensors_hooks(watch.keep, lambda tensor: tensor):
        trainer.train()


def _validate(
    trainer: Trainer,
    collate: Callable[..., Mapping[str, object]],
    rows: Sequence[Row],
    stages: Stages,
) -> None:
    """Compute the loss of the fullest validation batch."""
    stages.begin("validation")
    batch = cast("Inputs", collate(rows))
    trainer.model.eval()
    trainer.prediction_step(trainer.model, batch, True)
    stages.end(Batch(*batch["input_ids"].shape))


def _predict(
    loaded: setup.Loaded,
    trainer: Trainer,
    given: material.Material,
    rows: Sequence[Row],
    stages: Stages,
) -> None:
    """Predict one batch with the trained model."""
    stages.begin("prediction")
    recipe, encoder = loaded.recipe, loaded.encoder
    model = loaded.base if recipe.lora is None else trainer.model
    model.eval()
    tuned = TunedModel(recipe=recipe, labels=given.dataset.labels, model=model, encoder=encoder)
    size = recipe.train.per_device_eval_batch_size
    if recipe.kind.has_labels:
        ids = [(str(number), row["input_ids"]) for number, row in enumerate(rows)]
        order = range(recipe.kind.outputs(len(tuned.labels)))
        pad_id = encoder.tokenizer.pad_token_id
        found = predict.classify_rows(
            model, ids, tuned.labels, order, pad_id, size, recipe.kind.side
        )
        batch = Batch(len(ids), max(len(row["input_ids"]) for row in rows))
    else:
        asked = sorted(
            predict.questions(given.dataset.parts["train"]), key=lambda one: -len(one.context)
        )
        asked = asked[: size if recipe.kind.finds_spans else _ASKED]
        found = predict.predict(tuned, asked)
        batch = Batch(len(asked), max(len(encoder.question(one)) for one in asked[:8]))
    for _ in found:
        pass
    stages.end(batch)
