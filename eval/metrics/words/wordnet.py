"""WordNet for METEOR: find a copy that nltk can read, or install one.

nltk reads it from `corpora/wordnet` in one of its data folders (`$NLTK_DATA`, `~/nltk_data`,
`<sys.prefix>/nltk_data` and others) and refuses links that lead out of them. Debian's
/usr/share/wordnet is the same database without two files that nltk opens: the list of lexicographer
files, which is written here, and `index.sense`, of which METEOR uses nothing.

`nltk.download` is not used. It compares the archive only with a checksum that it fetches from the
same server, while this module holds the checksum itself. By default it also refuses to download
through a proxy, and from a local address, so that no test could run it without the internet.
"""

import hashlib
import io
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

DEBIAN = Path("/usr/share/wordnet")
ARCHIVE = "https://wordnetcode.princeton.edu/3.0/WordNet-3.0.tar.gz"
ARCHIVE_SHA256 = "640db279c949a88f61f851dd54ebbb22d003f8b90b85267042ef85a3781d3a52"

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
    """The part of WordNet that METEOR uses."""

    def synsets(self, lemma: str) -> Sequence[object]:
        """The sets of synonyms that hold the word."""


def find_wordnet() -> WordNet | None:
    """nltk's WordNet, or None if it is not installed. Raises ValueError if it cannot be read."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"WordNet is installed for nltk but cannot be read ({error}): "
            "install it again with `llama-eval wordnet`, or remove it"
        ) from error
    return wordnet


def get(data_folder: Path | None = None, url: str = ARCHIVE, sha256: str = ARCHIVE_SHA256) -> Path:
    """Install WordNet and return the folder that nltk reads.

    Debian's copy is used if this machine has it; else Princeton's archive is downloaded and its
    checksum compared. Raises ValueError if the archive cannot be downloaded or is another one.
    """
    if DEBIAN.is_dir():
        return install(DEBIAN, data_folder)
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            raw = response.read()
    except OSError as error:
        raise ValueError(
            f"{url} cannot be downloaded ({error}); install Debian's package wordnet-base instead"
        ) from error
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise ValueError(f"{url} is not the expected archive: its sha256 is {found}, not {sha256}")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            archive.extractall(folder, filter="data")
        return install(Path(folder) / "WordNet-3.0" / "dict", data_folder)


def install(source: Path = DEBIAN, data_folder: Path | None = None) -> Path:
    """Copy a WordNet 3.0 database to `<data_folder>/corpora/wordnet` and return that folder.

    The two files that nltk needs as well are added. The default data folder is that of this Python.
    Raises ValueError if `source` does not hold WordNet.
    """
    parts = ("noun", "verb", "adj", "adv")
    needed = [f"{kind}.{part}" for kind in ("data", "index") for part in parts]
    missing = [name for name in needed if not (source / name).is_file()]
    if missing:
        raise ValueError(f"{source} does not hold a WordNet database: {missing[0]} is missing")
    target = (data_folder or Path(sys.prefix) / "nltk_data") / "corpora" / "wordnet"
    shutil.copytree(source, target, dirs_exist_ok=True)
    lines = [f"{number:02d}\t{name}\t{part}\n" for number, (name, part) in enumerate(_LEXNAMES)]
    if not (target / "lexnames").is_file():
        (target / "lexnames").write_text("".join(lines), encoding="ascii")
    (target / "index.sense").touch()  # an existing file stays as it is
    return target
