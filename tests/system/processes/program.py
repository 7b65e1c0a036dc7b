"""What a process of a test does: each word is `rank:deed`, and a deed after which it would end well is `wait`."""

import os
import signal
import sys
import time
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.system import terminal
from llama_peft.system.processes import job


def main() -> None:
    folder, *words = sys.argv[1:]
    deeds = dict(word.split(":") for word in words)
    job.follow_launcher()
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    (Path(folder) / f"{job.rank()}-of-{job.count()}").write_text(str(os.getpid()))
    deed = deeds.get(str(job.rank()), deeds.get("all", "end"))
    if deed.endswith("late"):
        time.sleep(0.5)  # the handlers of the others are there
    if deed.startswith("mistake"):
        job.tell_launcher(UserError("no such file", "look there"))
        sys.exit(2)
    if deed == "say":
        terminal.complain("a line")
    if deed == "fault":
        raise ValueError("a defect")
    if deed == "stopped":
        sys.exit(128 + signal.SIGTERM)
    while deed == "wait" and not told:
        time.sleep(0.01)
    time.sleep(0.1)  # a second signal would still come
    (Path(folder) / f"signals-{job.rank()}").write_text(str(len(told)))
    sys.exit(143 if told else 0)


if __name__ == "__main__":
    main()
