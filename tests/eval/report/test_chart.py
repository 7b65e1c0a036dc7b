"""Laws of the loss curve."""

import math
import re
from itertools import pairwise

import pytest

from eval.report.chart import (
    Point,
    coverage_chart,
    loss_chart,
    loss_series,
    reliability_chart,
    ticks,
)
from tests.support.html import CheckedPage


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.13, 0.79), (2.5, 2.5), (0, 0), (-3, 4000), (1e-9, 3e-9), (0, 1)]
)
def test_ticks_are_round_and_enclose_the_range(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 7
    gap = found[1] - found[0]
    assert all(math.isclose(b - a, gap, rel_tol=1e-6) for a, b in pairwise(found))


def test_the_curve_holds_the_finite_losses_in_the_order_of_steps():
    log = [{"step": 2, "loss": 1.0}, {"step": 1, "loss": 2.0}, {"step": 3, "loss": math.nan}]
    assert loss_series([*log, {"loss": 1.0}, {"step": 4, "eval_loss": "x"}]) == {
        "training": [(1, 2.0), (2, 1.0)]
    }
    assert loss_chart([]) == loss_chart(log[2:]) == ""
    for some in (log, log[:1], [*log, {"step": 2, "eval_loss": 1.01}]):
        chart = loss_chart(some)
        CheckedPage(chart)
        assert "nan" not in chart
    names = re.findall(r'y="([\d.]+)">(training|validation)<', chart)
    assert [name for _, name in names] == ["training", "validation"]
    assert abs(float(names[0][0]) - float(names[1][0])) >= 12, "the names overlap"


def test_bins_on_the_diagonal_are_drawn_on_it_and_empty_ones_are_not_drawn():
    drawn = reliability_chart([0, 3, 1], [0.0, 0.5, 0.9], [0.0, 0.5, 0.2])
    assert drawn.count("<circle") == 2 and "3 examples" in drawn and "accuracy (up)" in drawn
    line, (x, y) = (
        re.search(r'points="([^"]+)"', drawn)[1],
        re.findall(r'c[xy]="([^"]+)"', drawn)[:2],
    )
    ends = [[float(number) for number in end.split(",")] for end in line.split()]
    middle = [sum(pair) / 2 for pair in zip(*ends, strict=True)]
    assert [float(x), float(y)] == pytest.approx(middle, abs=0.1)


def test_a_curve_of_coverage_ends_at_all_predictions_and_is_thinned() -> None:
    curve = [Point((n + 1) / 3000, 0.75) for n in range(3000)]
    drawn = coverage_chart({"zero-shot": [Point(1.0, 0.5)], "tuned": curve})
    CheckedPage(drawn)
    (line,) = (own.split() for own in re.findall(r'points="([^"]+)"', drawn) if " " in own)
    assert 100 < len(line) < 400 and drawn.count("<circle") == 1
    right = max(float(x) for x in re.findall(r'x2="([\d.]+)"', drawn))
    assert float(line[-1].split(",")[0]) == right
    assert coverage_chart({}) == ""
