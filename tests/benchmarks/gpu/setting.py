"""What is measured: the base, the data, how much of both, and the recipes of the product on them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoTokenizer

from llama_peft.model import counts
from llama_peft.recipe import Recipe, load_recipe, schedule
from tests.benchmarks.material import MANY, SQUAD, SST2, Base, Questions, questions, save_random

LORA = {"squad": "generative", "squad-span": "spans", "sst2": "a label"}
"""The recipes that train an adapter, and what they learn."""
RECIPES = (*LORA, "sst2-head")


class Amount(NamedTuple):
    """How much is measured."""

    questions: int
    sentences: int
    repeats: int


SMALL, LARGE = Amount(6, 48, 1), Amount(280, 2048, 3)
"""For a CPU, where only the way through is of interest, and for a GPU."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all parts share."""

    base: Base
    amount: Amount
    squad: Path = SQUAD
    sst2: Path = SST2
    rehearsal: Path | None = None
    """What rehearsals wrote as JSON: a file, or a folder of files."""
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The parts that are measured already."""

    def drawn(self) -> Questions:
        """The questions for speed, the same in every part."""
        return questions(self.amount.questions, path=self.squad)

    def recipe(self, name: str, *settings: str) -> Recipe:
        """A recipe of the product on this base and these data."""
        found = load_recipe(name, [*self.overrides(name), *settings])
        return found.with_train(schedule.choose(found, MANY, None))

    def overrides(self, name: str) -> list[str]:
        """What differs from the packaged recipe: where its base and its data are."""
        if name.startswith("sst2"):
            file, its, count = self.sst2, _SENTENCES, self.amount.sentences
        else:
            file, its, count = self.squad, _QUESTIONS, self.amount.questions
        place = its.file if file.is_file() else its.generated
        return [
            f"model.model_name_or_path={self.base.folder}",
            "eval.splits=[test]",
            *(text.format(file=file, count=count) for text in place),
        ]

    def shape(self) -> counts.TextConfig:
        """The shape of the base."""
        config = json.loads((self.base.folder / "config.json").read_text("utf-8"))
        return counts.text_config(config)

    def linear_weights(self) -> int:
        """The weights that each token is multiplied with: those of the blocks, without embedding and head."""
        return counts.count_text(self.shape()).quantized


class _Data(NamedTuple):
    """The settings of a recipe for real data in a file, and for generated data."""

    file: list[str]
    generated: list[str]


# The cuts are those of tests/rehearsal, so that both see the same longest rows.
_QUESTIONS = _Data(
    [
        "dataset.path={file}",
        "dataset.format=squad",
        "dataset.parts={{train: train}}",
        "dataset.validation_size=0.1",
    ],
    [
        "dataset.path=tiny",
        "dataset.name=passages",
        "dataset.parts={{train: {count}, validation: 8, test: 8}}",
        "dataset.group_by=null",
    ],
)
_SENTENCES = _Data(
    [
        "dataset.path={file}",
        "dataset.format=tsv",
        "dataset.parts={{train: train}}",
        "dataset.columns={{text: sentence, label: label}}",
    ],
    [
        "dataset.path=tiny",
        "dataset.name=reviews",
        "dataset.parts={{train: {count}, validation: 8, test: 8}}",
    ],
)


def base_of(name: str, folder: Path) -> Base:
    """The base of a name or folder; if it has no weights, its shape with random ones in `folder`."""
    if any(Path(name).glob("*.safetensors")):
        return Base(Path(name), packed=True)
    config, tokenizer = AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    return Base(save_random(folder, config, tokenizer).folder, packed=True)


Part = Iterator[Mapping[str, Any]]
"""What a part has found so far, each time it has found more."""
