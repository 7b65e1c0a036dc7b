"""Evaluations as tests run them: jobs, and what they leave in their folders."""

import json
from pathlib import Path
from typing import Any

from eval import harness
from eval.job import Job
from llama_peft.recipe import Recipe
from llama_peft.run_folder.results import Results


def job_for(recipe: Recipe, model: Path | str, output: Path, **changes: Any) -> Job:
    return Job(recipe=recipe, model=str(model), output=output, **changes)


def evaluate(recipe: Recipe, model: Path | str, output: Path, **changes: Any) -> Results:
    return harness.run(job_for(recipe, model, output, **changes))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
