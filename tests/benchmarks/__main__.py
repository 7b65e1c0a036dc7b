"""`make bench`: measure, print the tables, write `results/<name>.json`."""

import argparse
import os
import tempfile
from pathlib import Path

# One thread: with busy cores two can be ten times slower. Both are set before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    arguments = _arguments()
    import torch
    from rich.console import Console
    from transformers.utils import logging

    from tests.rehearsal.__main__ import write_into

    from . import (
        convergence,
        decoding,
        features,
        frozen_blocks,
        layers,
        lm_eval,
        material,
        measure,
        rows,
        short_rows,
        table,
        training,
    )  # fmt: skip
    from .rows import data as data_rows

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console = Console(width=110)
    if arguments.only == "convergence":
        found = convergence.run(arguments.examples, arguments.seeds)
        console.print(table.convergence(found), f"wrote {measure.write(found, arguments.output)}")
        return
    if arguments.only == "data_rows":
        found = data_rows.run(data_rows.SIZES)
        console.print(table.data_rows(found), f"wrote {measure.write(found, arguments.output)}")
        return
    if arguments.only == "layers":
        found = layers.run(4 * arguments.sentences, arguments.seeds)
        console.print(table.layers(found), f"wrote {measure.write(found, arguments.output)}")
        return
    if arguments.only == "rows":
        found = rows.run(dict.fromkeys(rows.SIZES, arguments.rows) if arguments.rows else None)
        console.print(table.rows(found), f"wrote {measure.write(found, arguments.output)}")
        if arguments.page:
            write_into(table.ROWS_PAGE, table.rows_markdown(found), table.ROWS_MARK)
        return
    if arguments.only == "lm_eval" and not arguments.lm_eval:
        raise SystemExit(
            "--only lm_eval needs --lm-eval PYTHON, of an environment with lm-eval[hf]"
        )
    count = arguments.questions or (1400 if torch.cuda.is_available() else 140)
    drawn = material.questions(count)
    with tempfile.TemporaryDirectory() as folder:
        base = material.random_base(Path(folder))
        if arguments.only == "lm_eval":
            found = lm_eval.run(base, drawn, arguments.repeats, arguments.lm_eval)
            path = measure.write(found, arguments.output)
            console.print(table.ratios(found), found["checks"], found["scores"], f"wrote {path}")
            return
        if arguments.only in (None, "features"):
            found = features.run(base, arguments.sentences, arguments.repeats)
            path = measure.write(found, arguments.output)
            console.print(table.speed(found), table.ratios(found), f"wrote {path}")
        if arguments.only in (None, "frozen_blocks"):
            found = frozen_blocks.run(base, arguments.sentences // 2, arguments.repeats)
            path = measure.write(found, arguments.output)
            console.print(table.speed(found), table.ratios(found), f"wrote {path}")
        for task in (short_rows.classify(128), short_rows.spans(32)):
            if arguments.only in (None, task.name):
                found = short_rows.run(base, task, arguments.repeats)
                path = measure.write(found, arguments.output / "short_rows")
                console.print(table.speed(found), table.ratios(found), f"wrote {path}")
        for name, benchmark in {"decoding": decoding, "training": training}.items():
            if arguments.only in (None, name):
                found = benchmark.run(base, drawn, arguments.repeats, arguments.row_tokens)
                path = measure.write(found, arguments.output)
                console.print(table.speed(found), table.ratios(found), f"wrote {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        choices=[
            *("training", "decoding", "features", "layers", "convergence", "lm_eval"),
            *("frozen_blocks", "classify", "span", "rows", "data_rows"),
        ],
    )
    parser.add_argument("--lm-eval", help="Python of an environment with lm-eval[hf]")
    parser.add_argument("--questions", type=int, help="default: 140 on a CPU, 1400 on CUDA")
    parser.add_argument(
        "--sentences", type=int, default=2000, help="features: how many; layers: four times as many"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--row-tokens", type=int, help="tokens a tree row holds")
    parser.add_argument("--examples", type=int, default=1600, help="convergence: examples seen")
    parser.add_argument(
        "--rows", type=int, nargs="+", help="rows: how many; default: up to a million"
    )
    parser.add_argument(
        "--page", action="store_true", help="rows: also put the table into its page"
    )
    parser.add_argument("--seeds", type=int, default=3, help="convergence, layers: how many")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
