"""What people type first: short reviews of everyday words are learned, and come out right."""

import re

import pytest

from llama_peft import data, load_recipe, predict
from llama_peft.run_folder.layout import TRAINING
from llama_peft.tiny import headlines, reviews
from llama_peft.tiny.generator import generate
from llama_peft.tiny.reviews import LABELS
from tests.support.paths import ROOT

# fmt: off
PLAIN = {
    "positive": [
        "A warm and funny film.", "A good film.", "Great movie!", "I loved it!",
        "Really good acting.", "The story is great.", "Not bad at all.", "Well worth the time.",
        "I would watch it again.", "Very funny!", "This was a lot of fun.",
        "One of the best films of the year.", "I highly recommend it.",
        "Beautiful music and a lovely story.", "We had a great time.", "It made me smile.",
    ],
    "negative": [
        "Not worth the time.", "A bad film.", "Boring.", "I hated it!",
        "The acting is terrible.", "The story is weak.", "Not good.", "A waste of time.",
        "I would not watch it again.", "Not funny at all.", "Too long and too slow.",
        "One of the worst films of the year.", "I do not recommend it.",
        "Awful music and a stupid story.", "We left early.", "I fell asleep.",
    ],
}
"""Such reviews, by label. All but the two shortest are never generated word for word in what is learned."""
# fmt: on


def forms() -> re.Pattern[str]:
    every = [*headlines.BOTH, *(form for label in LABELS for form in headlines.OWN[label])]
    escaped = [re.escape(form).replace(r"\{", "{").replace(r"\}", "}") for form in every]
    return re.compile(
        "|".join(re.sub(r"\{.\}", "[a-z]+", form.replace("{w}", r"[a-z ]+")) for form in escaped),
        re.I,
    )


def test_short_reviews_are_learned_and_not_judged() -> None:
    """They are a part of what is learned; the test part has its own phrasings, and the same texts without them."""
    headline, shares = forms(), {}
    for part in ("train", "validation", "test"):
        texts = [str(row["text"]) for row in generate("mixed-reviews", part, 400, 42)]
        shares[part] = sum(bool(headline.fullmatch(text)) for text in texts) / len(texts)
    assert 0.65 < shares["train"] < 0.85 and shares["validation"] > 0.6 and shares["test"] < 0.05
    whole, mixed = (generate(kind, "test", 20, 42) for kind in ("reviews", "mixed-reviews"))
    assert [row["text"] for row in whole] == [row["text"] for row in mixed]


def test_an_everyday_word_has_one_label() -> None:
    for label, other in zip(LABELS, LABELS[::-1], strict=True):
        known = {*headlines.EVERYDAY[label], *reviews.ADJECTIVES[label]}
        assert not known & {*headlines.EVERYDAY[other], *reviews.ADJECTIVES[other]}


def test_the_plain_reviews_are_not_learned_by_heart() -> None:
    recipe = load_recipe("tiny-sst2")
    dataset = data.load(recipe)
    learned = {example.text for part in ("train", "validation") for example in dataset.parts[part]}
    plain = {text for texts in PLAIN.values() for text in texts}
    assert len(plain & learned) <= 2 and len(plain) == 32


def test_the_demo_s_run_judges_plain_reviews() -> None:
    """At least nine of ten. A training of a minute or more is too dear here, so `make demo` makes the run."""
    run = ROOT / "runs/tiny-sst2"
    if not (run / TRAINING).is_file():
        pytest.skip("runs/tiny-sst2 is not trained: run make demo")
    asked, held = load_recipe("tiny-sst2"), load_recipe(run / "recipe.yaml")
    if (held.dataset.name, held.dataset.parts) != (asked.dataset.name, asked.dataset.parts):
        pytest.skip("runs/tiny-sst2 is of another recipe: run make demo")
    said = {label: predict(run, texts) for label, texts in PLAIN.items()}
    wrong = [
        text
        for label, replies in said.items()
        for text, reply in zip(PLAIN[label], replies, strict=True)
        if reply.prediction != label
    ]
    assert len(wrong) <= 3, wrong
