"""METEOR by nltk, under a name that says whether WordNet was used.

nltk asks WordNet only about words that match neither exactly nor by stem. Without WordNet some
pairs therefore pass, and a later one raises. Here WordNet is loaded before the first pair. If it is
not installed, synonyms are not matched and the result is called `meteor_no_wordnet`: a lower number
must not carry METEOR's name.

Text is split by nltk's word tokeniser without sentence splitting, which needs no data. A right
answer of one word scores 0.5 by METEOR's formula, whose penalty for fragments is highest if each
match is a chunk of its own.
"""

from collections.abc import Callable, Sequence
from functools import partial

from .wordnet import WordNet


class NoWordNet:
    """A WordNet without synonyms."""

    def synsets(self, lemma: str) -> Sequence[object]:
        return ()


def meteor_name(wordnet: WordNet | None) -> str:
    """The metric's name with this WordNet."""
    return "meteor_no_wordnet" if wordnet is None else "meteor"


def meteor_score(
    prediction: str,
    golds: Sequence[str],
    wordnet: WordNet | None,
    split: Callable[[str], list[str]] | None = None,
    **weights: float,
) -> float:
    """The best METEOR over the references, 0 to 1. `weights` are nltk's alpha, beta and gamma.

    split: returns the words of a text; None is nltk's word tokeniser.
    """
    from nltk.tokenize import word_tokenize
    from nltk.translate import meteor_score as nltk_meteor

    split = split or partial(word_tokenize, preserve_line=True)
    references, words = [split(gold) for gold in golds], split(prediction)
    lexicon = wordnet or NoWordNet()
    return float(nltk_meteor.meteor_score(references, words, wordnet=lexicon, **weights))
