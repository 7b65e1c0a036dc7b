"""`make faults`: inflict faults, print those that are not right, a table by category, and one line."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TQDM_DISABLE"] = "1"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="inflict only the faults of the test suite"
    )
    parser.add_argument("--only", help="inflict the faults of one category")
    parser.add_argument(
        "--messages", type=Path, help="also write every fault and its message to this file"
    )
    parser.add_argument(
        "--no-stock", action="store_true", help="do not compare with the stock Trainer"
    )
    arguments = parser.parse_args()
    from tests.faults import stock
    from tests.faults.count import Tally, every, inflict
    from tests.faults.shop import Shop

    started = time.monotonic()
    chosen = [
        fault for fault in every(not arguments.quick) if arguments.only in (None, fault.category)
    ]
    with tempfile.TemporaryDirectory() as folder:
        shop = Shop(Path(folder))
        tally = Tally()
        for number, fault in enumerate(chosen):
            seen = inflict(shop, fault, number)
            tally.add(fault, seen)
            if seen.verdict != "right":
                print(f"{seen.verdict}: {fault.category}: {fault.name}: {seen.message}", flush=True)
        print(tally.table())
        if not (arguments.quick or arguments.only or arguments.no_stock):
            for name, counts in stock.count(shop, 20).items():
                print(f"stock Trainer, {name}: " + ", ".join(f"{v} {k}" for k, v in counts.items()))
    if arguments.messages:
        arguments.messages.write_text(tally.messages(), "utf-8")
    print(f"{tally.line()} in {time.monotonic() - started:.0f} s")
    return 0 if tally.all_right else 1


if __name__ == "__main__":
    sys.exit(main())
