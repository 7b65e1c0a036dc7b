"""Laws of charts: they show every value, and in a page they hold nothing but shapes, words and names of colours."""

import io
import math
import re
import warnings
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from eval.report.charts import figures, fonts, training
from eval.report.charts.draw import COLOURS, SERIES
from eval.report.charts.figures import Curve, Mean
from eval.report.charts.names import Names
from llama_peft.export.report import _TAG
from tests.support.html import CheckedPage
from tests.support.paths import ROOT

PALETTE = (ROOT / "eval/report/charts/palette.css").read_text("utf-8")
LOG = [{"step": n, "loss": 1 / n, "grad_norm": 1.0, "learning_rate": 1e-3} for n in range(1, 9)]


def shapes(drawing: str, colour: str) -> list[str]:
    """The shapes of a colour."""
    return re.findall(rf'<path d="([^"]+)"[^>]*class="[^"]*\b[fs]-{colour}\b', drawing)


def test_a_drawing_in_a_page_is_made_of_shapes_words_and_names_of_colours() -> None:
    """So it needs no style of its own, which the page's policy forbids, and follows light and dark."""
    names = ["<script>", '_a" $x^2$ & \x1b[31m', "c"]
    means = {name: Mean(0.5, 0.4, 0.6) for name in names}
    chart = figures.scores("accuracy", means, figures.colours_of(names))
    assert chart is not None
    CheckedPage(chart.inline)
    assert not _TAG.sub("", chart.inline).count("<"), "the element may not be pushed"
    assert not re.search(r"style=|url\(|href|#[0-9a-f]{6}|\bid=", chart.inline)
    for name in set(re.findall(r"[fs]-\w+", chart.inline)):
        assert f".{name} {{" in PALETTE, name
    words = CheckedPage(chart.inline).text
    assert "<script>" in words and '_a" $x^2$ & \\x1b[31m' in words


def test_the_palette_has_the_colours_of_the_drawings_in_light_mode() -> None:
    for value, name in COLOURS.items():
        assert f"--{name}: {value};" in PALETTE, name


def test_the_files_of_a_chart_say_who_drew_them() -> None:
    chart = training.curves(LOG)
    assert chart is not None
    root = ElementTree.fromstring(chart.svg)
    assert root.tag.endswith("svg") and "prefers-color-scheme: dark" in chart.svg
    assert chart.png.startswith(b"\x89PNG") and b"llama_peft drew this chart" in chart.png
    assert "llama_peft drew this chart" in chart.svg


def test_a_figure_shows_itself_in_a_notebook() -> None:
    """IPython asks for this method; it knows figures of matplotlib only once pyplot is imported."""
    chart = training.curves(LOG)
    assert chart is not None and isinstance(chart.figure, Figure)
    shown = chart.figure._repr_png_()  # type: ignore[attr-defined]
    assert Image.open(io.BytesIO(shown)).size == Image.open(io.BytesIO(chart.png)).size


def test_a_png_has_the_colour_of_every_system() -> None:
    names = list("abcdefgh")
    means = dict.fromkeys(names, Mean(50, 40, 60))
    chart = figures.scores("f1", means, figures.colours_of(names))
    assert chart is not None
    found = Image.open(io.BytesIO(chart.png)).convert("RGB").getcolors(1 << 20)
    assert {*SERIES} <= {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in found}


@pytest.mark.parametrize(
    "value", [math.nan, -math.inf, 1e300, 10**400], ids=["nan", "-inf", "huge", "no float"]
)
def test_what_cannot_be_drawn_is_marked(value: float) -> None:
    broken = training.curves([*LOG, {"step": 9, "loss": value}, {"step": 4.5, "grad_norm": value}])
    assert broken is not None and len(shapes(broken.inline, "bad")) == 2
    assert "2 values were not finite numbers" in broken.caption
    assert not re.search(r"nan|inf", "".join(re.findall(r' d="([^"]*)"', broken.inline)))


def test_a_training_that_was_continued_is_marked_where() -> None:
    chart = training.curves(LOG, resumed_at=[4, 6])
    assert chart is not None and "from which the training was continued: 4 and 6." in chart.caption
    assert not shapes(chart.inline, "bad")
    assert chart.inline.count("stroke-dasharray") == 2 * 3, "both in each of the panels"


def test_the_order_of_a_log_does_not_matter_and_what_is_no_number_is_left_out() -> None:
    more = [
        {"loss": 1.0},
        {"step": 4, "loss": "x"},
        {"step": True, "loss": 1.0},
        {"step": -1, "loss": 1.0},
    ]
    found = training.series([*reversed(LOG), *more], "loss")
    assert found.steps == [line["step"] for line in LOG] and not found.broken
    assert training.curves([]) is None and training.curves(more) is None


def test_nothing_to_draw_gives_no_chart() -> None:
    one = {"a": Mean(0.5, 0.4, 0.6)}
    colours = figures.colours_of(["a"])
    assert figures.scores("f1", {}, colours) is None
    assert figures.cost("f1", one, {"a": 3.0}, colours) is None
    assert figures.learning_curve("f1", {"a": {12: one["a"]}}, colours) is None
    assert figures.reliability({}, colours) is figures.coverage({}, colours) is None
    assert (
        figures.threshold({}, colours) is figures.by_kind("x", "x", {"a": 1}, {}, colours) is None
    )


def test_a_curve_is_thinned_and_keeps_its_last_point() -> None:
    y = [0.5 + (n * 7919 % 1000) / 4000 for n in range(2999)] + [0.1]
    curve = Curve([(n + 1) / 3000 for n in range(3000)], y)
    chart = figures.coverage({"a": curve}, figures.colours_of(["a"]))
    assert chart is not None
    longest = max(shapes(chart.inline, "c1"), key=len)
    points = re.findall(r"[ML] ([\d.]+) ([\d.]+)", longest)
    lowest = max(float(height) for _, height in points)
    assert 50 < len(points) < 400 and float(points[-1][1]) == lowest


@pytest.mark.parametrize("title", ["東京 カフェ", "हिन्दी", "العربية", "plain", "😀 ok"])
def test_a_name_in_any_script_is_drawn_without_boxes(title: str) -> None:
    """In another font, or as numbers; in a page it is text."""
    names = [title, "x"]
    chart = figures.scores("f1", dict.fromkeys(names, Mean(50, 40, 60)), figures.colours_of(names))
    assert chart is not None
    assert title in CheckedPage(chart.inline).text
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of each letter that its fonts lack
        chart.figure.savefig(io.BytesIO(), format="png")
        figure = Figure()
        figure.text(0, 0, "\u0939")
        with pytest.raises(UserWarning, match="missing from font"):
            figure.savefig(io.BytesIO(), format="png")


def test_a_letter_that_no_font_has_is_its_number() -> None:
    """STIX, which comes with matplotlib, has the hiragana."""
    assert len(fonts.families(["a", "\u306e"])) == 2 and fonts.families("a") == ["DejaVu Sans"]
    for text in ("plain", "a \u306e b", "\\u4e2d is text"):
        assert fonts.drawable(text) == [*text]
    assert fonts.drawable("a\U000e0fff") == ["a", "\\U000e0fff"]


UNKNOWN = [chr(0xE0F00 + number) for number in range(12)]
"""Letters that no font has, whatever is installed."""
ALIKE = ["".join(UNKNOWN[:10]) + one for one in UNKNOWN[10:]]


def test_a_name_without_a_font_is_whole_in_a_page() -> None:
    """A browser may have its letters. Twelve stand in a matrix, and there they are twelve letters."""
    chart = figures.confusion("c", "s", ALIKE, {one: [1, 1] for one in ALIKE})
    words = re.findall(r"<text[^>]*>([^<]*)</text>", chart.inline)
    assert [words.count(one) for one in ALIKE] == [2, 2], "across and down"
    drawn = {one.get_text() for one in chart.figure.findobj(Text)} - {"1", "", *words}
    assert len(drawn) == 2 and all(len(one) <= 24 for one in drawn)


def test_two_names_are_never_shown_alike() -> None:
    """Neither in a page nor as a picture, by whatever they are cut; and one is always shown as itself."""
    names = Names()
    long = [f"a name that is cut {number}" for number in range(12)]
    many = [*ALIKE, *long, UNKNOWN[0], f"\\U{ord(UNKNOWN[0]):08x}", "_a", " _a", "a b", "a  b"]
    drawn = [names.shown(name, 12) for name in many]
    assert drawn == [names.shown(name, 12) for name in many]
    texts = [names.text(one) for one in drawn]
    assert len({*drawn}) == len({*texts}) == len(many)
    assert all(len(one) <= 12 for one in texts) and all(len(one) <= 24 for one in drawn)
    assert texts[:2] == ALIKE and texts[2] == "a name that…" and drawn[1].endswith("…2")
