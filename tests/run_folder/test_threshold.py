"""A threshold is read only with the weights that it was fitted for."""

import json
from pathlib import Path
from typing import Any

import pytest

from llama_peft.errors import UserError
from llama_peft.run_folder import layout, threshold
from llama_peft.system.files import with_sum
from tests.support import runs

ITS = "1" * 64
"""The sum of the run's weights."""


def threshold_of(folder: Path, record: dict[str, Any]) -> float:
    """Return the threshold of a record in the run folder with the weights ITS."""
    runs.write_record(folder, {"files": {layout.RECIPE: "0" * 64, layout.HEAD: ITS}})
    (folder / layout.THRESHOLD).write_text(json.dumps(with_sum(record)))
    found = threshold.read_threshold(folder)
    assert found is not None
    return found.no_answer_threshold


@pytest.mark.parametrize("value", ["NaN", "-5", "1e999", "null", '"x"', "1.5"])
def test_a_threshold_that_is_not_a_probability_is_refused(tmp_path: Path, value: str) -> None:
    record = json.loads(f'{{"no_answer_threshold": {value}, "adapter_sha256": "{ITS}"}}')
    with pytest.raises(UserError, match=r"damaged, or belongs to other weights.*llama-eval run"):
        threshold_of(tmp_path, record)


def test_a_threshold_for_other_weights_is_refused(tmp_path: Path) -> None:
    record = {"no_answer_threshold": 0.25, "adapter_sha256": ITS}
    assert threshold_of(tmp_path, record) == 0.25
    with pytest.raises(UserError, match="belongs to other weights"):
        threshold_of(tmp_path, record | {"adapter_sha256": "another's"})


@pytest.mark.parametrize(
    ("record", "fits"),
    [
        ({"label_thresholds": [0.5, 0.5], "temperature": 1.5}, True),
        ({"temperature": 1.5}, True),
        ({"no_answer_threshold": 0.5, "temperature": 1.5}, False),
        ({"no_answer_threshold": 0.5, "label_thresholds": [0.5, 0.5]}, False),
        ({}, False),
    ],
)
def test_what_is_fitted_together(tmp_path: Path, record: dict[str, Any], fits: bool) -> None:
    if fits:
        threshold_of(tmp_path, record)
    else:
        with pytest.raises(UserError, match="damaged"):
            threshold_of(tmp_path, record)
