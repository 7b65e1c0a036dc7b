"""Which block of a base that is not trained knows whether a passage answers a question.

The passage comes first and is computed once. A question is the mean of the states of its tokens, which
have seen the passage, or the state of the prompt's last token; a ridge regression reads it. Each article
is scored by what was fitted on the other ones, without those of the test part.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from .questions import articles, auc

BLOCKS = (8, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
RIDGE = 3.0
BEFORE = (
    "<|im_start|>user\nAnswer the question from the passage. "
    "If the passage does not answer it, say unanswerable.\n\nPassage: {context}\n\n"
)
ASKED, AFTER = "Question: {question}\nAnswer:", "<|im_end|>\n<|im_start|>assistant\n"
"""A turn of a chat of SmolLM2."""


def answerability(base: Path) -> dict[str, Any]:
    """Return the mean AUC in an article by block, for both ways to read a question."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    before = time.process_time()
    kept = [article for part, article in articles() if part != "test"]
    states, silent, groups = [], [], []
    for number, article in enumerate(kept):
        for paragraph in article["paragraphs"]:
            states.append(_states(model, tokenizer, paragraph))
            silent += [one["is_impossible"] for one in paragraph["qas"]]
            groups += [number] * len(paragraph["qas"])
    states_NLPD, seconds = np.concatenate(states), time.process_time() - before
    truth, group = np.array(silent), np.array(groups)
    found = {
        pooling: {
            str(block): _in_article(states_NLPD[:, i, k].astype(np.float32), truth, group)
            for i, block in enumerate(BLOCKS)
        }
        for k, pooling in enumerate(("last token", "mean of the question"))
    }
    rows = {"task": "whether a question has an answer", "questions": len(silent)}
    return {
        **rows,
        "articles": len(kept),
        "AUC_by_layer": found,
        "cpu_seconds_states": round(seconds),
    }


@torch.inference_mode()
def _states(model: Any, tokenizer: Any, paragraph: Mapping[str, Any]) -> np.ndarray:
    """Return the states of the questions of a passage (N, blocks, 2, D)."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    passage = ids(BEFORE.format(context=paragraph["context"]))
    asked = [ids(ASKED.format(question=q["question"].strip()) + AFTER) for q in paragraph["qas"]]
    cache = DynamicCache(config=model.config)
    model.model(torch.tensor([passage]), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(asked))
    width = max(map(len, asked))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in asked])
    output = model.model(padded, past_key_values=cache, use_cache=True, output_hidden_states=True)
    tail = len(ids(AFTER))
    rows = [
        [_pooled(output.hidden_states[block][i], len(row), tail) for block in BLOCKS]
        for i, row in enumerate(asked)
    ]
    return np.array(rows, dtype=np.float16)


def _pooled(states_TD: torch.Tensor, length: int, tail: int) -> Sequence[np.ndarray]:
    states = states_TD[:length].float().numpy()
    return states[-1], states[: length - tail].mean(0)


def _in_article(states_ND: np.ndarray, truth: np.ndarray, group: np.ndarray) -> float:
    """Return the mean AUC in an article of a ridge regression on the other articles."""
    scaled = (states_ND - states_ND.mean(0)) / (states_ND.std(0) + 1e-3)
    kernel, signs = scaled @ scaled.T / scaled.shape[1], np.where(truth, 1.0, -1.0)
    areas = []
    for one in np.unique(group):
        own, others = group == one, group != one
        damped = kernel[np.ix_(others, others)] + RIDGE * np.eye(others.sum())
        weights = np.linalg.solve(damped, signs[others] - signs[others].mean())
        areas.append(auc(kernel[np.ix_(own, others)] @ weights, truth[own]))
    return round(float(np.mean(areas)), 3)
