"""Results as tables for a terminal."""

from typing import Any

from rich.table import Table

from tests.support.paths import ROOT

ROWS_OF = {"classification": "texts", "generative_qa": "questions"}
ROWS_PAGE, ROWS_MARK = (
    ROOT / ".docs/pages/memory.md",
    "python -m tests.benchmarks --only rows --page",
)
"""Where the table of rows is, and the command that makes it."""


def speed(found: dict[str, Any]) -> Table:
    """A row a contestant: median, and the least and most of the repeats."""
    what = "questions" if "questions" in found else "sentences"
    table = Table(title=f"{found['name']}: {found[what]} {what}, {found['precision']}")
    table.add_column("contestant")
    heads = ("examples/s", "CPU s (min-max)", "wall s", "tokens", "steps", "peak GB")
    for head in heads:
        table.add_column(head, justify="right")
    for row in found["rows"]:
        cpu, wall = row["cpu_seconds"], row["wall_seconds"]
        table.add_row(
            row["name"],
            f"{row['examples_per_second']['median']:.2f}",
            f"{cpu['median']:.1f} ({cpu['min']:.1f}-{cpu['max']:.1f})",
            f"{wall['median']:.1f}",
            f"{row['tokens']:,}",
            str(row.get("optimizer_steps", "")),
            f"{row['peak_bytes']['median'] / 1e9:.2f}",
        )
    return table


def ratios(found: dict[str, Any]) -> Table:
    """How many times faster, with the spread over the turns."""
    table = Table()
    for head in ("ratio", "median", "min", "max"):
        table.add_column(head, justify="left" if head == "ratio" else "right")
    for name, values in found["ratio_spreads"].items():
        table.add_row(name, *(f"{values[key]:.2f}" for key in ("median", "min", "max")))
    return table


def convergence(found: dict[str, Any]) -> Table:
    """Validation losses of each layout, seed by seed."""
    table = Table(title=f"validation loss after {found['examples_seen']} examples")
    table.add_column("layout")
    for head in ("tokens", "fewer", "steps", "mean loss", "min-max over seeds", "against plain"):
        table.add_column(head, justify="right")
    for row in found["rows"]:
        loss = row["final_loss"]
        table.add_row(
            row["name"],
            f"{row['tokens']:,}",
            f"{row['times_fewer_tokens']:.2f}",
            str(row["optimizer_steps"]),
            f"{loss['mean']:.4f}",
            f"{loss['min']:.4f}-{loss['max']:.4f}",
            f"{row['loss_difference']:+.4f}",
        )
    return table


def layers(found: dict[str, Any]) -> Table:
    """Validation accuracy of each choice, seed by seed."""
    table = Table(
        title=f"head alone on {found['train_rows']} rows: validation accuracy, seed by seed"
    )
    for head in ("base", "choice", "accuracy", "layer and pooling"):
        table.add_column(head)
    for row in found["rows"]:
        table.add_row(
            row["base"],
            row["choice"],
            "  ".join(f"{seed['accuracy']:.4f}" for seed in row["seeds"]),
            "  ".join(f"{seed['layer']} {seed['pooling']}" for seed in row["seeds"]),
        )
    return table


def rows(found: dict[str, Any]) -> Table:
    """Time and memory of each command by the rows of its file, and against the fewest of its kind."""
    table = Table(title="by rows: CPU time and the highest memory of a command")
    for head in (
        "command",
        "rows",
        "CPU s",
        "ms a row",
        "peak MB",
        "against the fewest rows",
        "bytes a row",
    ):
        table.add_column(head, justify="left" if head == "command" else "right")
    fewest: dict[str, dict[str, Any]] = {}
    for row in found["rows"]:
        name, _, _ = row["name"].rpartition("/")
        least = fewest.setdefault(name, row)
        above, seconds = (row[key] - row[f"base_{key}"] for key in ("peak_bytes", "cpu_seconds"))
        table.add_row(
            *(name, f"{row['rows']:,}", f"{row['cpu_seconds']:.1f}"),
            f"{1000 * seconds / row['rows']:.2f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['peak_bytes'] / least['peak_bytes']:.2f}",
            f"{above / row['rows']:,.0f}",
        )
    return table


def rows_markdown(found: dict[str, Any]) -> str:
    """What `rows` shows, for a page."""
    lines = [
        "| what | rows | peak memory | above the process | against the fewest rows | a row |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    fewest: dict[str, dict[str, Any]] = {}
    for row in found["rows"]:
        step, kind, _ = row["name"].split("/")
        least = fewest.setdefault(f"{step}/{kind}", row)
        above, seconds = (row[key] - row[f"base_{key}"] for key in ("peak_bytes", "cpu_seconds"))
        cells = (
            f"{step}, {ROWS_OF[kind]}",
            f"{row['rows']:,}",
            f"{row['peak_bytes'] / 1e6:,.0f} MB",
            f"{above / 1e6:,.0f} MB",
            f"{row['peak_bytes'] / least['peak_bytes']:.2f}",
            f"{1000 * seconds / row['rows']:.2f} ms",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def data_rows(found: dict[str, Any]) -> Table:
    """Peak memory and time by the number of rows."""
    table = Table(
        title="data before the first step: reading and sums (validate), token ids (train)"
    )
    for head in ("data, step", "rows", "peak, MB", "bytes a row", "CPU, µs a row"):
        table.add_column(head, justify="left" if head == "data, step" else "right")
    for row in found["rows"]:
        table.add_row(
            row["name"],
            f"{row['rows']:,}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{row['bytes_a_row']:,}",
            f"{row['microseconds_a_row']:,.0f}",
        )
    return table
