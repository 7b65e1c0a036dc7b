"""The card of a pushed run: measured numbers, what they cost, and how to load it, through one template.

Every number comes from a file of the bundle: results.json, comparison.json, training.json. What was not measured is not claimed.
"""

import shlex
from pathlib import Path
from typing import Any

from llama_peft.data import SPLIT_SUM
from llama_peft.errors import UserError
from llama_peft.export import licences
from llama_peft.export import load_snippet as plain
from llama_peft.export.card_metadata import Comparison, metadata
from llama_peft.export.stage import CONTEXT, QUESTION, TEXT, Bundle, read_ids, sample
from llama_peft.recipe import Recipe
from llama_peft.run_folder.measured import (
    COMPARISON,
    RESULTS,
    TUNED,
    check_own,
    command,
    damaged,
    is_measured,
    values,
)
from llama_peft.run_folder.weights import THRESHOLD, no_answer_threshold
from llama_peft.system.files import sha256
from llama_peft.system.formatting import duration, memory, number_with_interval
from llama_peft.tokens.prompts import PromptEncoder

_TEMPLATE = Path(__file__).with_name("card.md.jinja")


def render(
    bundle: Bundle, repo_id: str, encoder: PromptEncoder, run: Path, reader: str | None
) -> str:
    """The whole card: YAML metadata, then Markdown. `reader` is as in `plain`. Raises UserError where results of the run
    have no comparison, or one of other results.
    """
    import yaml
    from jinja2 import Environment, StrictUndefined

    recipe = bundle.recipe
    parts = read_comparison(run)
    duties = licences.duties(recipe.model.model_name_or_path)
    threshold = _threshold(bundle.folder)
    prompt = encoder.tokenizer.decode(read_ids(encoder, recipe, sample(recipe)[0]))
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    body = environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        name=repo_id.split("/")[-1],
        what=_what(recipe),
        built_with=duties.built_with if duties else "",
        parts=[_shown(part) for part in parts],
        has_percent=any(line["percent"] for part in parts for line in part["metrics"]),
        costs=_costs(bundle),
        commands=_commands(recipe, repo_id),
        threshold=threshold,
        plain=plain.lines(recipe, repo_id, bundle.commit, reader, prompt, encoder),
        plain_says=plain.says(recipe, bundle.commit, reader),
        data=_data(bundle),
        limits=_limits(bundle, parts, threshold),
        licence=duties.says if duties else "",
    )
    front = yaml.safe_dump(
        metadata(bundle, repo_id, parts), sort_keys=False, allow_unicode=True, width=1000
    )
    return f"---\n{front}---\n\n{body}"


def read_comparison(run: Path) -> list[Comparison]:
    """The measured parts. Empty where not both systems were measured; raises UserError where results are of other weights, or
    have no comparison of theirs.
    """
    if not is_measured(run):
        return []
    check_own(run)
    again = f"make it with: {command(run, COMPARISON)}"
    if not (run / COMPARISON).is_file():
        raise UserError(f"{run}: {COMPARISON} is missing; {again}")
    content = values(run, COMPARISON)
    try:
        sums, parts = content["results_sha256"], list(content["parts"])
    except (KeyError, TypeError) as error:
        raise damaged(run, COMPARISON, error) from None
    if sums != {Path(name).parent.name: sha256(run / name) for name in RESULTS}:
        raise UserError(f"{run / COMPARISON}: made of other results than are there now; {again}")
    return parts


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


def _shown(part: Comparison) -> dict[str, Any]:
    lines = []
    for line in part["metrics"]:
        percent = line["percent"]
        change = number_with_interval(
            line.get("difference"), line.get("difference_ci95"), percent, "+"
        )
        if "p" in line:
            change += f", p = {line['p']:.3f}"
        lines.append(
            {
                "name": line["name"],
                "zero_shot": number_with_interval(
                    line["zero_shot"], line["zero_shot_ci95"], percent
                ),
                "tuned": number_with_interval(line["tuned"], line["tuned_ci95"], percent),
                "difference": change,
            }
        )
    seen = part.get("seen_in_training")
    known = f" ({seen:,} of them read the same as one trained on)" if seen else ""
    if why := part.get("not_comparable"):
        known += f"; tuned was {why} than zero-shot, so there is no difference"
    return {
        "title": f"`{part['task']}`, {part['part']}, {part['examples']:,} examples{known}:",
        "lines": lines,
    }


def _costs(bundle: Bundle) -> list[tuple[str, str]]:
    facts, recipe = bundle.facts, bundle.recipe
    parameters, quantization = facts["parameters"], recipe.quantization
    bits = "4-bit" if quantization.load_in_4bit else "8-bit" if quantization.load_in_8bit else ""
    kind = f"{bits} ({quantization.bnb_4bit_quant_type})" if bits == "4-bit" else bits
    examples = facts["examples"]
    rows = [
        ("trained parameters", f"{parameters['trainable']:,} of {parameters['total']:,}"),
        ("base in training", kind or "unquantised"),
        ("training examples", f"{examples['train']:,} (validation {examples['validation']:,})"),
        ("steps, epochs", f"{facts['steps']:,}, {facts['epochs']:.2f}"),
        ("training time", duration(facts["wall_seconds"])),
    ]
    if facts.get("peak_memory_bytes"):
        rows.append(("peak memory", memory(facts["peak_memory_bytes"])))
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
    examples = bundle.facts["examples"]
    parts = ", ".join(f"{part} {count:,}" for part, count in examples.items())
    return [
        f"Data: {where}; {parts}; cut with seed {data.seed}.",
        f"Ids of each part (`split.json`): sha256 `{bundle.facts[SPLIT_SUM]}`.",
        f"Weights: sha256 `{next(v for k, v in bundle.facts['files'].items() if k.endswith('.safetensors'))}`.",
        f"Base: `{bundle.facts['base_fingerprint']}`.",
        *_measured_with(bundle),
    ]


def _measured_with(bundle: Bundle) -> list[str]:
    """The versions behind the numbers."""
    if not is_measured(bundle.folder):
        return []
    content = values(bundle.folder, TUNED)
    versions = ", ".join(
        f"{name} {version}" for name, version in content.get("versions", {}).items()
    )
    commit = f", llama_peft's commit `{content['git_hash']}`" if content.get("git_hash") else ""
    return [f"Measured {content['date'][:10]} with {versions}{commit}."]


def _threshold(folder: Path) -> float | None:
    return no_answer_threshold(folder) if (folder / THRESHOLD).is_file() else None


def _limits(bundle: Bundle, parts: list[Comparison], threshold: float | None) -> list[str]:
    recipe = bundle.recipe
    lines = []
    if not parts:
        lines.append("No number was measured.")
    elif min(part["examples"] for part in parts) < 1000:
        lines.append("Measured on few examples: read the intervals, not the decimals.")
    if recipe.quantization.load_in_4bit or recipe.quantization.load_in_8bit:
        bits = 4 if recipe.quantization.load_in_4bit else 8
        lines.append(
            f"Trained and measured on the base in {bits} bits; on the base as it is stored scores may differ; by how "
            "much was not measured."
        )
    lines.append("Other subjects, styles and languages than the data's were not measured.")
    if recipe.task == "classification":
        lines.append(
            f"Texts are cut after {recipe.train.max_length} tokens; every text gets one of the labels."
        )
    elif recipe.task == "extractive_qa":
        lines.append(
            f"Answers are pieces of the passage, {recipe.eval.max_answer_length} tokens at most; one is given where "
            f"no-answer's probability is at most {0.5 if threshold is None else threshold:.4f}"
            + (" (not fitted)." if threshold is None else " (fitted on validation).")
        )
    else:
        lines.append(
            f"Writes {recipe.eval.max_new_tokens} tokens at most, and may write what the passage does not say; works with the "
            "prompt it was trained on, which the example shows."
        )
    return lines
