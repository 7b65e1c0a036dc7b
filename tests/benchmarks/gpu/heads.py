"""Training under heads: the stock Trainer on padded batches, and the product as its recipes say.

Every contestant sees the same rows in batches of the same size, so the optimizer steps are the same. A head alone is trained
for the epochs of its recipe: the stock Trainer runs the backbone in each, the product once.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PrinterCallback, Trainer, TrainingArguments

from llama_peft import data
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.tokens.prompts import PromptEncoder
from llama_peft.training import setup
from llama_peft.training.checkpoints import Origin
from llama_peft.training.processes.batch import IDS
from llama_peft.training.rows import Row, collator, encode_part
from tests.benchmarks import measure
from tests.benchmarks.measure import Contestant, Prepared

from .setting import Part, Setting

STOCK = {"stock_padded": "random", "stock_length_grouped": "group_by_length"}
NAMES = ("sst2", "squad-span", "sst2-head")
_PLAIN = ("train.packing=none", "head.features=none")
_QUIET = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}


def turns(setting: Setting) -> Part:
    """Yield the rows so far, all recipes in turns."""
    contestants, examples, epochs = [], {}, {}
    for name in NAMES:
        found = given(setting, name)
        examples[name] = len(found.rows["train"])
        epochs[name] = found.recipe.train.num_train_epochs
        contestants += [
            Contestant(name=f"{name} {who}", prepare=_stock(setting, name, found, sampling))
            for who, sampling in STOCK.items()
        ]
        contestants.append(Contestant(name=f"{name} ours", prepare=_ours(found)))
    for measured in measure.turns(contestants, setting.amount.repeats):
        rows: list[dict[str, Any]] = []
        ratios: dict[str, Any] = {}
        for name in NAMES:
            its = {key: one for key, one in measured.items() if key.split()[0] == name}
            seen = int(epochs[name] * examples[name])
            flop = (2 if name == "sst2-head" else 4) * setting.linear_weights()
            rows += [
                row | {"flop_per_token": flop}
                for row in measure.rows(its, seen, lambda steps: steps)
            ]
            if f"{name} ours" in its:
                rivals = {f"{name}_vs_{who}": f"{name} {who}" for who in STOCK}
                ratios |= measure.ratios(its, f"{name} ours", rivals)
        yield measure.result(
            "heads", rows, ratios, **setting.base.facts(), flop_per_token=0, examples=examples
        )


class Given(NamedTuple):
    """A recipe and its rows. The base is loaded for each contestant, so that none holds another's."""

    recipe: Recipe
    encoder: PromptEncoder
    rows: Mapping[str, Sequence[Row]]

    def load(self) -> setup.Loaded:
        """What the product trains on."""
        return setup.Loaded(
            recipe=self.recipe,
            encoder=self.encoder,
            rows=dict(self.rows),
            base=backbone.load(self.recipe, self.recipe.kind.name, 2),
            origin=Origin("", "", ""),
        )


def given(setting: Setting, name: str, *settings: str) -> Given:
    """The rows of a recipe, which packs its batches if it has an adapter."""
    packing = () if name == "sst2-head" else ("train.packing=prefix_tree",)
    count = setting.amount.sentences // (4 if name == "squad-span" else 1)
    some = f"dataset.max_train_samples={count}"
    recipe = setting.recipe(name, some, *packing, *settings)
    return encoded(recipe, data.load(recipe).parts["train"])


def encoded(recipe: Recipe, examples: Sequence[data.Example]) -> Given:
    """The examples as rows of a recipe."""
    encoder = PromptEncoder(backbone.load_tokenizer(recipe.model), recipe.prompt)
    rows = {"train": encode_part(recipe, encoder, "train", examples), "validation": []}
    return Given(recipe, encoder, rows)


def _ours(found: Given) -> Callable[[], Prepared]:
    def prepare() -> Prepared:
        fresh = found.load()
        place = tempfile.TemporaryDirectory()
        folder = Path(place.name) / "run"  # states lie beside it

        def build() -> Trainer:
            attached = setup.attach(fresh, folder)
            return setup.build_trainer(
                *(fresh.recipe, attached.model, fresh.encoder, attached.rows["train"], []),
                *(attached.collate, folder),
            )

        # The pass that computes states is part of the work, attaching an adapter is not.
        trainer = None if fresh.recipe.on_states else build()
        return Prepared(fresh.base, lambda: _train(trainer or build(), place))

    return prepare


def _stock(setting: Setting, name: str, found: Given, sampling: str) -> Callable[[], Prepared]:
    def prepare() -> Prepared:
        recipe = setting.recipe(name, *_PLAIN)
        base = backbone.load(recipe, recipe.kind.name, 2)
        folder = tempfile.TemporaryDirectory()
        arguments = setup.training_arguments(recipe, False, Path(folder.name))
        trainer = Trainer(
            model=setup.trained_module(recipe, base),
            args=TrainingArguments(**arguments | {"train_sampling_strategy": sampling}),
            data_collator=_padded(collator(recipe, found.encoder.tokenizer.pad_token_id)),
            train_dataset=found.rows["train"],
        )
        return Prepared(base, lambda: _train(trainer, folder))

    return prepare


def _padded(collate: Callable[..., Any]) -> Callable[[Sequence[Any]], dict[str, Any]]:
    return lambda rows: {key: value for key, value in collate(rows).items() if key != IDS}


def _train(trainer: Trainer, folder: "tempfile.TemporaryDirectory[str]") -> int:
    with folder:
        train_quietly(trainer)
    return int(trainer.state.global_step)


def train_quietly(trainer: Trainer) -> None:
    """Train without checkpoints and output."""
    for key, value in _QUIET.items():
        setattr(trainer.args, key, value)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
