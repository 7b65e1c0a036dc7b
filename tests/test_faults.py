"""Some of `make faults`: faults on a user's machine, inflicted on real processes and counted.

`make faults ARGS=--quick` inflicts all the cheap ones.
"""

from pathlib import Path

import pytest

from tests.faults.count import Tally, every, inflict
from tests.faults.shop import Fault, Seen, Shop

CATEGORIES = sorted({fault.category for fault in every(full=True)})

PER_CATEGORY = 4


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.mark.parametrize("category", CATEGORIES)
def test_nothing_is_lost_wrong_or_a_traceback(shop: Shop, category: str) -> None:
    tally = Tally()
    cheap = [fault for fault in every(full=False) if fault.category == category]
    for number, fault in enumerate(cheap[:: -(-len(cheap) // PER_CATEGORY)]):
        tally.add(fault, inflict(shop, fault, number))
    assert tally.seen and tally.all_right, tally.messages()


def test_the_full_set_is_large() -> None:
    """There are at least 400 faults in 12 categories, 250 of them kills at random moments."""
    faults = list(every(full=True))
    at_random = [fault for fault in faults if fault.category == "death at random"]
    assert len(CATEGORIES) >= 12 and len(at_random) >= 250
    assert len(faults) - len(at_random) >= 150
    names = [(fault.category, fault.name) for fault in faults]
    assert len(set(names)) == len(names)


def test_what_is_not_right_is_counted(shop: Shop, tmp_path: Path) -> None:
    """The harness itself: a wrong number, a traceback and a crash of a fault are each counted."""
    tally = Tally()
    verdicts = {
        "taken": lambda shop, folder: shop.refused(shop.run(["params", "tiny"]), folder),
        "shown": lambda shop, folder: shop.refused(
            shop.run(["params", "tiny"], hook=lambda: 1 / 0), folder
        ),
        "crashed": lambda shop, folder: 1 / 0,
        "other bits": lambda shop, folder: Seen(
            "right" if shop.same("classification + LoRA", _other(shop, folder)) else "wrong"
        ),
    }
    for number, (name, fault) in enumerate(verdicts.items()):
        tally.add(Fault("x", name, fault), inflict(shop, Fault("x", name, fault), 900 + number))
    assert [seen.verdict for _, seen in tally.seen] == ["wrong", "traceback", "traceback", "wrong"]
    assert not tally.all_right
    assert tally.line().endswith("0 lost, 2 silently wrong, 2 tracebacks, 0 harm, 0 over the limit")


def _other(shop: Shop, folder: Path) -> Path:
    """A run with another seed."""
    recipe = shop.recipe("classification + LoRA", folder, train={"seed": 7})
    assert shop.run(shop.write(recipe, folder)).code == 0
    return folder
