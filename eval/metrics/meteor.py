"""METEOR by nltk, under an honest name.

nltk asks WordNet only about words that match neither exactly nor by stem, so without it some pairs
pass and others raise, late. Here it is loaded before the first pair. Where it is not installed,
synonyms are not matched and the result is called `meteor_no_wordnet`: a lower number must not carry
METEOR's name.

Text is split by nltk's word tokeniser without sentence splitting, which needs no data. A one-word
answer that is right scores 0.5 by METEOR's formula: its penalty for fragments is at its highest
with one chunk a match.
"""

from collections.abc import Sequence

from .wordnet import WordNet


class _NoWordNet:
    def synsets(self, lemma: str) -> Sequence[object]:
        return ()


def meteor_name(wordnet: WordNet | None) -> str:
    """What METEOR's number is called with this WordNet."""
    return "meteor_no_wordnet" if wordnet is None else "meteor"


def meteor_score(
    prediction: str, golds: Sequence[str], wordnet: WordNet | None, **weights: float
) -> float:
    """The best METEOR over the golds, 0 to 1; weights: nltk's alpha, beta and gamma, where they are not its own."""
    from nltk.tokenize import word_tokenize
    from nltk.translate import meteor_score as nltk_meteor

    references = [word_tokenize(gold, preserve_line=True) for gold in golds]
    words = word_tokenize(prediction, preserve_line=True)
    lexicon = wordnet or _NoWordNet()
    return float(nltk_meteor.meteor_score(references, words, wordnet=lexicon, **weights))
