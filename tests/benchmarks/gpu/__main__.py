"""`make bench-gpu`: measure on the GPU of this machine, write the results, or make the README's table of them."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BASE = "meta-llama/Llama-3.2-1B"
"""That of the recipes."""


def main() -> None:
    arguments = _arguments()
    if arguments.readme:
        from . import readme

        readme.write(arguments.output)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if Path(arguments.base).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    if arguments.only == ["unsloth"] and importlib.util.find_spec("unsloth"):
        importlib.import_module("unsloth")  # it asks to be first
    with tempfile.TemporaryDirectory() as folder:
        _measure(arguments, Path(folder))


def _measure(arguments: argparse.Namespace, folder: Path) -> None:
    import torch
    from transformers.utils import logging

    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # two busy cores can be ten times slower than one
    from . import parts
    from .setting import LARGE, SMALL, Setting, base_of

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    amount = LARGE if torch.cuda.is_available() else SMALL
    path = arguments.output / f"{parts.card()}.json"
    setting = Setting(
        base=base_of(arguments.base, folder),
        amount=amount._replace(
            **{key: value for key in amount._fields if (value := getattr(arguments, key))}
        ),
        squad=arguments.data,
        sst2=arguments.sentences_file,
        rehearsal=arguments.rehearsal,
        done=json.loads(path.read_text("utf-8"))["parts"] if path.is_file() else {},
    )
    names = arguments.only or list(parts.PARTS)
    for line in parts.run(setting, names, arguments.minutes, path):
        print(line, flush=True)
    print(f"wrote {path}", flush=True)
    if not arguments.only:
        for name in parts.FOREIGN:
            _in_a_process(name, setting.base.folder)


def _in_a_process(name: str, base: Path) -> None:
    """Measure a library of others on the same weights, if it is installed."""
    if importlib.util.find_spec(name) is None:
        print(f"{name} is not installed")
        return
    words = [sys.executable, "-m", "tests.benchmarks.gpu", *sys.argv[1:]]
    subprocess.run([*words, "--base", str(base), "--only", name, "--minutes", "3"])


def _arguments() -> argparse.Namespace:
    from tests.benchmarks.gpu import RESULTS
    from tests.support.paths import SHARED

    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--base", default=BASE, help="a folder with config and tokenizer, or a name on the Hub"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=SHARED / "data/squad/squad_v2.json",
        help="SQuAD's file; without it passages are generated",
    )
    parser.add_argument(
        "--sentences-file",
        type=Path,
        default=SHARED / "data/sst2/train.tsv",
        help="SST-2's file; without it reviews are generated",
    )
    parser.add_argument(
        "--rehearsal",
        type=Path,
        default=RESULTS.parent / "rehearsal",
        help="what `llama-peft rehearse NAME --json FILE` wrote: a file, or a folder of such files",
    )
    parser.add_argument(
        "--only",
        action="append",
        help="a part: ceiling, correct, training, heads, decoding, memory, predicted, unsloth, vllm",
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="what all parts together may take"
    )
    parser.add_argument("--questions", type=int, help="default: 280, without a GPU 6")
    parser.add_argument("--sentences", type=int, help="default: 2048, without a GPU 48")
    parser.add_argument("--repeats", type=int, help="default: 3, without a GPU 1")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--readme", action="store_true", help="only write the README's table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
