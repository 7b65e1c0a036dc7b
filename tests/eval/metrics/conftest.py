"""Real questions, written answers, and an nltk without data."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.questions import Golds, some_prediction


@pytest.fixture(scope="module")
def squad(shared: Path) -> dict[str, tuple[str, list[str]]]:
    """Context and answers of each real question."""
    data = json.loads((shared / "data/squad/squad_v2.json").read_text("utf-8"))["data"]
    return {
        question["id"]: (paragraph["context"], [a["text"] for a in question["answers"]])
        for article in data
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }


@pytest.fixture(scope="module")
def written(squad) -> tuple[dict[str, str], Golds]:
    """Written answers to 150 real questions."""
    draw = random.Random(2)
    keys = draw.sample(list(squad), 150)
    return {k: some_prediction(*squad[k], draw) for k in keys}, {k: squad[k][1] for k in keys}


@pytest.fixture
def fresh_nltk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An nltk that looks for data in one empty folder only and has loaded none yet."""
    import nltk.corpus
    import nltk.data
    from nltk.corpus.reader import CorpusReader, WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    other = LazyCorpusLoader("omw", CorpusReader, r".*")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    lazy = LazyCorpusLoader("wordnet", WordNetCorpusReader, other)
    monkeypatch.setattr(nltk.corpus, "wordnet", lazy)
    yield tmp_path / "nltk_data"
