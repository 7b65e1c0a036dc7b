"""Laws of the drop-in metrics: equal to our own scores and to the libraries that they name."""

import pytest

from eval.metrics import classification, drop_in, squad_v2
from eval.metrics.evidence import scores_of
from eval.metrics.measure import answer_results
from eval.metrics.words.overlap import NoWordNet
from eval.metrics.words.wordnet import find_wordnet


def test_drop_in_metrics_equal_the_functions(tmp_path, written):
    answers, golds = written
    references = [
        {"id": key, "answers": {"text": texts, "answer_start": [0] * len(texts)}}
        for key, texts in golds.items()
    ]
    given = [
        {"id": key, "prediction_text": text, "no_answer_probability": number / 150}
        for number, (key, text) in enumerate(answers.items())
    ]
    chance = {row["id"]: row["no_answer_probability"] for row in given}
    v2 = drop_in.SquadV2(cache_dir=tmp_path)
    found = v2.compute(predictions=given[::-1], references=references)
    assert found == squad_v2.squad_scores(answers, golds, chance)
    found = v2.compute(predictions=given, references=references, no_answer_threshold=0.5)
    assert found == squad_v2.squad_scores(answers, golds, chance, threshold=0.5)
    other, unasked = given[0] | {"id": "other"}, references[0] | {"id": "other"}
    with pytest.raises(ValueError, match="predictions: 1 id"):
        v2.compute(predictions=[*given, given[0]], references=[*references, unasked])
    with pytest.raises(ValueError, match="references: 1 id"):
        v2.compute(predictions=[*given, other], references=[*references, references[0]])
    v1 = drop_in.Squad(cache_dir=tmp_path)
    pairs = [{key: row[key] for key in ("id", "prediction_text")} for row in given]
    found = v1.compute(predictions=pairs, references=references)
    assert found["exact_match"] == squad_v2.squad_scores(answers, golds)["exact"]


def test_drop_in_overlap_takes_the_hubs_arguments(tmp_path):
    """Those that the libraries take; another is refused by name."""
    from nltk.translate import meteor_score as nltk_meteor
    from rouge_score.rouge_scorer import RougeScorer

    texts = {
        "predictions": ["the cats were running", "", "a dog"],
        "references": [["the cat ran", "cats run fast"], [], ["dogs"]],
    }

    def compute(metric, **keys):
        return metric(cache_dir=tmp_path).compute(**texts, **keys)

    kinds = ["rouge1", "rouge3", "rougeL"]
    each = compute(drop_in.Rouge, rouge_types=kinds, use_stemmer=True, use_aggregator=False)
    scorer = RougeScorer(kinds, use_stemmer=True)
    best = scorer.score_multi(texts["references"][0], texts["predictions"][0])
    assert list(each) == kinds and each["rouge1"][0] == best["rouge1"].fmeasure > 0.5
    assert [each[kind][1] for kind in kinds] == [1.0, 1.0, 1.0]
    means = compute(drop_in.Rouge, rouge_types=kinds, use_stemmer=True)
    assert means == pytest.approx({kind: sum(row) / 3 for kind, row in each.items()})
    assert compute(drop_in.Rouge)["rouge1"] < compute(drop_in.Rouge, use_stemmer=True)["rouge1"]

    weights = {"alpha": 0.5, "beta": 2.0, "gamma": 0.1}
    lexicon = find_wordnet() or NoWordNet()
    golds = [[g.split() for g in gold] for gold in texts["references"]]
    singles = [
        nltk_meteor.meteor_score(gold, text.split(), wordnet=lexicon, **weights)
        for gold, text in zip(golds, texts["predictions"], strict=True)
        if gold
    ]
    (found,) = compute(drop_in.Meteor, **weights).values()
    assert found == pytest.approx((sum(singles) + 1) / 3)
    assert compute(drop_in.Meteor).values() != {found}

    for metric, key in [(drop_in.Bleu, "max_order"), (drop_in.Rouge, "tokenizer")]:
        with pytest.raises(ValueError, match=f"{metric.__name__} does not take {key}"):
            compute(metric, **{key: 2})


def test_drop_in_overlap_and_label_metrics(tmp_path):
    def compute(metric, **arguments):
        return metric(cache_dir=tmp_path).compute(**arguments)

    texts = {"predictions": ["the cat sat", "x"], "references": [["a cat sat", "cats"], ["y"]]}
    keyed = [dict(zip("12", values, strict=True)) for values in texts.values()]
    scores = answer_results(*keyed)
    assert compute(drop_in.Bleu, **texts)["bleu"] == scores["bleu"]
    assert compute(drop_in.Rouge, **texts)["rougeLsum"] == scores["rougeLsum"]
    (name, meteor), *none = compute(drop_in.Meteor, **texts).items()
    assert meteor == scores[name] and not none
    one = compute(drop_in.Rouge, predictions=["a b"], references=["a b"])
    assert one["rouge2"] == 1
    labels = {"predictions": [1, 0, 1, 1], "references": [1, 0, 0, 1]}
    assert compute(drop_in.Accuracy, **labels) == {"accuracy": 0.75}
    assert compute(drop_in.Precision, **labels)["precision"] == pytest.approx(2 / 3)
    assert compute(drop_in.Recall, **labels) == {"recall": 1.0}
    words = {"predictions": ["a", "b", "b"], "references": ["a", "b", "a"]}
    predictions, golds = (dict(zip("123", its, strict=True)) for its in words.values())
    ours = scores_of(classification.classification_evidence(predictions, golds, ["a", "b"]))
    found = compute(drop_in.F1, **words, average="macro")
    assert found["f1"] == pytest.approx(ours["f1_macro"])
    assert compute(drop_in.F1, **words, pos_label="b")["f1"] == pytest.approx(ours["f1"])
