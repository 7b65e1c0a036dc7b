"""WordNet for METEOR: find the one that nltk can read, or make one from Debian's `wordnet-base`.

nltk reads it as `corpora/wordnet` in one of its data folders, among them `$NLTK_DATA`,
`~/nltk_data` and `<sys.prefix>/nltk_data`, and refuses links that lead out of them. Debian's
/usr/share/wordnet is the same database without two files that nltk opens: the list of lexicographer
files, given here, and `index.sense`, of which METEOR needs nothing.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

DEBIAN = Path("/usr/share/wordnet")

# From lexnames(5WN). The number beside a name is its part of speech: noun, verb, adjective, adverb.
_NOUNS = (
    "Tops act animal artifact attribute body cognition communication event feeling food group"
    " location motive object person phenomenon plant possession process quantity relation shape"
    " state substance time"
)
_VERBS = (
    "body change cognition communication competition consumption contact creation emotion motion"
    " perception possession social stative weather"
)
_LEXNAMES = (
    ("adj.all", 3),
    ("adj.pert", 3),
    ("adv.all", 4),
    *((f"noun.{name}", 1) for name in _NOUNS.split()),
    *((f"verb.{name}", 2) for name in _VERBS.split()),
    ("adj.ppl", 3),
)


class WordNet(Protocol):
    """What METEOR asks of WordNet."""

    def synsets(self, lemma: str) -> Sequence[object]:
        """The sets of synonyms that hold the word."""


def find_wordnet() -> WordNet | None:
    """nltk's WordNet, loaded, or None where there is none; ValueError when it cannot be read."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"WordNet is installed for nltk but cannot be read ({error}): "
            "install it again, or remove it to go without"
        ) from error
    return wordnet


def install(source: Path = DEBIAN, data_folder: Path | None = None) -> Path:
    """Copy a WordNet 3.0 database into `<data_folder>/corpora/wordnet` and add what nltk needs;
    returns that folder.

    `data_folder` is by default this Python's own. Raises ValueError when `source` holds no WordNet.
    """
    parts = ("noun", "verb", "adj", "adv")
    needed = [f"{kind}.{part}" for kind in ("data", "index") for part in parts]
    missing = [name for name in needed if not (source / name).is_file()]
    if missing:
        raise ValueError(f"no WordNet database in {source}: {missing[0]} is missing")
    target = (data_folder or Path(sys.prefix) / "nltk_data") / "corpora" / "wordnet"
    shutil.copytree(source, target, dirs_exist_ok=True)
    lines = [f"{number:02d}\t{name}\t{part}\n" for number, (name, part) in enumerate(_LEXNAMES)]
    (target / "lexnames").write_text("".join(lines), encoding="ascii")
    (target / "index.sense").touch()
    return target
