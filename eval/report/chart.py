"""Curves as SVG elements, without a plotting library: lines and points, and two axes with ticks.

Colours are the page's CSS variables, so that the drawing follows its light or dark scheme.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llama_peft.run_folder.layout import TUNED, ZERO_SHOT

WIDTH, HEIGHT = 720, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 96, 12, 36
_LARGEST = 1e15
_SMALLEST = 1e-9
"""The smallest range of an axis: on a smaller one, all ticks would be the same number."""
_NAMES = {"loss": "training", "eval_loss": "validation"}
_COLOURS = {
    "training": "training", "validation": "validation", TUNED: "training", ZERO_SHOT: "validation",
}  # fmt: skip
"""The class of each line, which has its colour."""
_MOST = 200
"""Points of a line about."""


class Point(NamedTuple):
    """A value at a training step, or at another number across."""

    step: float
    value: float


@dataclass(frozen=True)
class _Scale:
    """Where a point of the curve is drawn; the ticks are the ends of the axes and lines between."""

    x_ticks: list[float]
    y_ticks: list[float]

    def place(self, point: Point) -> tuple[float, float]:
        """The point in the drawing, in pixels from the upper left corner."""
        across = (point.step - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        up = (point.value - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        x = _LEFT + across * (WIDTH - _LEFT - _RIGHT)
        return round(x, 1), round(HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM), 1)


def loss_series(history: Sequence[Mapping[str, object]]) -> dict[str, list[Point]]:
    """The losses of each series that can be drawn, in the order of steps; without series that have
    none.
    """
    series = {}
    for key, name in _NAMES.items():
        points = []
        for line in history:
            step, loss = line.get("step"), line.get(key)
            if isinstance(step, int | float) and isinstance(loss, int | float):
                points.append(Point(step, loss))
        drawn = sorted(point for point in points if _can_be_drawn(point))
        if drawn:
            series[name] = drawn
    return series


def _can_be_drawn(point: Point) -> bool:
    """Whether both numbers are finite, and far from the limits of what can be computed."""
    return 0 <= point.step <= _LARGEST and -_LARGEST <= point.value <= _LARGEST


def loss_chart(history: Sequence[Mapping[str, object]]) -> str:
    """The `<svg>` of training and validation loss by step; empty if the history holds no loss."""
    series = loss_series(history)
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    scale = _Scale(
        ticks(0, max(point.step for point in points)),
        ticks(min(p.value for p in points), max(p.value for p in points)),
    )
    return _lines(series, scale, "Loss by training step", "step", marked=("validation",))


def coverage_chart(curves: Mapping[str, Sequence[Point]]) -> str:
    """The `<svg>` of what is right of the surest predictions, by the share that is kept; empty if
    there is no curve. curves: by the name of the system.
    """
    if not curves:
        return ""
    scale = _Scale(ticks(0, 1, 6), ticks(0, 1, 6))
    thinned = {name: _thinned(curve) for name, curve in curves.items()}
    across = (
        "share of the predictions that is kept, the surest first (across), and what is right (up)"
    )
    return _lines(thinned, scale, "Score by coverage", across)


def _thinned(curve: Sequence[Point]) -> list[Point]:
    """At most about `_MOST` points of a curve, its last one among them."""
    step = 1 + len(curve) // _MOST
    return [*reversed(curve[::-1][::step])]


def _lines(
    series: Mapping[str, Sequence[Point]],
    scale: _Scale,
    title: str,
    across: str,
    marked: Sequence[str] = (),
) -> str:
    """The `<svg>` of two lines at most, with their names. marked: lines whose points are drawn."""
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">',
        *_axes(scale, across),
    ]
    ends = _label_heights([scale.place(line[-1])[1] for line in series.values()])
    for (name, line), height in zip(series.items(), ends, strict=True):
        placed = [scale.place(point) for point in line]
        parts.append(f'<g class="{_COLOURS[name]}">')
        parts.append(f'<polyline points="{" ".join(f"{x},{y}" for x, y in placed)}"/>')
        if name in marked or len(line) == 1:
            parts += [f'<circle cx="{x}" cy="{y}" r="3.5"/>' for x, y in placed]
        parts.append(f'<text x="{placed[-1][0] + 8}" y="{height}">{name}</text></g>')
    return "\n".join([*parts, "</svg>"])


def reliability_chart(
    counts: Sequence[float], confidences: Sequence[float], accuracies: Sequence[float]
) -> str:
    """The `<svg>` of accuracy by mean confidence, a point for each bin that is not empty.

    On the diagonal, probabilities are right as they are. The area of a point grows with its count.
    """
    scale = _Scale(ticks(0, 1, 6), ticks(0, 1, 6))
    ends = " ".join("{},{}".format(*scale.place(Point(end, end))) for end in (0, 1))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Accuracy by confidence">',
        *_axes(scale, "mean probability of the predicted label (across), and its accuracy (up)"),
        f'<g class="validation"><polyline points="{ends}"/></g><g class="training">',
    ]
    total = sum(counts) or 1
    for count, confidence, accuracy in zip(counts, confidences, accuracies, strict=True):
        if count:
            x, y = scale.place(Point(confidence, accuracy))
            radius = 2 + 12 * math.sqrt(count / total)
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="{radius:.1f}">'
                f"<title>{count:,.0f} examples</title></circle>"
            )
    return "\n".join([*parts, "</g></svg>"])


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that enclose the range: at least two, 1, 2 or 5 times a power of ten apart."""
    span = high - low
    if span <= _SMALLEST * max(1.0, abs(high)):
        span = abs(high) if abs(high) > _SMALLEST else 1.0
    rough = span / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _axes(scale: _Scale, across: str) -> list[str]:
    x_ticks, y_ticks, place = scale.x_ticks, scale.y_ticks, scale.place
    left, bottom = place(Point(x_ticks[0], y_ticks[0]))
    right, _ = place(Point(x_ticks[-1], y_ticks[-1]))
    parts = ['<g class="axes">']
    for tick in y_ticks:
        _, y = place(Point(x_ticks[0], tick))
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x, _ = place(Point(tick, y_ticks[0]))
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{tick:,g}</text>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 2}" text-anchor="middle">{across}</text></g>')
    return parts


def _label_heights(heights: Sequence[float], apart: float = 15) -> list[float]:
    """The heights of the lines' names: beside the ends of the lines, but never on one another."""
    if len(heights) < 2 or abs(heights[0] - heights[1]) >= apart:
        return [height + 4 for height in heights]
    middle = sum(heights) / 2 + 4
    up, down = middle - apart / 2, middle + apart / 2
    return [up, down] if heights[0] <= heights[1] else [down, up]
