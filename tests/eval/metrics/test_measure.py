"""Laws of a task's results: every score has a row in the table of metrics, and an interval."""

import json
import subprocess
import sys

import pytest

from eval.metrics import catalogue, measure, squad_v2
from tests.support.paths import ROOT
from tests.support.questions import HAND_ANSWERS, HAND_GOLDS

WITHOUT_INTERVAL = {"roc_auc", "average_precision"}
LOWER_IS_BETTER = ("unparsable", "brier_score", "log_loss", "ece", "aurc", "aurc_exact", "aurc_f1")


def test_every_score_has_an_interval_around_it_and_counts_have_none(written):
    answers, golds = written
    chance = {key: number / len(golds) for number, key in enumerate(golds)}
    labels = ["neg", "pos"]
    truth = {str(i): labels[i % 2] for i in range(30)}
    given = {key: label if int(key) % 5 else "pos" for key, label in truth.items()}
    sure = {key: [0.8 - int(key) / 60, 0.2 + int(key) / 60] for key in truth}
    for results in (
        measure.answer_results(
            squad_v2.apply_threshold(answers, chance, 0.9), golds, chance, before=answers
        ),
        measure.classification_results(given, truth, labels, sure),
    ):
        for name in {*filter(catalogue.is_score, results)} - WITHOUT_INTERVAL:
            low, high = results[f"{name}_ci95"]
            assert low <= results[name] <= high, name
            assert catalogue.higher_is_better(name) is (name not in LOWER_IS_BETTER)
        for name in results:
            if not catalogue.is_score(name):
                assert f"{name}_ci95" not in results
        json.dumps(results, allow_nan=False)


def test_a_threshold_holds_for_overlap_too():
    chance = dict.fromkeys(HAND_GOLDS, 1.0)
    silenced = squad_v2.apply_threshold(HAND_ANSWERS, chance, 0.5)
    results = measure.answer_results(silenced, HAND_GOLDS, chance, before=HAND_ANSWERS)
    assert (results["HasAns_rouge1"], results["rouge1"], results["exact"]) == (0, 0.4, 40)


def test_which_way_is_better():
    assert catalogue.higher_is_better("f1") and not catalogue.higher_is_better("unparsable")
    with pytest.raises(ValueError, match="has no row"):
        catalogue.higher_is_better("best_f1_thresh")


def test_scoring_imports_no_torch_and_nothing_of_training():
    code = (
        "import sys; from eval.metrics.measure import answer_results, classification_results;"
        "answer_results({'1': 'a b'}, {'1': ['a b']});"
        "classification_results({'1': 'a'}, {'1': 'a'}, ['a', 'b']);"
        "loaded = {name.split('.')[1] for name in sys.modules if name.startswith('llama_peft.')};"
        "print(*{'torch', 'evaluate'} & sys.modules.keys(), *loaded - {'errors', 'system'})"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
