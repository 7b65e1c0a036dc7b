"""Every file name of a run folder and of an evaluation, in one place.

    runs/sst2/
      recipe.yaml split.json data.sha256 history.jsonl training.json
      checkpoints/checkpoint-<step>/    adapter/ or head.safetensors    head.json threshold.json
      zero-shot/ tuned/                 results.json and predictions.jsonl in each
      comparison.json report.html README.md

A pushed run has the adapter's two files at its top, where PEFT looks for them.
"""

RECIPE = "recipe.yaml"
"""Every setting, with defaults written out."""
SPLIT = "split.json"
"""The ids of each part."""
DATA_SUMS = "data.sha256"
"""One sum of all examples, then a sum of the text or question of each one that the run was trained
on.
"""
HISTORY = "history.jsonl"
"""The loss curve: the Trainer's log lines."""
TRAINING = "training.json"
"""The record of a finished training, and the sums of the files that it exported. Written last."""
CHECKPOINTS = "checkpoints"
SPENT = "spent.json"
"""In a checkpoint: time and memory that the run took so far, and the base and recipe behind it."""

ADAPTER = "adapter"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
HEAD = "head.safetensors"
WEIGHTS_SUFFIX = ".safetensors"
LAYER_CHOICE = "head.json"
"""The layers that `head.layer: auto` tried, and the chosen one."""
THRESHOLD = "threshold.json"
"""The no-answer threshold that a span run's evaluation fitted on validation."""

ZERO_SHOT, TUNED = "zero-shot", "tuned"
"""The folders of the two evaluations that a report compares."""
RESULTS = "results.json"
PREDICTIONS = "predictions.jsonl"
UNFINISHED_PREDICTIONS = "predictions.partial.jsonl"
UNFINISHED_VALIDATION = "validation.partial.jsonl"
ZERO_SHOT_RESULTS = f"{ZERO_SHOT}/{RESULTS}"
TUNED_RESULTS = f"{TUNED}/{RESULTS}"
BOTH_RESULTS = (ZERO_SHOT_RESULTS, TUNED_RESULTS)

COMPARISON = "comparison.json"
REPORT = "report.html"
CARD = "README.md"
NOTICE = "NOTICE"
HUB_RESULTS = ".eval_results/results.yaml"
"""Read by the Hub for the page of the data set."""

TRAINED_FILES = (
    RECIPE, SPLIT, DATA_SUMS, HISTORY, CHECKPOINTS, ADAPTER, HEAD, LAYER_CHOICE, TRAINING, THRESHOLD, TUNED,
    COMPARISON, REPORT, CARD,
)  # fmt: skip
"""The files of a training, and those that depend on its weights: `--fresh` puts these aside.
Zero-shot results stay right.
"""
PUSHED_FILES = (
    *ADAPTER_FILES, HEAD, RECIPE, TRAINING, THRESHOLD, *BOTH_RESULTS, COMPARISON, REPORT, CARD, NOTICE, HUB_RESULTS,
)  # fmt: skip
"""Every file that a pushed run may hold."""
