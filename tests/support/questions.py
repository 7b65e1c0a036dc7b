"""Answers to real and hand-made questions, for the tests of metrics."""

import random

Golds = dict[str, list[str]]


HAND_GOLDS = {"1": ["Paris"], "2": ["France"], "3": ["1789", "in 1789"], "4": [], "5": []}


HAND_ANSWERS = {"1": "paris.", "2": "north of western France", "3": "never", "4": "", "5": "Rome"}


def some_prediction(context: str, answers: list[str], draw: random.Random) -> str:
    """Right, nearly right, wrong or empty, with the dressing that normalisation is about."""
    words = context.split()
    start = draw.randrange(len(words))
    span = " ".join(words[start : start + draw.randint(1, 6)])
    right = draw.choice(answers) if answers else ""
    dressed = [f"the {right}", f"{right}.", f'"{right}"', right.upper(), f" {right}  indeed"]
    odd = ["The", "a", ".", "Ünïcödé — naïve", "\u00a0", "日本", "unanswerable", f"{right}\u2013x"]
    partial = " ".join(right.split()[: draw.randint(0, 3)])
    return draw.choice([right, right, "", span, partial, draw.choice(dressed), draw.choice(odd)])
