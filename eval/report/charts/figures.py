"""The figures of results: scores, costs, probabilities, and scores by kind of question.

Each function returns None if there is nothing to draw. Systems keep their colour from figure to figure.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...metrics.columns import FloatArray
from .draw import HEIGHT, INK, RULE, SERIES, SOFT, Chart, draw
from .names import Names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

_MOST_POINTS = 200
"""The most points of a line."""
_MOST_LABELS = 12
"""Labels whose names and counts have room in a confusion matrix."""


class Mean(NamedTuple):
    """A score with its interval, which may be unknown."""

    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """Points of a line, and one of them that was chosen."""

    x: Sequence[float] | FloatArray
    y: Sequence[float] | FloatArray
    chosen: float | None = None

    def thinned(self) -> "Curve":
        """As many of the points, to the last, as a line needs."""
        step = max(1, math.ceil(len(self.x) / _MOST_POINTS))
        x, y = ([*reversed(own[::-1][::step])] for own in (self.x, self.y))
        return Curve(x, y, self.chosen)


Colours = Mapping[str, str]
"""The colour of each system by its name."""


def colours_of(names: Sequence[str]) -> Colours:
    """Return a colour for each system, the most important one first; they repeat after eight."""
    return {name: SERIES[number % len(SERIES)] for number, name in enumerate(names)}


def scores(metric: str, means: Mapping[str, Mean], colours: Colours) -> Chart | None:
    """The main score of each system with its interval, the first system at the top."""

    def paint(figure: "Figure", names: Names) -> None:
        axes = figure.add_subplot()
        for row, (name, mean) in enumerate(means.items()):
            axes.plot(
                [mean.low, mean.high], [row, row], color=colours[name], linewidth=3, alpha=0.45
            )
            axes.plot([mean.value], [row], "o", color=colours[name], markersize=8)
        axes.set_yticks(range(len(means)), [names.shown(name, 27) for name in means], color=INK)
        axes.set_ylim(len(means) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(metric)

    if not means:
        return None
    caption = f"The {metric} of each system; a bar is its 95 % interval."
    height = 0.9 + 0.36 * len(means)
    return draw("scores", f"{metric} of each system", caption, paint, height)


def cost(
    metric: str, means: Mapping[str, Mean], seconds: Mapping[str, float], colours: Colours
) -> Chart | None:
    """The score against the seconds to train. Systems of unknown cost are left out."""
    known = {name: means[name] for name in means if name in seconds}

    def paint(figure: "Figure", names: Names) -> None:
        axes = figure.add_subplot()
        for name, mean in known.items():
            at, colour = max(seconds[name], least), colours[name]
            axes.plot([at, at], [mean.low, mean.high], color=colour, linewidth=3, alpha=0.4)
            axes.plot([at], [mean.value], "o", color=colour, markersize=8, label=names.shown(name))
        axes.set_xscale("log")
        axes.set_xlim(least / 2, 2 * max(*seconds.values(), 10 * least))
        axes.minorticks_off()
        ticks = _times(least, max(seconds.values()))
        axes.set_xticks(
            [*ticks], ["none" if tick == least else text for tick, text in ticks.items()]
        )
        axes.set_xlabel("time to train")
        axes.set_ylabel(metric)
        _legend(figure)

    if len(known) < 2 or not any(seconds.values()):
        return None
    least = min(1.0, *(one for one in seconds.values() if one > 0)) / 3
    caption = f"The {metric} of each system by the time to train it; a bar is its 95 % interval."
    return draw(
        "cost", "Score against cost", caption, paint, HEIGHT + 0.25 * math.ceil(len(known) / 2)
    )


def _times(least: float, largest: float) -> dict[float, str]:
    """Return the ticks of an axis of seconds; the first one is for what needs no training."""
    usual = {
        1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36_000: "10 h", 360_000: "100 h",
    }  # fmt: skip
    kept = {tick: text for tick, text in usual.items() if least * 2 < tick <= largest * 2}
    return {least: "none"} | kept


def learning_curve(
    metric: str, lines: Mapping[str, Mapping[int, Mean]], colours: Colours
) -> Chart | None:
    """The score by the number of training examples, with the band of its 95 % interval."""

    def paint(figure: "Figure", names: Names) -> None:
        axes = figure.add_subplot()
        for name, points in lines.items():
            sizes, colour = [*points], colours[name]
            low, high = [one.low for one in points.values()], [one.high for one in points.values()]
            values = [one.value for one in points.values()]
            axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(sizes, values, "o-", color=colour, markersize=5, label=names.shown(name))
        axes.set_xscale("log")
        axes.minorticks_off()
        ticks = sorted({size for points in lines.values() for size in points})
        axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
        axes.set_xlabel("training examples")
        axes.set_ylabel(metric)
        _legend(figure)

    if max((len(points) for points in lines.values()), default=0) < 2:
        return None
    caption = f"The {metric} by the number of training examples; the band is the 95 % interval."
    return draw("learning_curve", "What more examples bring", caption, paint)


def confusion(
    name: str, system: str, columns: Sequence[str], rows: Mapping[str, Sequence[int]]
) -> Chart | None:
    """Counts by what is true (rows) and predicted (columns); shades are shares of a row."""

    def paint(figure: "Figure", names: Names) -> None:
        axes = figure.add_subplot()
        for row, counts in enumerate(rows.values()):
            for column, count in enumerate(counts):
                share = count / (sum(counts) or 1)
                axes.add_patch(_square((column - 0.5, row - 0.5), SERIES[0], 0.75 * share))
                if len(columns) <= _MOST_LABELS:
                    axes.text(column, row, f"{count:,}", ha="center", va="center")
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.grid(False)
        is_named = len(columns) <= _MOST_LABELS
        texts = [names.shown(text, 12) for text in columns] if is_named else []
        turned = 40 if is_named and len(columns) > 3 else 0
        axes.set_xticks(
            range(len(texts)), texts, rotation=turned, ha="right" if turned else "center"
        )
        own = [names.shown(text, 12) for text in rows] if is_named else []
        axes.set_yticks(range(len(own)), own)
        axes.set(xlabel="predicted", ylabel="true")

    caption = (
        f"What {system} predicts (across) of what is true (down); a darker cell is a larger share."
    )
    return draw(name, f"Predicted by {system}", caption, paint, 3.6 if len(rows) > 4 else 2.7)


def _square(corner: tuple[float, float], colour: str, alpha: float) -> "Patch":
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, facecolor=colour, alpha=alpha, edgecolor="none", linewidth=0)


def reliability(
    bins: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]], colours: Colours
) -> Chart | None:
    """Accuracy by mean confidence, a point for each bin that is not empty.

    bins: by system, the examples, the mean probability and the accuracy of each bin.
    """

    def paint(figure: "Figure", names: Names) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        for name, (counts, confidences, accuracies) in bins.items():
            kept = [i for i, count in enumerate(counts) if count]
            sizes = [20 + 160 * counts[i] / (sum(counts) or 1) for i in kept]
            x, y = [confidences[i] for i in kept], [accuracies[i] for i in kept]
            axes.plot(x, y, color=colours[name], linewidth=1, alpha=0.5, label=names.shown(name))
            axes.scatter(x, y, s=sizes, color=colours[name], alpha=0.85, linewidths=0)
        axes.set(
            xlim=(-0.02, 1.04), ylim=(-0.04, 1.06), xlabel="mean probability", ylabel="accuracy"
        )
        _legend(figure)

    caption = (
        "The accuracy of predictions by their probability. On the dashed line probabilities are right as they are; "
        "below it the model is too sure. A larger point stands for more examples."
    )
    return (
        draw("reliability", "Can its probabilities be trusted?", caption, paint) if bins else None
    )


def coverage(curves: Mapping[str, Curve], colours: Colours) -> Chart | None:
    """What is right of the surest predictions, by the share that is kept."""

    def paint(figure: "Figure", names: Names) -> None:
        axes = figure.add_subplot()
        _lines(axes, names, curves, colours)
        axes.set(
            xlim=(0, 1.02), xlabel="share of predictions kept, the surest first", ylabel="right"
        )
        _legend(figure)

    caption = "What is right if only the surest predictions are kept, and the others are left to a person."
    return draw("coverage", "What the surest predictions score", caption, paint) if curves else None


def threshold(curves: Mapping[str, Curve], colours: Colours) -> Chart | None:
    """F1 by the threshold above which a question is left unanswered; the used one is marked."""

    def paint(figure: "Figure", names: Names) -> None:
        axes = figure.add_subplot()
        _lines(axes, names, curves, colours)
        axes.set(
            xlim=(-0.02, 1.02), xlabel="threshold on the probability of no answer", ylabel="f1"
        )
        _legend(figure)

    caption = (
        "The F1 if a question is left unanswered above a threshold on the probability that it has no answer. "
        "A dashed line marks the threshold that was used."
    )
    return draw("threshold", "The threshold on no answer", caption, paint) if curves else None


def by_kind(
    name: str,
    title: str,
    kinds: Mapping[str, int],
    means: Mapping[str, Mapping[str, Mean]],
    colours: Colours,
) -> Chart | None:
    """The mean F1 by kind of question. kinds: how many questions each kind has. means: by system."""

    def paint(figure: "Figure", names: Names) -> None:
        axes = figure.add_subplot()
        width = 0.6 / max(1, len(means) - 1) if len(means) > 1 else 0.0
        for number, (system, own) in enumerate(means.items()):
            colour = colours[system]
            for place, kind in enumerate(kinds):
                at = place + (number - (len(means) - 1) / 2) * width
                axes.plot(
                    [at, at], [own[kind].low, own[kind].high], color=colour, linewidth=3, alpha=0.4
                )
                named = names.shown(system) if place == 0 else None
                axes.plot([at], [own[kind].value], "o", color=colour, markersize=6, label=named)
        axes.set_xticks(
            range(len(kinds)), [f"{names.shown(kind, 10)}\n{n:,}" for kind, n in kinds.items()]
        )
        axes.set(xlim=(-0.5, len(kinds) - 0.5), ylim=(-4, 104), ylabel="f1")
        axes.grid(False, axis="x")
        _legend(figure)

    if len(kinds) < 2:
        return None
    caption = "The mean F1 with its 95 % interval, and below each kind how many questions it has."
    return draw(name, title, caption, paint)


def _lines(axes: "Axes", names: Names, curves: Mapping[str, Curve], colours: Colours) -> None:
    for name, curve in curves.items():
        few = curve.thinned()
        mark = "o" if len(few.x) == 1 else ""
        axes.plot(few.x, few.y, marker=mark, color=colours[name], label=names.shown(name))
        if curve.chosen is not None:
            axes.axvline(curve.chosen, color=colours[name], linewidth=1, linestyle=(0, (4, 3)))
    axes.spines["left"].set_color(RULE)


def _legend(figure: "Figure") -> None:
    """Draw the names of the systems below the figure."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, loc="outside lower center", ncols=2, handlelength=1.4)
