"""The README's tables about GPUs, from the results of all cards."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.rehearsal.__main__ import README, write_into

from .memory import CAPS

MADE_BY = "python -m tests.benchmarks.gpu --readme"
NOTHING = "Not yet measured on a GPU."
_SPEED = ("training", "unsloth", "heads", "decoding", "vllm")
Found = Mapping[str, Any]


def write(folder: Path) -> None:
    """Put the tables into the README."""
    write_into(README, text(folder), MADE_BY)


def text(folder: Path) -> str:
    """The tables of all results in a folder."""
    cards = [json.loads(path.read_text("utf-8"))["parts"] for path in sorted(folder.glob("*.json"))]
    gpus = [
        parts for parts in cards if any("gpu" in one.get("hardware", {}) for one in parts.values())
    ]
    return "\n\n".join("\n".join(_card(parts)) for parts in gpus) or NOTHING


def _card(parts: Found) -> Iterator[str]:
    facts = next(one for one in parts.values() if "hardware" in one)
    hardware, versions = facts["hardware"], facts["versions"]
    yield (
        f"**{hardware['gpu']}**, driver {hardware['driver']}, CUDA {hardware['cuda']}, "
        + ", ".join(
            f"{name} {versions[name]}" for name in ("torch", "transformers", "trl", "bitsandbytes")
        )
        + f", {facts['date'][:10]}, commit {facts['commit']}"
    )
    if "flop_per_second" in parts.get("ceiling", {}):
        top = parts["ceiling"]
        yield (
            f"; a product of {top['size']} x {top['size']} numbers in {top['dtype']} reaches "
            f"{top['flop_per_second']['median'] / 1e12:.0f} TFLOP/s."
        )
    for block in (_speed(parts), _memory(parts), _predicted(parts), _correct(parts)):
        if lines := list(block):
            yield from ("", *lines)
    if left := [
        f"{name} ({one['ended']})" for name, one in parts.items() if one["ended"] != "finished"
    ]:
        yield from ("", f"Not complete: {', '.join(left)}.")


def _speed(parts: Found) -> Iterator[str]:
    rows = [(name, row) for name in _SPEED for row in parts.get(name, {}).get("rows", [])]
    if rows:
        yield from _head("work", "examples/s", "tokens/s", "ms a step", "of the ceiling", "peak GB")
    for name, row in rows:
        if "examples_per_second" not in row:
            yield _cells([f"{name}: {row['name']}", row["failure"], *[""] * 4])
            continue
        steps, share = row.get("optimizer_steps"), row.get("share_of_ceiling")
        yield _cells(
            [
                f"{name}: {row['name']}",
                f"{row['examples_per_second']['median']:,.0f}",
                f"{row['tokens_per_second']['median']:,.0f}",
                f"{1000 * row['wall_seconds']['median'] / steps:,.0f}" if steps else "",
                f"{share:.0%}" if share else "",
                f"{row['peak_bytes']['median'] / 1e9:.1f}",
            ]
        )


def _memory(parts: Found) -> Iterator[str]:
    rows = parts.get("memory", {}).get("rows", [])
    if rows:
        yield from _head("peak GB, fullest batch", "whole card", *(f"{cap} GB" for cap in CAPS))
    for name in dict.fromkeys(row["name"] for row in rows):
        found = {row["cap"]: row for row in rows if row["name"] == name}
        yield _cells([name, *(_held(found.get(cap)) for cap in (None, *CAPS))])


def _held(row: Found | None) -> str:
    if row is None:
        return ""
    if "failure" in row:
        return "no" if row["failure"].startswith("out of memory") else row["failure"]
    split = f" in {row['pieces']} pieces" if row.get("pieces", 1) > 1 else ""
    return f"{row['peak_bytes'] / 1e9:.1f}{split}"


def _predicted(parts: Found) -> Iterator[str]:
    rows = parts.get("predicted", {}).get("rows", [])
    if rows:
        yield from _head("GB", "measured", "estimate", "rehearsal")
    for row in rows:
        measured = row["peak_bytes"]
        predictions = (
            _against(row[f"{who}_bytes"], measured) for who in ("estimated", "rehearsed")
        )
        yield _cells([row["name"], _gb(measured), *predictions])


def _against(predicted: int | None, measured: int | None) -> str:
    if not predicted or not measured:
        return _gb(predicted)
    return f"{_gb(predicted)} ({predicted / measured - 1:+.0%})"


def _gb(size: int | None) -> str:
    return f"{size / 1e9:.2f}" if size else "-"


def _correct(parts: Found) -> Iterator[str]:
    rows = parts.get("correct", {}).get("rows", [])
    if rows:
        wrong = [row["name"] for row in rows if not row["right"]]
        yield f"{len(rows) - len(wrong)} of {len(rows)} checks of 4-bit training hold" + (
            f"; not: {', '.join(wrong)}." if wrong else "."
        )


def _head(*words: str) -> Iterator[str]:
    yield _cells(words)
    yield _cells(["---", *["---:"] * (len(words) - 1)])


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
