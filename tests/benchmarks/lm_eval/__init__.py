"""Beside lm-evaluation-harness: the same local model, the same prompts, the two requests of its squadv2 task.

Each question is answered greedily and its "no answer" scored; there by HFLM in an environment of its own, here by the
predictor that evaluations use. Answers must be equal. Its squadv2 compares the text "unanswerable" with "", so the scores of
both rules are given for these answers and for a system that is always right.
"""

import json
import math
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from eval.metrics.squad_v2 import squad_scores
from llama_peft.inference.engine import Loaded
from llama_peft.inference.predict import write_answers
from llama_peft.tokens.prompts import answer_text, without_no_answer
from tests.benchmarks import measure
from tests.benchmarks.material import Base, Questions
from tests.benchmarks.measure import Measured, Sample

BATCH_SIZE = 16
MAX_NEW_TOKENS = 16


def run(base: Base, questions: Questions, repeats: int, python: str) -> dict[str, Any]:
    """Measure, compare the answers, and return the result; `python` is the interpreter that has lm-eval."""
    recipe = base.recipe()
    recipe = recipe.changed(eval={"max_new_tokens": MAX_NEW_TOKENS})
    encoder, model, texts = base.encoder, base.load(), recipe.prompt
    engine = Loaded(model=model, encoder=encoder, decoding=recipe.eval.decoding)
    prompts = [
        texts.instruction
        + texts.context.format(context=example.context)
        + texts.question.format(question=example.question)
        for example in questions.examples
    ]
    ids = [encoder.question(example) for example in questions.examples]
    same_prompts = sum(
        tuple(encoder.tokenizer(text)["input_ids"]) == own
        for text, own in zip(prompts, ids, strict=True)
    )
    asked = {
        "model": str(base.folder),
        "batch_size": BATCH_SIZE,
        "max_new_tokens": MAX_NEW_TOKENS,
        "no_answer": f" {texts.no_answer}",
        "prompts": prompts,
    }
    measured = {name: Measured(name) for name in ("lm_eval", "ours")}
    for _ in range(repeats):
        theirs = _child(python, asked)
        measured["lm_eval"].samples.append(
            Sample(theirs["wall_seconds"], theirs["cpu_seconds"], 0, 0)
        )
        wall, cpu = time.perf_counter(), time.process_time()
        found = {
            p.id: p
            for batch in write_answers(engine, questions.examples, recipe, 2 * BATCH_SIZE)
            for p in batch
        }
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        measured["ours"].samples.append(Sample(wall, cpu, 0, 0))
    own = {e.id: found[e.id].raw.strip().split("\n")[0] for e in questions.examples}
    other = {
        e.id: text.strip() for e, text in zip(questions.examples, theirs["answers"], strict=True)
    }
    different = [id_ for id_ in own if own[id_] != other[id_]]
    golds = {e.id: [answer.text for answer in e.answers] for e in questions.examples}
    perfect = {e.id: answer_text(e, texts.no_answer) for e in questions.examples}
    return measure.result(
        "lm_eval",
        [_row(each, len(prompts)) for each in measured.values()],
        measure.ratios(measured, "ours", {"eval_vs_lm_eval": "lm_eval"}),
        **questions.facts(),
        **base.facts(),
        batch_size=BATCH_SIZE,
        max_new_tokens=MAX_NEW_TOKENS,
        lm_eval=_version(python),
        checks={
            "equal_prompts": same_prompts,
            "equal_answers": len(own) - len(different),
            "first_difference": [
                (own[different[0]], other[different[0]]) if different else None,
            ],
            "different_answers": len(set(own.values())),
        },
        scores={
            "lm_eval_rule": _exact_and_f1(other, golds),
            "ours": _exact_and_f1(_silenced(own, texts.no_answer), golds),
            "perfect_system_lm_eval_rule": _exact_and_f1(perfect, golds),
            "perfect_system_ours": _exact_and_f1(_silenced(perfect, texts.no_answer), golds),
            "unanswerable": sum(not texts_ for texts_ in golds.values()),
        },
        # Theirs is of the phrase, ours of the phrase and the end after it: the answer as a whole.
        no_answer_log_probability={
            "lm_eval_mean": sum(pair[0] for pair in theirs["silence"]) / len(prompts),
            "ours_mean": sum(math.log(p.no_answer_probability or 1e-300) for p in found.values())
            / len(prompts),
        },
    )


def _row(each: Measured, examples: int) -> dict[str, Any]:
    row = each.row(examples)
    return {key: value for key, value in row.items() if key not in ("tokens", "peak_bytes")}


def _silenced(answers: dict[str, str], no_answer: str) -> dict[str, str]:
    return {id_: without_no_answer(text, no_answer) for id_, text in answers.items()}


def _exact_and_f1(answers: dict[str, str], golds: dict[str, list[str]]) -> dict[str, float]:
    scores = squad_scores(answers, golds)
    return {name: scores[name] for name in ("exact", "f1", "NoAns_exact") if name in scores}


def _child(python: str, asked: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "asked.json"), Path(folder, "answers.json")
        source.write_text(json.dumps(asked), "utf-8")
        script = Path(__file__).with_name("child.py")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        # -P keeps this folder off the path of the child, whose lm_eval is the library.
        command = [python, "-P", str(script), str(source), str(target)]
        subprocess.run(command, env=environment, check=True)
        return dict(json.loads(target.read_text("utf-8")))


def _version(python: str) -> str:
    code = "from importlib.metadata import version; print(version('lm_eval'))"
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
