"""results.json: the scores of an evaluation, in the format of lm-evaluation-harness."""

import math
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, Field, JsonValue, TypeAdapter, ValidationError

from llama_peft.recipe.fields import later
from llama_peft.run_folder.layout import RESULTS
from llama_peft.run_folder.record import Dropped, Stored
from llama_peft.run_folder.threshold import LabelThresholds, Temperature
from llama_peft.system.files import read_summed, write_summed
from llama_peft.system.numbers import (
    Count,
    Finite,
    Interval,
    NotNegative,
    Positive,
    Step,
    Version,
    first_fault,
)

VERSION = 1
"""The newest form of the file that this package reads."""

_INTERVAL: TypeAdapter[list[float]] = TypeAdapter(Interval, config=Stored.model_config)
_COUNT: TypeAdapter[int] = TypeAdapter(Count, config=Stored.model_config)


def _plausible(scores: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for name, value in scores.items():
        if name.endswith("_ci95"):
            _INTERVAL.validate_python(value)
        elif name.split("_")[-1] == "total":
            _COUNT.validate_python(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is not a number")
    return scores


Scores = Annotated[dict[str, JsonValue], AfterValidator(_plausible)]
"""Scores, counts and thresholds by name; `<name>_ci95` is the interval [low, high] of a score."""


class TrainingCost(Stored):
    """The cost of the training of a tuned model."""

    wall_seconds: NotNegative | None = None
    peak_memory_bytes: Count | None = None
    steps: Step | None = None


class Costs(Stored):
    """What a model costs, beside the peak of the memory. None: it is not known."""

    fit_seconds: NotNegative | None = None
    """To train or to fit it; 0 if there is nothing to fit."""
    seconds_per_1000: NotNegative | None = None
    """For 1,000 predictions, without loading. None if an earlier process has made all of them."""
    bytes_to_ship: Count | None = None
    """Of what is needed beside the base."""
    jobs: Positive = later(1)
    """How many measurements shared the device meanwhile, this one included."""


class FewShotChoice(Stored):
    """How many worked examples were tried on validation for `eval.num_fewshot: auto`."""

    metric: str
    examples: Count
    """Of the validation part."""
    tried: dict[str, Finite]
    """The score by the number of worked examples."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Why other numbers were not tried."""
    chosen: Count
    seconds: NotNegative
    key: str
    """A digest of everything that the choice depends on."""


class EngineRecord(Stored):
    """The server that answered, if it was not this process.

    What is counted is what this process asked: if an earlier one was interrupted, it asked for the
    other predictions.
    """

    name: str
    """openai or vllm."""
    base_url: str | None = None
    """None if the server was started for this evaluation."""
    served_model: str
    """What the server calls the model."""
    server: str | None = None
    """What the server says of itself, such as its version."""
    prompts: str | None = None
    """How prompts were sent: as token ids, or as text."""
    predictions: Count = 0
    """How many of the predictions this process asked for."""
    requests: Count = 0
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    cost: NotNegative | None = None
    """Of these tokens, in the currency of the prices; None if no price is known."""


class ModelConfig(Stored):
    """The model that was evaluated."""

    model_kind: str
    """Its name in tables, as "zero-shot verbalizer"."""
    recipe: str
    """Name of the recipe."""
    model: str | None = None
    """The base, by its Hub id or folder."""
    parameters: dict[str, Count] = Field(default_factory=dict)
    base_fingerprint: str | None = None
    adapter_sha256: str | None = None
    run: str | None = None
    """The run folder of a tuned model."""
    adapter: str | None = None
    """The folder of somebody else's adapter."""
    training: TrainingCost = TrainingCost()
    fewshot_from: str | None = None
    fewshot_choice: FewShotChoice | None = later(None)
    seen_in_training: dict[str, Count] | None = None
    """For each part, examples that read the same as one that the model was trained on; None if that
    is not known.
    """
    predictions: str | None = None
    """The file that was scored, if no model was loaded."""
    key: str | None = None
    """A digest of everything that the predictions depend on."""
    shared_key: str | None = later(None)
    """A digest of what the predictions of an untouched base depend on, whatever the recipe trains."""
    engine: EngineRecord | None = later(None)


class TaskSettings(Stored):
    """How one task was evaluated. Older files say less."""

    labels: list[str]
    """Empty for question answering."""
    task: str | None = None
    dataset: dict[str, JsonValue] = Field(default_factory=dict)
    data_file: str | None = None
    data_split: str | None = None
    prompt: dict[str, JsonValue] | None = None
    quantization: dict[str, JsonValue] | None = None
    dtype: str | None = None
    max_length: Count | None = None
    doc_stride: Count | None = None
    eval: dict[str, JsonValue] = Field(default_factory=dict)
    no_answer_threshold: Finite | None = None
    label_thresholds: LabelThresholds = later(None)
    temperature: Temperature = later(None)
    bleu_signature: str | None = None


class SampleCount(Stored):
    """Examples of a part, and how many of them were evaluated."""

    original: Count
    effective: Count


class Results(Stored):
    """The content of results.json; `results` and `configs` have the same keys, one for each
    evaluated part.
    """

    version: Version = VERSION
    results: dict[str, Scores]
    configs: dict[str, TaskSettings]
    config: ModelConfig
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the packages behind the numbers."""
    n_samples: dict[str, SampleCount] = Field(
        default_factory=dict,
        serialization_alias="n-samples",
        validation_alias=AliasChoices("n-samples", "n_samples"),
    )
    dropped: Dropped = later({})
    higher_is_better: dict[str, dict[str, bool]] = Field(default_factory=dict)
    git_hash: str | None = None
    date: str | None = None
    adapter_sha256: str | None = None
    base_revision: str | None = None
    """The fingerprint of the base."""
    peak_memory_bytes: Count | None = None
    wall_seconds: NotNegative | None = None
    costs: Costs = later(Costs())
    predictions_sha256: str | None = None
    """None in results of other tools, which have no sum of their own either."""

    @property
    def settings(self) -> TaskSettings:
        """How the first task was evaluated; the tasks of one file differ in their part only."""
        return next(iter(self.configs.values()))


def write_results(folder: Path, results: Results) -> None:
    """Write `results.json` into the folder of an evaluation."""
    write_summed(folder, RESULTS, results.model_dump(mode="json", by_alias=True))


def read_results(path: Path) -> Results:
    """The results in a file.

    Raises OSError if it cannot be read, ValueError, in one line, if it is damaged or newer than
    this package, and UserError if it leads out of its folder.
    """
    try:
        found = Results.model_validate(read_summed(path.parent, path.name, required=False))
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None
    if found.version > VERSION:
        raise ValueError(f"version {found.version} is newer than this package reads")
    if not found.results or not found.configs:
        raise ValueError("it holds no task")
    return found
