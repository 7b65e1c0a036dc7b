"""Laws of WordNet: it is found, installed and checked, or METEOR's name says that it is missing."""

import hashlib
import tarfile
from pathlib import Path

import pytest

from eval.metrics.measure import answer_results
from eval.metrics.words import wordnet
from eval.metrics.words.overlap import meteor_score
from eval.metrics.words.wordnet import find_wordnet, install

MINI_NOUNS = [
    "00000000 06 n 02 car 0 auto 0 000 | a motor vehicle  \n",
    "00000048 06 n 01 boat 0 000 | a vessel for travel on water  \n",
]


@pytest.fixture
def mini_wordnet(tmp_path: Path) -> Path:
    """A real WordNet database, of three nouns."""
    source = tmp_path / "database"
    source.mkdir()
    for part in ("noun", "verb", "adj", "adv"):
        for kind in ("data", "index"):
            (source / f"{kind}.{part}").write_text("", "ascii")
        (source / f"{part}.exc").write_text("", "ascii")
    (source / "data.adj").write_text("  1 WordNet 3.0 Copyright 2006\n", "ascii")
    offset = len(MINI_NOUNS[0])
    data = MINI_NOUNS[0] + MINI_NOUNS[1].replace("00000048", f"{offset:08d}")
    (source / "data.noun").write_text(data, "ascii")
    index = f"car n 1 0 1 0 00000000\nauto n 1 0 1 0 00000000\nboat n 1 0 1 0 {offset:08d}\n"
    (source / "index.noun").write_text(index, "ascii")
    return source


def test_meteor_without_wordnet_says_so_in_its_name(fresh_nltk):
    scores = answer_results({"1": "the old car"}, {"1": ["the old auto"]})
    assert find_wordnet() is None
    assert "meteor" not in scores and scores["meteor_no_wordnet"] < 0.7
    assert "HasAns_meteor_no_wordnet" in scores


def test_meteor_with_wordnet_matches_synonyms_as_nltk_does(fresh_nltk, mini_wordnet):
    from nltk.translate.meteor_score import single_meteor_score

    assert install(mini_wordnet, fresh_nltk) == fresh_nltk / "corpora" / "wordnet"
    found = find_wordnet()
    scores = answer_results({"1": "the old car"}, {"1": ["the old auto"]})
    theirs = single_meteor_score(["the", "old", "auto"], ["the", "old", "car"], wordnet=found)
    assert scores["meteor"] == pytest.approx(theirs) and theirs > 0.9
    assert meteor_score("the old boat", ["the old auto"], found) < 0.7


def test_the_archive_is_checked_before_it_is_unpacked(
    fresh_nltk, mini_wordnet, tmp_path, monkeypatch
):
    path = tmp_path / "WordNet-3.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(mini_wordnet, "WordNet-3.0/dict")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(wordnet, "DEBIAN", tmp_path / "none")
    with pytest.raises(ValueError, match=f"sha256 is {digest}, not 640db279"):
        wordnet.get(fresh_nltk, path.as_uri())
    with pytest.raises(ValueError, match=r"cannot be downloaded.*wordnet-base"):
        wordnet.get(fresh_nltk, (tmp_path / "gone").as_uri())
    assert find_wordnet() is None, "nothing was installed"
    assert wordnet.get(fresh_nltk, path.as_uri(), digest).is_dir()
    assert find_wordnet() is not None


def test_a_broken_wordnet_is_an_error_and_a_folder_without_one_cannot_be_installed(
    fresh_nltk, mini_wordnet, tmp_path
):
    (install(mini_wordnet, fresh_nltk) / "lexnames").unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        find_wordnet()
    with pytest.raises(ValueError, match=r"data\.noun is missing"):
        install(tmp_path, fresh_nltk)
