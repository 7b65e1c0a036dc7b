"""Laws of answers in other scripts than a-z: right answers score 1, and official numbers stay."""

import random

import pytest

from eval.metrics.evidence import scores_of
from eval.metrics.measure import answer_results
from eval.metrics.words.overlap import ROUGE_TYPES, overlap_evidences
from eval.metrics.words.unicode_tokens import tokens

SCRIPTS = {
    "Chinese": "北京大学位于海淀区",
    "Japanese": "東京タワーは赤いです",
    "Thai": "กรุงเทพมหานคร",
    "Khmer": "ភ្នំពេញ",
    "Lao": "ວຽງຈັນ",
    "Myanmar": "ရန်ကုန်မြို့",
    "Russian": "Красная площадь в Москве",
    "Greek": "η Ακρόπολη της Αθήνας",
    "Arabic": "مدينة القاهرة القديمة في مصر",
    "Hindi": "दिल्ली का लाल किला",
    "Korean": "서울 남산 타워 전망대",
}
WITHOUT_SPACES = {"Chinese", "Japanese", "Thai", "Khmer", "Lao", "Myanmar"}


def scores(answers: dict[str, str], golds: dict[str, list[str]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for evidence in overlap_evidences(answers, golds):
        found |= scores_of(evidence)
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_perfect_answer_scores_1_in_every_script(script):
    found = scores({"1": SCRIPTS[script]}, {"1": [SCRIPTS[script]]})
    assert found["rougeL"] == 0
    assert all(found[f"{kind}_unicode"] == 1 for kind in ROUGE_TYPES)
    assert ("f1_unicode" in found) is (script in WITHOUT_SPACES)
    if script in WITHOUT_SPACES:
        assert found["exact_unicode"] == found["f1_unicode"] == 100
        assert found["bleu_char"] == pytest.approx(1)


def test_chinese_by_hand():
    """Four of five characters given, all four right, in order: precision 1, recall 4/5."""
    answers, golds = (
        {"1": "北京大学", "2": "「上海」。", "3": ""},
        {"1": ["北京大学校"], "2": ["上海"], "3": []},
    )
    found = scores(answers, golds)
    f1 = 2 * 0.8 / 1.8
    assert found["f1_unicode"] == pytest.approx(100 * (f1 + 2) / 3)
    assert found["HasAns_f1_unicode"] == pytest.approx(100 * (f1 + 1) / 2)
    assert found["exact_unicode"] == pytest.approx(200 / 3)
    for kind in ("rouge1", "rougeL"):
        assert found[f"HasAns_{kind}_unicode"] == pytest.approx((f1 + 1) / 2)
    # Bigrams: 3 of 3 against 3 of 4, and 1 of 1.
    assert found["HasAns_rouge2_unicode"] == pytest.approx((2 * 0.75 / 1.75 + 1) / 2)
    official = answer_results(answers, golds)
    assert official["HasAns_exact"] == official["HasAns_f1"] == official["HasAns_rougeL"] == 0


def test_meteor_by_hand():
    """METEOR of one chunk of four: F = 10 P R / (R + 9 P), less 0.5 (1/4)^3."""
    found = scores({"1": "北京大学"}, {"1": ["北京大学校"]})
    (name,) = {"meteor_unicode", "meteor_no_wordnet_unicode"} & found.keys()
    assert found[name] == pytest.approx(10 * 0.8 / (0.8 + 9) * (1 - 0.5 / 4**3))


def test_bleu_char_equals_sacrebleu():
    from sacrebleu.metrics import BLEU

    answers = {"1": "北京大学在海淀", "2": "上海市"}
    golds = {"1": ["北京大学位于海淀区", "北大在海淀"], "2": ["上海", "上海市中心"]}
    streams = [[golds[key][number] for key in golds] for number in (0, 1)]
    bleu = BLEU(effective_order=True, tokenize="char").corpus_score([*answers.values()], streams)
    assert scores(answers, golds)["bleu_char"] == pytest.approx(bleu.score / 100)


def test_unicode_rouge_is_rouge_score_on_the_same_tokens_in_ascii():
    """Each token is replaced by an ASCII word of its own, which rouge-score can read."""
    from rouge_score.rouge_scorer import RougeScorer

    draw, words = (
        random.Random(0),
        {character: f"w{i}" for i, character in enumerate("天地人大小山")},
    )
    scorer = RougeScorer(list(ROUGE_TYPES))
    for _ in range(20):
        one, other = ("".join(draw.choices([*words], k=draw.randint(1, 9))) for _ in range(2))
        plain = [" ".join(words[c] for c in text) for text in (one, other)]
        expected = scorer.score(*plain)
        found = scores({"1": other}, {"1": [one]})
        for kind in ROUGE_TYPES:
            assert found[f"{kind}_unicode"] == pytest.approx(expected[kind].fmeasure)


def test_tokens_of_ascii_text_are_those_of_rouge_score(squad):
    from rouge_score.tokenize import tokenize

    contexts = {context for context, _ in squad.values() if context.isascii()}
    assert contexts
    for text in [*contexts, "a_b C-3  x!y?", "", "\t"]:
        assert tokens(text) == tokenize(text, None)


def test_tokens_of_mixed_text_are_those_of_bert():
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normal = BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False)
    for text in ("2008年北京Olympic运动会，很好。", "Москва (столица России), 1147", "η Αθήνα"):
        words = [
            word for word, _ in BertPreTokenizer().pre_tokenize_str(normal.normalize_str(text))
        ]
        assert tokens(text) == [word for word in words if word[0].isalnum()]


def test_marks_and_wide_forms_belong_to_their_character():
    assert tokens("दिल्ली का") == ["दिल्ली", "का"]
    assert tokens("ที่นี่") == ["ที่", "นี่"]
    assert tokens("ＡＢＣ１２ ｶﾞ") == ["abc12", "ガ"]
    assert tokens("Ko\u0308ln") == tokens("Köln") == ["köln"]


def test_ascii_answers_get_the_same_exact_match_and_f1(written):
    """Added to data in Chinese, English questions count as in the official script."""
    answers, golds = written
    plain = [k for k in golds if all(text.isascii() for text in [answers[k], *golds[k]])]
    answers, golds = {k: answers[k] for k in plain}, {k: golds[k] for k in plain}
    before = answer_results(answers, golds)
    more = {f"c{i}": "北京" for i in range(len(plain))}
    found = scores(answers | more, golds | {key: ["北京"] for key in more})
    for name in ("exact", "f1"):
        assert found[f"{name}_unicode"] == pytest.approx((before[name] + 100) / 2)


def test_texts_that_the_official_tokenisers_read_get_the_official_numbers_only():
    """One reference in another script among many changes nothing; two of a hundred do."""
    golds = {str(number): [f"answer {number}", "Köln"] for number in range(100)}
    answers = dict.fromkeys(golds, "Köln")
    assert len([*overlap_evidences(answers, golds | {"0": ["γδ", "日本"]})]) == 2
    assert len([*overlap_evidences(answers, golds | {"0": ["γδ"], "1": ["δ"]})]) == 3
    assert len([*overlap_evidences(answers, golds | {"0": ["日本"], "1": ["中国"]})]) == 4
