"""What a learning curve foretells, and when it does not."""

import math

import numpy as np
import pytest

from eval.metrics.learning_curve import Point, examples_for, fit, predicts

SIZES = (64, 256, 1024, 4096)


def of(highest: float, slope: float, exponent: float, noise: float = 0.0) -> list[Point]:
    draw = np.random.default_rng(0)
    return [Point(n, highest - slope * n**-exponent + noise * float(draw.normal())) for n in SIZES]


def test_a_power_law_is_found_again() -> None:
    found = fit(of(0.9, 2.0, 0.5))
    assert found.at(16_384) == pytest.approx(0.9 - 2 * 16_384**-0.5, abs=1e-3)


def test_examples_for_a_point_solve_the_power_law() -> None:
    more = examples_for(of(0.9, 2.0, 0.5), 0.01)
    now = 0.9 - 2 * 4096**-0.5
    exact = (2 / (0.9 - now - 0.01)) ** 2 - 4096
    assert more is not None
    assert more == pytest.approx(exact, rel=0.02)
    assert math.isclose(0.9 - 2 * (4096 + more) ** -0.5, now + 0.01, abs_tol=1e-3)


@pytest.mark.parametrize(
    "points",
    [
        of(0.8, 0.0, 1.0, noise=0.01),  # nothing but noise
        of(0.9, 2.0, 0.5)[:3],  # too few sizes
        [Point(64, 0.7), Point(256, 0.8), Point(1024, 0.85), Point(4096, 0.85)],  # it has ended
    ],
)
def test_a_curve_that_foretells_nothing_says_nothing(points: list[Point]) -> None:
    assert examples_for(points, 0.01) is None


def test_a_flat_line_foretells_a_flat_line_better() -> None:
    assert not predicts(of(0.8, 0.0, 1.0, noise=0.01))
    assert predicts(of(0.9, 2.0, 0.5))
