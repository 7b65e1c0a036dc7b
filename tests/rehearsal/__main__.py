"""`python -m tests.rehearsal`: rehearse recipes on a modern and on an old GPU, and print what each takes.

The result is the table of the README's memory section. Bases and real rows come from the folder beside the project; without
it nothing is rehearsed. The exit code is 1 if a run would fail on a GPU.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from llama_peft.rehearsal import Fault, Rehearsal, Request, rehearse
from llama_peft.rehearsal.report import gb, markdown
from tests.support.paths import ROOT, SHARED

CARDS = "4090", "t4"
"""One of each kind: with bfloat16, and without."""
JUDGED = "2060", "4050", "3050", "3060", "t4", "4090"
MARKS = "<!-- python -m tests.rehearsal --readme -->", "<!-- end -->"
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


def requests(recipes: list[str], cards: list[str], settings: list[str]) -> Iterator[Request]:
    """Every recipe on every card. Gemma's tokenizer is not beside the project, so Llama's stands in for it."""
    for recipe in recipes:
        for card in cards:
            gemma = recipe.startswith("gemma")
            yield Request(
                recipe=recipe,
                settings=(*RECIPES.get(recipe, ()), *settings),
                card=card,
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
        yield f"| {named} | {one.card} | {one.dtype} | {gb(said)} | {gb(held)} | {said / held:.3f} |"


def write_into_readme(table: str, marks: tuple[str, str] = MARKS) -> None:
    """Put the table between its marks in the README. Other tables have the same last mark."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text("utf-8").split(marks[0])
    after = rest.split(marks[1], 1)[1]
    readme.write_text(f"{before}{marks[0]}\n{table}\n{marks[1]}{after}", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.rehearsal", description=__doc__)
    parser.add_argument("--recipes", default=",".join(RECIPES), help="names with commas")
    parser.add_argument("--cards", default=",".join(CARDS), help="names with commas")
    parser.add_argument("--jobs", type=int, default=2, help="how many rehearsals run at once")
    parser.add_argument("--readme", action="store_true", help="also put the table into README.md")
    parser.add_argument(
        "--estimate", action="store_true", help="compare the estimate of a training with each"
    )
    parser.add_argument("settings", nargs="*", help="section.key=value")
    arguments = parser.parse_intermixed_args()
    if not LLAMA.is_dir():
        print(f"nothing is rehearsed: {LLAMA}, the shape of the base, is not here")
        return 0
    started = time.monotonic()
    asked = list(
        requests(arguments.recipes.split(","), arguments.cards.split(","), arguments.settings)
    )
    found = rehearse(asked, arguments.jobs)
    for request, one in zip(asked, found, strict=True):
        if isinstance(one, Fault):
            print(f"{request.recipe} on {request.card}: {one}")
    named = [
        replace(one, settings=tuple(arguments.settings))
        for one in found
        if isinstance(one, Rehearsal)
    ]
    table = "\n".join(markdown(named, JUDGED))
    print(table)
    if arguments.readme:
        write_into_readme(table)
    if arguments.estimate:
        print("", *against_estimates(named), sep="\n")
    print(f"{len(named)} of {len(asked)} rehearsed in {time.monotonic() - started:.0f} s")
    return int(len(named) < len(asked))


if __name__ == "__main__":
    sys.exit(main())
