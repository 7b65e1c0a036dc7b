"""Renders the card of a pushed run: its scores, the cost of its training, and how to load it.

Every number comes from a file of the bundle: results.json, comparison.json, training.json. A card
claims nothing that was not evaluated.
"""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from llama_peft.data import FieldsExample
from llama_peft.export import licences
from llama_peft.export.card_metadata import metadata
from llama_peft.export.load_snippet import described, snippet
from llama_peft.export.stage import Bundle
from llama_peft.recipe import Recipe
from llama_peft.run_folder.comparison import PartComparison
from llama_peft.run_folder.layout import CARD_CHARTS
from llama_peft.run_folder.record import TrainingRecord
from llama_peft.run_folder.self_check import (
    CONTEXT,
    QUESTION,
    TEXT,
    samples,
)
from llama_peft.run_folder.threshold import UNFITTED
from llama_peft.system.formatting import (
    as_code,
    duration,
    hub_link,
    in_markdown,
    memory,
    number_with_interval,
    p_value,
)
from llama_peft.tokens.prompts import PromptEncoder

_TEMPLATE = Path(__file__).with_name("card.md.jinja")


_CHARTS = dict(
    zip(
        CARD_CHARTS,
        (
            "The main score of each system, with its 95 % interval",
            "Loss, gradient norm and learning rate by training step",
        ),
        strict=True,
    )
)
"""What each figure shows."""


class ShownMetric(NamedTuple):
    """A line of a table of results, as text."""

    name: str
    zero_shot: str
    tuned: str
    difference: str


class ShownPart(NamedTuple):
    """A table of results: one part of the data."""

    title: str
    lines: list[ShownMetric]


def render(
    bundle: Bundle,
    repo_id: str,
    encoder: PromptEncoder,
    reader: str | None,
    packs_head: bool = False,
) -> str:
    """The whole card: YAML metadata, then Markdown. reader, packs_head: from `load_snippet`.

    What comes from data, recipe or records passes `in_markdown` or `as_code`, and in code `literal`.
    """
    import yaml

    # Without allow_unicode, control characters and those that turn the text around are escapes.
    front = yaml.safe_dump(metadata(bundle, repo_id), sort_keys=False, width=1000)
    return f"---\n{front}---\n\n{_body(bundle, repo_id, encoder, reader, packs_head)}"


def _body(
    bundle: Bundle, repo_id: str, encoder: PromptEncoder, reader: str | None, packs_head: bool
) -> str:
    from jinja2 import Environment, StrictUndefined

    recipe, fitted = bundle.recipe, bundle.threshold
    parts = bundle.comparison.parts if bundle.comparison else []
    verdict = bundle.comparison.verdict if bundle.comparison else []
    duties = licences.duties(recipe.model.model_name_or_path)
    pushed = described(
        *(recipe, encoder, fitted),
        repo_id=repo_id,
        commit=bundle.run.commit,
        reader=reader,
        packs_head=packs_head,
    )
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        name=in_markdown(repo_id.split("/")[-1]),
        summary=_summary(recipe),
        built_with=duties.built_with if duties else "",
        verdict=[in_markdown(line) for line in verdict],
        parts=[_shown(part) for part in parts],
        charts=[(text, name) for name, text in _CHARTS.items() if (bundle.folder / name).is_file()],
        has_percent=any(line.percent for part in parts for line in part.metrics),
        costs=_costs(bundle),
        commands=_commands(recipe, repo_id),
        fitted=_fitted(bundle),
        snippet=snippet(pushed),
        data=_data(bundle),
        limits=_limits(bundle),
        licence=duties.card_text if duties else "",
    )


def _summary(recipe: Recipe) -> str:
    base = recipe.model.model_name_or_path
    link = "embedded model of `llama_peft`" if base == "tiny" else hub_link(base)
    labels = f" Labels: {_listed(recipe.dataset.labels)}." if recipe.dataset.labels else ""
    if recipe.lora is None:
        learned, place = "a head", "trained alone on the frozen"
    else:
        learned = "a LoRA adapter" if recipe.kind.head is None else "a LoRA adapter with a head"
        place = "trained on the frozen"
    return (
        f"This repository holds {learned} {recipe.kind.purpose}, {place} {link}.{labels} The "
        "settings of the training are in `recipe.yaml`."
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(in_markdown, names))


def _shown(part: PartComparison) -> ShownPart:
    lines = []
    for line in part.metrics:
        change = number_with_interval(line.difference, line.difference_ci95, line.percent, "+")
        if line.p is not None:
            change += f", p {p_value(line.p)}"
        before = number_with_interval(line.zero_shot, line.zero_shot_ci95, line.percent)
        after = number_with_interval(line.tuned, line.tuned_ci95, line.percent)
        lines.append(ShownMetric(in_markdown(line.name), before, after, change))
    seen = part.seen_in_training
    known = f" ({seen:,} of them read the same as a training example)" if seen else ""
    if part.not_comparable:
        known += (
            f"; the fine-tuned model was {in_markdown(part.not_comparable)} than zero-shot, so the "
            "two cannot be compared"
        )
    title = (
        f"Task {as_code(part.task)}, {in_markdown(part.part)}, {part.examples:,} examples{known}:"
    )
    return ShownPart(title, lines)


def _costs(bundle: Bundle) -> list[tuple[str, str]]:
    record, quantization = bundle.run.record, bundle.recipe.quantization
    bits = "4-bit" if quantization.load_in_4bit else "8-bit" if quantization.load_in_8bit else ""
    kind = f"{bits} ({quantization.bnb_4bit_quant_type})" if bits == "4-bit" else bits
    parameters, examples = record.parameters, record.examples
    rows = [
        ("trained parameters", f"{parameters.trainable:,} of {parameters.total:,}"),
        ("base during training", kind or "not quantised"),
        ("training examples", f"{examples['train']:,} (validation {examples['validation']:,})"),
        ("steps, epochs", f"{record.steps:,}, {record.epochs:.2f}"),
        ("training time", duration(record.wall_seconds)),
    ]
    if record.peak_memory_bytes:
        rows.append(("peak memory", memory(record.peak_memory_bytes)))
    size = sum(file.stat().st_size for file in bundle.folder.glob("*.safetensors"))
    return [*rows, ("weights in this repository", f"{size:,} bytes")]


def _commands(recipe: Recipe, repo_id: str) -> list[str]:
    first = samples(recipe)[0]
    if isinstance(first, FieldsExample):
        quoted = shlex.quote(json.dumps(first.values))
    elif recipe.kind.has_labels:
        quoted = f'"{TEXT}"'
    else:
        quoted = f'--question "{QUESTION}" --context "{CONTEXT}"'
    return [
        f"llama-peft predict {shlex.quote(repo_id)} {quoted}",
        f"llama-eval run --model {shlex.quote(repo_id)}",
    ]


def _data(bundle: Bundle) -> list[str]:
    data = bundle.recipe.dataset
    name = bundle.hub_data
    if name:
        where = hub_link(name, "datasets/")
        where += f" at revision {in_markdown(data.revision)}" if data.revision else ""
    elif data.path == "tiny":
        where = "generated by `llama_peft`"
    else:
        where = "the author's own files, which are not on the Hub"
    record = bundle.run.record
    parts = _listed(f"{part} {count:,}" for part, count in record.examples.items())
    return [
        f"Data: {where}; {parts}; split with seed {data.seed}.{_dropped(record)}",
        f"Ids of the examples in each part (`split.json`): sha256 {as_code(str(record.split_sha256))}.",
        f"Weights: sha256 {as_code(record.weights_sha256)}.",
        f"Base: {as_code(record.base_fingerprint)}.",
        *_evaluated_with(bundle),
    ]


def _dropped(record: TrainingRecord) -> str:
    """How many bad rows were dropped, and why; empty if there are none."""
    counts = [
        f"{count:,} of {part} ({kind})"
        for part, kinds in record.dropped.items()
        for kind, count in kinds.items()
    ]
    return f" Rows that could not be used were dropped: {_listed(counts)}." if counts else ""


def _evaluated_with(bundle: Bundle) -> list[str]:
    """The versions of the packages behind the numbers; empty if there are no numbers."""
    tuned = bundle.tuned
    if tuned is None:
        return []
    versions = _listed(f"{name} {version}" for name, version in tuned.versions.items())
    commit = f", and the code of commit {as_code(tuned.git_hash)}" if tuned.git_hash else ""
    return [f"Evaluated on {in_markdown((tuned.date or '')[:10])} with {versions}{commit}."]


def _limits(bundle: Bundle) -> list[str]:
    recipe = bundle.recipe
    lines = []
    if bundle.comparison is None:
        lines.append("It was not evaluated.")
    elif min(part.examples for part in bundle.comparison.parts) < 1000:
        lines.append("Evaluated on few examples: read the intervals, not the decimals.")
    if recipe.quantization.load_in_4bit or recipe.quantization.load_in_8bit:
        bits = 4 if recipe.quantization.load_in_4bit else 8
        lines.append(
            f"Trained and evaluated on the base in {bits} bits. Scores on the base in the "
            "precision of its checkpoint can be different; they were not evaluated."
        )
    lines.append("Not evaluated on other subjects, styles and languages than those of the data.")
    if bundle.threshold is not None and bundle.threshold.temperature is not None:
        lines.append(
            f"Probabilities were evaluated with a temperature of {bundle.threshold.temperature:.4f}, "
            "fitted on validation: plain transformers must divide the logits by it."
        )
    return [*lines, _answer_limit(bundle)]


def _answer_limit(bundle: Bundle) -> str:
    """What an answer can be, for the task."""
    recipe = bundle.recipe
    if recipe.kind.has_labels:
        cut = f"Texts are cut after {recipe.train.max_length} tokens; {recipe.kind.outcome}"
        return cut + (f" ({_label_thresholds(bundle)})." if recipe.fits_threshold else ".")
    if not recipe.kind.finds_spans:
        return (
            f"It writes at most {recipe.eval.max_new_tokens} tokens, and may write things that "
            "the passage does not say. It works with the prompt that it was trained on, which "
            f"the example shows.{_no_answer_limit(bundle) if recipe.fits_threshold else ''}"
        )
    return (
        f"Answers are pieces of the passage, of at most {recipe.eval.max_answer_length} tokens."
        f"{_no_answer_limit(bundle)}"
    )


def _no_answer_limit(bundle: Bundle) -> str:
    fitted = bundle.threshold is not None
    limit = UNFITTED if bundle.threshold is None else bundle.threshold.no_answer_threshold
    return (
        f" An answer is given if the probability of no answer is at most {limit:.4f} "
        f"({'fitted on validation' if fitted else 'not fitted'})."
    )


def _fitted(bundle: Bundle) -> str:
    """What was fitted on validation, if anything was."""
    if bundle.threshold is None:
        return ""
    limits = "" if bundle.threshold.label_thresholds is None else "thresholds and "
    return "threshold" if bundle.threshold.temperature is None else f"{limits}temperature"


def _label_thresholds(bundle: Bundle) -> str:
    fitted = bundle.threshold.label_thresholds if bundle.threshold else None
    if fitted is None:
        return f"{UNFITTED}, not fitted"
    names = map(in_markdown, bundle.run.labels)
    limits = (f"{name} {limit:.4f}" for name, limit in zip(names, fitted, strict=True))
    return f"fitted on validation: {', '.join(limits)}"
