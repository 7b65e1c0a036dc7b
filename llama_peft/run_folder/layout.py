"""Every file name of a run folder and of an evaluation, in one place.

    runs/sst2/
      recipe.yaml split.json data.sha256 history.jsonl training.json
      checkpoints/checkpoint-<step>/    adapter/ or head.safetensors    head.json threshold.json
      zero-shot/ tuned/                 results.json and predictions.jsonl in each
      ladder/                           other rungs, each an evaluation or a run; ladder.yaml
      comparison.json report.html charts/ README.md

A pushed run has the adapter's two files at its top, where PEFT looks for them.
"""

import re
from typing import Literal, get_args

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
CHECKPOINT = re.compile(r"checkpoint-[0-9]+")
"""Names of the folders in `checkpoints`."""
CHECKPOINT_FILE = re.compile(
    r"(spent|manifest|trainer_state|config|generation_config|adapter_config)\.json"  # ours, Trainer's
    r"|(adapter_)?model(-[0-9]{5}-of-[0-9]{5})?\.safetensors(\.index\.json)?"
    r"|(optimizer|scheduler|scaler)\.pt|rng_state(_[0-9]+)?\.pth|training_args\.bin"
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|(tokenizer|spiece|sentencepiece|sentencepiece\.bpe|spm)\.model"
    r"|(vocab|merges)\.txt|(additional_chat_templates/[^/]+|chat_template)\.jinja"
)
"""Names of the files in a checkpoint: those of ours, of Trainer, of PEFT and of the tokenizer."""
PREVIOUS, MOVING = ".previous", ".previous.partial"
"""Where `--fresh` keeps the earlier run until the new one has something to keep, and where the
files are while they are moved there or back.
"""

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
UNFINISHED = (UNFINISHED_PREDICTIONS, UNFINISHED_VALIDATION)
"""The second one of several processes writes `predictions.partial.1.jsonl`, and so on."""
EVALUATION_FILES = (RESULTS, PREDICTIONS, *UNFINISHED)
Baseline = Literal["majority", "no-answer", "tf-idf", "bm25"]
"""What is evaluated without a base: llama-eval knows these by name."""
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
EVALUATION = re.compile(rf"(zero-shot|tuned|([0-9]+|auto)-shot|{'|'.join(BASELINES)})(-.*)?")
"""Names of the folders of evaluations in a run folder."""
ZERO_SHOT_RESULTS = f"{ZERO_SHOT}/{RESULTS}"
TUNED_RESULTS = f"{TUNED}/{RESULTS}"
BOTH_RESULTS = (ZERO_SHOT_RESULTS, TUNED_RESULTS)

LADDER = "ladder"
"""The folder of every measurement that is neither zero-shot nor tuned: evaluations and runs."""
LADDER_RECIPE = "ladder.yaml"
"""In `ladder/`: the recipe with what the ladder measures, as it was last asked for."""
FINISHED = "finished.json"
"""In `ladder/`: for each folder of results, what they depend on, and their sum."""

COMPARISON = "comparison.json"
REPORT = "report.html"
CHARTS = "charts"
"""The folder of a report's figures, each one as SVG and as PNG."""
CARD_CHARTS = (f"{CHARTS}/scores.png", f"{CHARTS}/training.png")
"""The figures that the card shows, if they are drawn."""
CARD = "README.md"
NOTICE = "NOTICE"
HUB_RESULTS = ".eval_results/results.yaml"
"""Read by the Hub for the page of the data set."""

TRAINED_FILES = (
    RECIPE, SPLIT, DATA_SUMS, HISTORY, HEAD, LAYER_CHOICE, TRAINING, THRESHOLD, COMPARISON, REPORT,
)  # fmt: skip
"""The files at the top of a run folder, except the card."""
PUSHED_FILES = (
    *ADAPTER_FILES, HEAD, RECIPE, TRAINING, THRESHOLD, *BOTH_RESULTS, COMPARISON, REPORT, *CARD_CHARTS, CARD, NOTICE,
    HUB_RESULTS,
)  # fmt: skip
"""Every file that a pushed run may hold."""
