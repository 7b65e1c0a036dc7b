"""`python -m tests.rehearsal`: rehearse recipes on a modern and on an old GPU, and print what each takes.

The result is the table of the README's memory section, or with --variants that of the page about memory. The bases and rows of
recipes come from the folder beside the project; without it only variants are rehearsed. The exit code is 1 if a run would fail
on a GPU.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from llama_peft.rehearsal import Fault, Rehearsal, Request, rehearse
from llama_peft.rehearsal.device.cards import card_named
from llama_peft.rehearsal.report import size_of
from llama_peft.system.formatting import memory
from tests.rehearsal import recorded
from tests.rehearsal.recorded import Row
from tests.rehearsal.variants import BIG, VARIANTS, Variant, first_blocks
from tests.support.paths import ROOT, SHARED

CARDS = "4090", "t4"
"""One of each kind: with bfloat16, and without."""
JUDGED = "2060", "4050", "3050", "3060", "t4", "4090"
README, PAGE = ROOT / "README.md", ROOT / ".docs/pages/memory.md"
MADE_BY = {
    "rehearsal": "python -m tests.rehearsal --readme",
    "rehearsal_variants": "python -m tests.rehearsal --variants",
}
"""What is recorded, and the command that does it, which also marks the place of its table."""
END = "<!-- end -->"
LLAMA = SHARED / "llama-3.2-1b"
SQUAD = (
    f"dataset.path={SHARED / 'data/squad/squad_v2.json'}",
    "dataset.format=squad",
    "dataset.parts={train: train}",
    "dataset.validation_size=0.1",
)
SST2 = (
    f"dataset.path={SHARED / 'data/sst2/train.tsv'}",
    "dataset.format=tsv",
    "dataset.parts={train: train}",
    "dataset.columns={text: sentence, label: label}",
    "eval.splits=[test]",
)
RECIPES = {
    "squad": SQUAD,
    "squad-span": SQUAD,
    "squad-span-head": SQUAD,
    "sst2": SST2,
    "sst2-head": SST2,
    "gemma-squad": SQUAD,
    "gemma-squad-span": SQUAD,
    "gemma-sst2": SST2,
}


def request(asked: Variant, folder: Path) -> Request:
    """What is rehearsed: a variant on invented rows, or a recipe on its own, with the one tokenizer that is beside the project.

    folder: for the first blocks of the base of a variant.
    """
    if asked.base is not None:
        return Request(
            recipe=asked.recipe,
            settings=asked.settings,
            card=asked.card,
            base=first_blocks(asked.base, folder),
        )
    gemma = asked.recipe.startswith("gemma")
    return Request(
        recipe=asked.recipe,
        settings=(*RECIPES.get(asked.recipe, ()), *asked.settings),
        card=asked.card,
        base=None if gemma else str(LLAMA),
        tokenizer=str(LLAMA) if gemma else None,
    )


def against_estimates(found: list[Rehearsal]) -> Iterator[str]:
    """What the estimate says of the same rows beside what was held, as lines of a table."""
    yield "| recipe | rehearsed on | type | estimated | held at most | estimated / held |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for one in found:
        said, held = sum(one.estimated.values()), one.training_peak
        named = " ".join([one.recipe, *one.settings])
        yield f"| {named} | {one.card} | {one.dtype} | {memory(said)} | {memory(held)} | {said / held:.3f} |"


def markdown(found: Sequence[Rehearsal], cards: Sequence[str]) -> list[str]:
    """Return the lines of a table: what each run takes, and which cards hold it."""
    titles = [card_named(name) for name in cards]
    head = ["recipe", "rehearsed on", "type", "largest batch", "peak", "kernels a step"]
    head += [f"{card.title} ({card.memory >> 30} GB)" for card in titles]
    lines = [_cells(head), _cells(["---"] * len(head))]
    for one in found:
        step = max(one.steps, key=lambda step: step.peak)
        same = [card.has_bfloat16 == card_named(one.card).has_bfloat16 for card in titles]
        held = ["yes" if card.holds(one.peak) else "no" for card in titles]
        lines.append(
            _cells(
                [
                    " ".join([one.recipe, *one.settings]),
                    card_named(one.card).title,
                    one.dtype,
                    size_of(step),
                    memory(one.peak),
                    f"{sum(step.kernels.values()):,}",
                    *(word if fair else "-" for word, fair in zip(held, same, strict=True)),
                ]
            )
        )
    return lines


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def variants_table(rows: Sequence[Row]) -> Iterator[str]:
    """The variants as lines of a table."""
    yield "| variant | rehearsed on | type | peak | estimated / held | kernels a step | attention |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        named = " ".join([row["recipe"], *row["settings"]])
        if row["base"] == BIG:
            named += f" ({BIG.rpartition('/')[2]})"
        ratio = f"{row['estimated'] / row['held']:.3f}"
        cells = named, card_named(row["card"]).title, row["dtype"], memory(row["peak"]), ratio
        yield f"| {' | '.join(cells)} | {row['kernels']:,} | {', '.join(row['attention'])} |"


def write_into(page: Path, table: str, mark: str) -> None:
    """Put a table between its mark and the next end in a page. Other tables have the same end."""
    before, rest = page.read_text("utf-8").split(f"<!-- {mark} -->")
    after = rest.split(END, 1)[1]
    page.write_text(f"{before}<!-- {mark} -->\n{table}\n{END}{after}", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.rehearsal", description=__doc__)
    parser.add_argument("--recipes", default=",".join(RECIPES), help="names with commas")
    parser.add_argument("--cards", default=",".join(CARDS), help="names with commas")
    parser.add_argument("--jobs", type=int, default=2, help="how many rehearsals run at once")
    parser.add_argument("--readme", action="store_true", help="also put the table into README.md")
    parser.add_argument(
        "--variants", action="store_true", help="rehearse the variants, record them, and show them"
    )
    parser.add_argument(
        "--only",
        metavar="WORD",
        default="",
        help="rehearse only the variants with this word, and keep what is recorded of the others; the sum of the code stays too",
    )
    parser.add_argument(
        "--estimate", action="store_true", help="compare the estimate of a training with each"
    )
    parser.add_argument("settings", nargs="*", help="section.key=value")
    arguments = parser.parse_intermixed_args()
    if not LLAMA.is_dir() and not arguments.variants:
        print(f"nothing is rehearsed: {LLAMA}, the shape of the base, is not here")
        return 0
    started = time.monotonic()
    settings = tuple(arguments.settings)
    asked = (
        [one for one in VARIANTS if arguments.only in " ".join([one.recipe, *one.settings])]
        if arguments.variants
        else [
            Variant(recipe, settings, card)
            for recipe in arguments.recipes.split(",")
            for card in arguments.cards.split(",")
        ]
    )
    named = list(rehearsed(asked, arguments.jobs))
    rows = [recorded.row(one) for one in named]
    complete = len(named) == len(asked)
    code = None
    if arguments.variants and complete and len(asked) < len(VARIANTS):
        rows, code = recorded.among("rehearsal_variants", rows, VARIANTS)
    table = "\n".join(variants_table(rows) if arguments.variants else markdown(named, JUDGED))
    print(table)
    if arguments.variants and complete:
        recorded.write("rehearsal_variants", rows, code)
        write_into(PAGE, table, MADE_BY["rehearsal_variants"])
    elif arguments.readme and complete:
        recorded.write("rehearsal", rows)
        write_into(README, table, MADE_BY["rehearsal"])
    if arguments.estimate:
        print("", *against_estimates(named), sep="\n")
    print(f"{len(named)} of {len(asked)} rehearsed in {time.monotonic() - started:.0f} s")
    return int(not complete)


def rehearsed(asked: Sequence[Variant], jobs: int) -> Iterator[Rehearsal]:
    """Yield what went through, as it was asked for, and print what did not."""
    with TemporaryDirectory() as name:
        found = rehearse([request(one, Path(name)) for one in asked], jobs)
    for variant, one in zip(asked, found, strict=True):
        if isinstance(one, Fault):
            print(f"{variant.recipe} {' '.join(variant.settings)} on {variant.card}: {one}")
        else:
            yield replace(one, settings=variant.settings, base=variant.base or one.base)


if __name__ == "__main__":
    sys.exit(main())
