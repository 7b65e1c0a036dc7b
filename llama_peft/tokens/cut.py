"""Texts that are too long for a prompt lose their ends, the longest text first."""

from collections.abc import Callable, Mapping, Sequence

Texts = Mapping[str, str]
"""Texts by the names that stand for them in a template."""


def cut(
    texts: Texts,
    room: int,
    length: Callable[[Texts], int],
    starts: Callable[[str], Sequence[int]],
) -> Texts | None:
    """Return the texts so that their prompt has at most `room` tokens.

    Of several texts, the longest one is cut until the next one is as long, and then both. None
    means that not even one token of each text has room. length: returns the tokens of the prompt
    with some texts. starts: returns the first character of each token of a text.
    """
    while (excess := length(texts) - room) > 0:
        places = {name: starts(text) for name, text in texts.items()}
        left = {name: len(its) for name, its in places.items()}
        for _ in range(excess):
            longest = max(left, key=left.__getitem__)
            left[longest] -= 1
        if min(left.values()) < 1:
            return None
        texts = {name: _start(text, places[name], left[name]) for name, text in texts.items()}
    return texts


def _start(text: str, places: Sequence[int], tokens: int) -> str:
    """Return the first tokens of a text. A character of several tokens goes as a whole."""
    return text if tokens == len(places) else text[: min(places[tokens], len(text) - 1)]
