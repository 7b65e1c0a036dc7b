"""Run by the interpreter of an environment that has lm-evaluation-harness, and not this project:

    python child.py REQUESTS.json ANSWERS.json

The two requests that its squadv2 task makes of each question, through its own HFLM, timed without loading.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


def main(source: Path, target: Path) -> None:
    asked = json.loads(source.read_text("utf-8"))
    model = HFLM(
        pretrained=asked["model"], dtype="float32", device="cpu", batch_size=asked["batch_size"]
    )
    until = {"until": ["\n"], "max_gen_toks": asked["max_new_tokens"]}
    written = [_instance("generate_until", text, until) for text in asked["prompts"]]
    silent = [_instance("loglikelihood", text, asked["no_answer"]) for text in asked["prompts"]]
    model.generate_until(written[:1], disable_tqdm=True)  # the first call costs more
    wall, cpu = time.perf_counter(), time.process_time()
    answers = model.generate_until(written, disable_tqdm=True)
    chances = model.loglikelihood(silent, disable_tqdm=True)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found = {"wall_seconds": wall, "cpu_seconds": cpu, "answers": answers, "silence": chances}
    target.write_text(json.dumps(found), "utf-8")


def _instance(kind: str, text: str, what: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=(text, what), idx=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
