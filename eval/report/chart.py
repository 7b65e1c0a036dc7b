"""The loss curve as an SVG element, without a plotting library: two lines, two axes, their ticks.

Colours are the page's CSS variables, so that the drawing follows its light or dark scheme.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

WIDTH, HEIGHT = 720, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 96, 12, 36
_NAMES = {"loss": "training", "eval_loss": "validation"}


class Point(NamedTuple):
    """A value at a training step."""

    step: float
    value: float


def loss_series(history: Sequence[dict[str, Any]]) -> dict[str, list[Point]]:
    """Finite losses by series, in the order of steps; a series without any is left out."""
    series = {}
    for key, name in _NAMES.items():
        points = [
            Point(line["step"], line[key])
            for line in history
            if isinstance(line.get(key), int | float)
            and isinstance(line.get("step"), int | float)
            and math.isfinite(line[key])
        ]
        if points:
            series[name] = sorted(points)
    return series


def loss_chart(history: Sequence[dict[str, Any]]) -> str:
    """The `<svg>` of training and validation loss by step; empty when the history holds no loss."""
    series = loss_series(history)
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    x_ticks = ticks(0, max(point.step for point in points))
    y_ticks = ticks(min(p.value for p in points), max(p.value for p in points))

    def place(point: Point) -> tuple[float, float]:
        across = (point.step - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (point.value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        x = _LEFT + across * (WIDTH - _LEFT - _RIGHT)
        return round(x, 1), round(HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM), 1)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Loss by training step">',
        *_axes(x_ticks, y_ticks, place),
    ]
    ends = _label_heights([place(line[-1])[1] for line in series.values()])
    for (name, line), height in zip(series.items(), ends, strict=True):
        placed = [place(point) for point in line]
        parts.append(f'<g class="{name}">')
        parts.append(f'<polyline points="{" ".join(f"{x},{y}" for x, y in placed)}"/>')
        if name == "validation" or len(line) == 1:
            parts += [f'<circle cx="{x}" cy="{y}" r="3.5"/>' for x, y in placed]
        parts.append(f'<text x="{placed[-1][0] + 8}" y="{height}">{name}</text></g>')
    return "\n".join([*parts, "</svg>"])


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose the range, two at least."""
    span = (high - low) or abs(high) or 1.0
    rough = span / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _axes(x_ticks: list[float], y_ticks: list[float], place: Any) -> list[str]:
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
    parts.append(f'<text x="{middle}" y="{HEIGHT - 2}" text-anchor="middle">step</text></g>')
    return parts


def _label_heights(heights: Sequence[float], apart: float = 15) -> list[float]:
    """Where the lines' names stand: beside their ends, and never on one another."""
    if len(heights) < 2 or abs(heights[0] - heights[1]) >= apart:
        return [height + 4 for height in heights]
    middle = sum(heights) / 2 + 4
    up, down = middle - apart / 2, middle + apart / 2
    return [up, down] if heights[0] <= heights[1] else [down, up]
