"""The curves of a training: loss, length of the gradient and learning rate, by step."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .draw import BAD, SERIES, SOFT, Chart, draw
from .names import Names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Log = Sequence[Mapping[str, object]]
"""The lines of history.jsonl."""

_LARGEST = 1e15
_PANELS = {
    "loss": {"loss": "training", "eval_loss": "validation"},
    "gradient norm": {"grad_norm": "training"},
    "learning rate": {"learning_rate": "training"},
}
"""For each panel, the keys of the log that it shows, with their names."""


class Series(NamedTuple):
    """One curve in the order of steps, and the steps whose value is not a finite number."""

    steps: list[float]
    values: list[float]
    broken: list[float]


def series(history: Log, key: str) -> Series:
    """Return a curve of the log. What is far from the limits of computing is drawn, the rest is
    marked.
    """
    found = Series([], [], [])
    points = [(_number(line.get("step")), _number(line.get(key))) for line in history]
    known = [(step, value) for step, value in points if step is not None and value is not None]
    for step, value in sorted(known, key=lambda point: point[0]):
        if not 0 <= step <= _LARGEST:
            continue
        if math.isfinite(value) and abs(value) <= _LARGEST:
            found.steps.append(step)
            found.values.append(value)
        else:
            found.broken.append(step)
    return found


def _number(value: object) -> float | None:
    """Return a value of the log as a float; None if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def curves(history: Log, resumed_at: Sequence[int] = ()) -> Chart | None:
    """Return the chart of a training; None if its log holds no loss. resumed_at: the steps of the
    checkpoints that it was continued from.
    """
    panels = {
        title: {name: found for key, name in keys.items() if any(found := series(history, key))}
        for title, keys in _PANELS.items()
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    if "loss" not in panels:
        return None
    broken = sum(len(one.broken) for lines in panels.values() for one in lines.values())

    def paint(figure: "Figure", _names: Names) -> None:
        ratios = [1.6 if title == "loss" else 1.0 for title in panels]
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=ratios)
        for axes, (title, lines) in zip(grid[:, 0], panels.items(), strict=True):
            _panel(axes, title, lines, resumed_at)
        grid[-1, 0].set_xlabel("step")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=1.4)

    return draw(
        "training",
        "The training",
        _caption(panels, broken, resumed_at),
        paint,
        1.2 + 1.3 * len(panels),
    )


def _caption(panels: Mapping[str, object], broken: int, resumed_at: Sequence[int]) -> str:
    caption = f"{', '.join(panels).capitalize()} by training step."
    if resumed_at:
        steps, lines = " and ".join(f"{step:,}" for step in resumed_at), "A dashed line is the step"
        caption += f" {lines} from which the training was continued: {steps}."
    if broken:
        caption += f" {broken:,} values were not finite numbers (NaN or infinite): each is a cross at the top."
    return caption


def _panel(
    axes: "Axes", title: str, lines: Mapping[str, Series], resumed_at: Sequence[int]
) -> None:
    for (name, own), colour in zip(lines.items(), SERIES, strict=False):
        mark = "o" if name == "validation" or len(own.steps) == 1 else ""
        axes.plot(own.steps, own.values, marker=mark, markersize=4, color=colour, label=name)
        for step in own.broken:
            top = axes.get_xaxis_transform()
            axes.plot(
                [step], [1.0], "x", color=BAD, transform=top, clip_on=False, markeredgewidth=2
            )
    for step in resumed_at:
        axes.axvline(step, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_title(title, loc="left", fontsize=9.5, color=SOFT)
    axes.locator_params(axis="y", nbins=5)
