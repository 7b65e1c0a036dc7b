"""That 4-bit training is right on this GPU: tree rows against plain rows, and a run against its copy.

Losses and gradients of the same weights and examples, in the fast type of the machine and in float32, by each attention
backend. Two kernels add up in another order: in 16 bits a gradient may differ by a tenth of its length, in float32 by
1e-4. A run that is saved, loaded and asked again must give the scores that it gave, to the bit.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from llama_peft.data import QuestionExample
from llama_peft.features.states import Key, grouped, pooled
from llama_peft.model import backbone
from llama_peft.prefix_tree import pack as prefix_tree
from llama_peft.prefix_tree import varlen
from llama_peft.prefix_tree.loss import answer_loss
from llama_peft.prefix_tree.mask import install
from llama_peft.recipe import Recipe
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.self_check import Scores, largest_difference, sample_scores
from llama_peft.run_folder.weights import TunedModel, load_tuned
from llama_peft.system.memory import free_memory, tree_kernel
from llama_peft.tokens.prompts import PromptEncoder
from llama_peft.training import fit, setup
from llama_peft.training.processes.batch import IDS, PACKED
from llama_peft.training.rows import width_multiple
from tests.benchmarks import measure, training
from tests.benchmarks.material import encoded, precision

from . import heads
from .setting import Part, Setting

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.1}
RELOADED = ("squad", "sst2", "sst2-head")
"""One of each: an adapter, an adapter with a head, a head alone."""
_FEW = 16
"""Rows in a batch for a head."""
Row = dict[str, Any]
Check = tuple[str, Callable[[], Row]]


def turns(setting: Setting) -> Part:
    """Yield the checks so far. One that fails says why, and the others go on."""
    rows: list[Row] = []
    for name, check in _checks(setting):
        try:
            found = check()
        except Exception as error:
            found = {"right": False, "failure": measure.failure(error)}
        rows.append({"name": name, **found})
        free_memory()
        yield measure.result("correct", rows, {}, **setting.base.facts())


def _checks(setting: Setting) -> Iterator[Check]:
    for dtype in dict.fromkeys((precision(), "float32")):
        expected = cache(partial(_one_by_one, setting, dtype))
        for attention in _attentions(dtype):
            of_tree = partial(answers, setting, dtype, attention, expected)
            yield f"squad, {attention}, {dtype}: tree = plain", of_tree
        for name in ("sst2", "squad-span"):
            yield f"{name}, {dtype}: tree = plain", partial(of_batch, setting, name, dtype)
        yield f"sst2-head, {dtype}: states of a tree = plain", partial(states, setting, dtype)
    for name in RELOADED:
        yield f"{name}: loaded = saved", partial(reloaded, setting, name)


def _attentions(dtype: str) -> list[str]:
    """Each that computes this type here."""
    if not torch.cuda.is_available():
        return ["sdpa", "eager", varlen.NAME]
    able = tree_kernel() is not None and dtype != "float32"
    return ["sdpa", "eager", "flex_attention", *([varlen.NAME] if able else ())]


def _examples(setting: Setting) -> list[QuestionExample]:
    return training.few(setting.drawn().examples)


def _one_by_one(setting: Setting, dtype: str) -> training.Total:
    return training.one_by_one(replace(setting.base, dtype=dtype), _examples(setting))


def answers(
    setting: Setting, dtype: str, attention: str, expected: Callable[[], training.Total]
) -> Row:
    """Tree rows of answers against the bare model on one example a row."""
    base = replace(setting.base, dtype=dtype)
    model = training.perturbed(base.adapted(attention)).train()
    install(model)
    loss, multiple = 0.0, width_multiple(base.recipe(attention))
    device = next(model.parameters()).device
    for row in prefix_tree.pack(list(encoded(base.encoder, _examples(setting))), 2048):
        batch = prefix_tree.collate([row], 0, multiple)
        inputs = {key: value.to(device) for key, value in batch.items()}
        each = answer_loss(model, inputs, 1)
        each.backward()
        loss += each.item()
    found = training.gradient_of(model)
    return _compared(dtype, loss, found, expected().loss, expected().gradient)


def of_batch(setting: Setting, name: str, dtype: str) -> Row:
    """A batch for a head as tree rows against the same batch padded."""
    loaded = heads.given(setting, name, f"model.dtype={dtype}").load()
    with tempfile.TemporaryDirectory() as folder:
        attached = setup.attach(loaded, Path(folder, "run"))
    model = training.perturbed(attached.model)
    device = next(model.parameters()).device
    given = attached.collate(sorted(loaded.rows["train"][:_FEW], key=lambda row: row["ids"]))
    inputs = tree_map_only(torch.Tensor, lambda one: one.to(device), dict(given))
    inputs.pop(IDS)
    packed, plain = inputs, {key: value for key, value in inputs.items() if key != PACKED}
    if PACKED not in packed:
        raise ValueError("this batch has no tree rows, because padded ones are as good")
    found = []
    for each in (packed, plain):
        model.zero_grad()
        loss = model(**each).loss
        loss.backward()
        found += [loss.item(), training.gradient_of(model)]
    return _compared(dtype, *found)


def states(setting: Setting, dtype: str) -> Row:
    """The states that a head alone reads, from tree rows and from batches of like length."""
    loaded = heads.given(setting, "sst2-head", f"model.dtype={dtype}").load()
    rows, key = loaded.rows["train"][:_FEW], Key(-1, loaded.recipe.head.pooling)
    found = []
    for features in ("prefix_tree", "length_sorted"):
        recipe = loaded.recipe.changed(head={"features": features})
        its = torch.zeros(len(rows), loaded.base.config.hidden_size)
        for group in grouped(recipe, rows, loaded.base):
            with torch.no_grad():
                its[group.members] = pooled(loaded.base, group, (key,))[0].cpu()
        found += [its.norm().item(), its]
    return _compared(dtype, *found)


def _compared(
    dtype: str, loss: float, gradient: Tensor, expected_loss: float, expected: Tensor
) -> Row:
    """How far a loss and a gradient, or states, are from the plain ones, as a share of these."""
    loss_error = abs(loss - expected_loss) / abs(expected_loss)
    error = ((gradient - expected).norm() / expected.norm()).item()
    right = loss_error <= TOLERANCE[dtype] and error <= TOLERANCE[dtype]
    return {
        "right": right,
        "loss_error": loss_error,
        "error": error,
        "tolerance": TOLERANCE[dtype],
    }


def reloaded(setting: Setting, name: str) -> Row:
    """Train two steps as `llama-peft train` does, and compare the scores before saving and after loading."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = setting.recipe(
            *(name, f"train.output_dir={folder}/run", "train.max_steps=2", "train.eval_steps=2"),
            *("dataset.max_train_samples=64", "dataset.max_eval_samples=8"),
        )
        before: list[Scores] = []
        save = fit.save_weights

        def score_and_save(model: Any, its: Recipe, *rest: Any) -> Any:
            encoder = PromptEncoder(backbone.load_tokenizer(its.model), its.prompt)
            tuned = TunedModel(recipe=its, labels=(), model=model.eval(), encoder=encoder)
            before.append(sample_scores(tuned))
            return save(model, its, *rest)

        with mock.patch.object(fit, "save_weights", score_and_save):
            done = fit.train(recipe)
        after = sample_scores(load_tuned(open_run(done)))
    difference = largest_difference(after, before[0])
    return {"right": difference == 0, "error": difference, "tolerance": 0.0}
