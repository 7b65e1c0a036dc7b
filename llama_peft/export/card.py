"""The card of a pushed run: measured numbers, what they cost, and how to load it, through one template.

Every number comes from a file of the bundle: results.json, comparison.json, training.json. What was not measured is not claimed.
"""

import shlex
from pathlib import Path
from typing import Any

from llama_peft.export import licences, load_snippet
from llama_peft.export.card_metadata import metadata
from llama_peft.export.stage import Bundle
from llama_peft.recipe import Recipe
from llama_peft.run_folder.comparison import PartComparison
from llama_peft.run_folder.self_check import CONTEXT, QUESTION, TEXT, input_ids, samples
from llama_peft.run_folder.threshold import UNFITTED
from llama_peft.system.formatting import duration, memory, number_with_interval
from llama_peft.tokens.prompts import PromptEncoder

_TEMPLATE = Path(__file__).with_name("card.md.jinja")


def render(bundle: Bundle, repo_id: str, encoder: PromptEncoder, reader: str | None) -> str:
    """The whole card: YAML metadata, then Markdown. `reader` comes from `load_snippet.reader_prefix`."""
    import yaml
    from jinja2 import Environment, StrictUndefined

    recipe = bundle.recipe
    parts = bundle.comparison.parts if bundle.comparison else []
    duties = licences.duties(recipe.model.model_name_or_path)
    prompt = encoder.tokenizer.decode(input_ids(encoder, recipe, samples(recipe)[0]))
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    body = environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        name=repo_id.split("/")[-1],
        what=_what(recipe),
        built_with=duties.built_with if duties else "",
        parts=[_shown(part) for part in parts],
        has_percent=any(line.percent for part in parts for line in part.metrics),
        costs=_costs(bundle),
        commands=_commands(recipe, repo_id),
        threshold=bundle.threshold.no_answer_threshold if bundle.threshold else None,
        plain=load_snippet.lines(recipe, repo_id, bundle.run.commit, reader, prompt, encoder),
        plain_says=load_snippet.says(recipe, bundle.run.commit, reader),
        data=_data(bundle),
        limits=_limits(bundle),
        licence=duties.says if duties else "",
    )
    front = yaml.safe_dump(
        metadata(bundle, repo_id), sort_keys=False, allow_unicode=True, width=1000
    )
    return f"---\n{front}---\n\n{body}"


def _what(recipe: Recipe) -> str:
    if recipe.kind.head is None:
        learned = "A LoRA adapter"
    else:
        learned = (
            "A LoRA adapter with a head" if recipe.lora is not None else "A head, trained alone,"
        )
    base = recipe.model.model_name_or_path
    link = (
        "embedded model of `llama_peft`"
        if base == "tiny"
        else f"[{base}](https://huggingface.co/{base})"
    )
    labels = f" Labels: {', '.join(recipe.dataset.labels)}." if recipe.dataset.labels else ""
    return f"{learned} {recipe.kind.purpose}, on the frozen {link}.{labels} Trained from `recipe.yaml` in this repository."


def _shown(part: PartComparison) -> dict[str, Any]:
    lines = []
    for line in part.metrics:
        change = number_with_interval(line.difference, line.difference_ci95, line.percent, "+")
        if line.p is not None:
            change += f", p = {line.p:.3f}"
        lines.append(
            {
                "name": line.name,
                "zero_shot": number_with_interval(
                    line.zero_shot, line.zero_shot_ci95, line.percent
                ),
                "tuned": number_with_interval(line.tuned, line.tuned_ci95, line.percent),
                "difference": change,
            }
        )
    seen = part.seen_in_training
    known = f" ({seen:,} of them read the same as one trained on)" if seen else ""
    if part.not_comparable:
        known += f"; tuned was {part.not_comparable} than zero-shot, so the two cannot be compared"
    return {
        "title": f"`{part.task}`, {part.part}, {part.examples:,} examples{known}:",
        "lines": lines,
    }


def _costs(bundle: Bundle) -> list[tuple[str, str]]:
    record, quantization = bundle.run.record, bundle.recipe.quantization
    bits = "4-bit" if quantization.load_in_4bit else "8-bit" if quantization.load_in_8bit else ""
    kind = f"{bits} ({quantization.bnb_4bit_quant_type})" if bits == "4-bit" else bits
    parameters, examples = record.parameters, record.examples
    rows = [
        ("trained parameters", f"{parameters.trainable:,} of {parameters.total:,}"),
        ("base in training", kind or "unquantised"),
        ("training examples", f"{examples['train']:,} (validation {examples['validation']:,})"),
        ("steps, epochs", f"{record.steps:,}, {record.epochs:.2f}"),
        ("training time", duration(record.wall_seconds)),
    ]
    if record.peak_memory_bytes:
        rows.append(("peak memory", memory(record.peak_memory_bytes)))
    size = sum(file.stat().st_size for file in bundle.folder.glob("*.safetensors"))
    return [*rows, ("weights in this repository", f"{size:,} bytes")]


def _commands(recipe: Recipe, repo_id: str) -> list[str]:
    words = [TEXT] if recipe.kind.has_labels else ["--question", QUESTION, "--context", CONTEXT]
    quoted = " ".join(word if word.startswith("--") else f'"{word}"' for word in words)
    return [
        f"llama-peft predict {shlex.quote(repo_id)} {quoted}",
        f"llama-eval run --model {shlex.quote(repo_id)}",
    ]


def _data(bundle: Bundle) -> list[str]:
    data = bundle.recipe.dataset
    name = bundle.hub_data
    if name:
        where = f"[{name}](https://huggingface.co/datasets/{name})"
        where += f" at revision {data.revision}" if data.revision else ""
    elif data.path == "tiny":
        where = "generated by `llama_peft`"
    else:
        where = "files of the author's, not on the Hub"
    record = bundle.run.record
    parts = ", ".join(f"{part} {count:,}" for part, count in record.examples.items())
    return [
        f"Data: {where}; {parts}; cut with seed {data.seed}.",
        f"Ids of each part (`split.json`): sha256 `{record.split_sha256}`.",
        f"Weights: sha256 `{record.weights_sha256}`.",
        f"Base: `{record.base_fingerprint}`.",
        *_measured_with(bundle),
    ]


def _measured_with(bundle: Bundle) -> list[str]:
    """The versions behind the numbers."""
    tuned = bundle.tuned
    if tuned is None:
        return []
    versions = ", ".join(f"{name} {version}" for name, version in tuned.versions.items())
    commit = f", llama_peft's commit `{tuned.git_hash}`" if tuned.git_hash else ""
    return [f"Measured {(tuned.date or '')[:10]} with {versions}{commit}."]


def _limits(bundle: Bundle) -> list[str]:
    recipe = bundle.recipe
    lines = []
    if bundle.comparison is None:
        lines.append("No number was measured.")
    elif min(part.examples for part in bundle.comparison.parts) < 1000:
        lines.append("Measured on few examples: read the intervals, not the decimals.")
    if recipe.quantization.load_in_4bit or recipe.quantization.load_in_8bit:
        bits = 4 if recipe.quantization.load_in_4bit else 8
        lines.append(
            f"Trained and measured on the base in {bits} bits; on the base as it is stored scores may differ; by how "
            "much was not measured."
        )
    lines.append("Other subjects, styles and languages than the data's were not measured.")
    if recipe.kind.has_labels:
        lines.append(
            f"Texts are cut after {recipe.train.max_length} tokens; every text gets one of the labels."
        )
    elif recipe.kind.head is not None:
        threshold = bundle.threshold
        limit = UNFITTED if threshold is None else threshold.no_answer_threshold
        lines.append(
            f"Answers are pieces of the passage, {recipe.eval.max_answer_length} tokens at most; one is given where "
            f"no-answer's probability is at most {limit:.4f}"
            + (" (not fitted)." if threshold is None else " (fitted on validation).")
        )
    else:
        lines.append(
            f"Writes {recipe.eval.max_new_tokens} tokens at most, and may write what the passage does not say; works with the "
            "prompt it was trained on, which the example shows."
        )
    return lines
