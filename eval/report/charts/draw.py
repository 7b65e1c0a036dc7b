"""One figure of matplotlib as part of a page, as an SVG file and as a PNG file.

In a page, a drawing has the page's colours, light or dark, and its text is text. matplotlib writes
neither: it puts every colour into a style attribute, which the page's policy forbids. So its drawing
is written again with classes in place of colours; `palette.css` says what a class looks like.
matplotlib takes about a second to load, so only functions import it.
"""

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from llama_peft.run_folder.ownership import CHART_SIGN

from . import fonts
from .names import Names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Mapping[str, str] = {
    "#ffffff": "paper", "#1d2530": "ink", "#596573": "soft", "#dfe3e8": "rule", "#b42318": "bad", "#2459c4": "c1",
    "#c2500a": "c2", "#0d7a70": "c3", "#7a3fd0": "c4", "#8a6d00": "c5", "#b8256e": "c6", "#4c6a85": "c7", "#3c7a1e": "c8",
}  # fmt: skip
"""The name of each colour that a figure may use, by its value in light mode. `palette.css` has both modes."""
INK, SOFT, RULE, BAD, *SERIES = list(COLOURS)[1:]
WIDTH, HEIGHT = 5.0, 3.3
"""Inches: on a phone a drawing is shown at about its own size, 72 pixels an inch."""
_PALETTE = Path(__file__).with_name("palette.css")
_STYLE = Path(__file__).with_name("chart.mplstyle")
_KEPT = ("stroke-width", "stroke-dasharray", "stroke-opacity", "fill-opacity", "opacity", "font-size", "font-weight",
         "text-anchor")  # fmt: skip
_NUMBER = re.compile(r"-?\d+\.\d+")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing with the words around it."""

    name: str
    """Of its files."""
    title: str
    caption: str
    """What it shows and how it is read; also its text for who cannot see it."""
    figure: "Figure"
    names: Names
    """Those in the figure."""

    def renamed(self, name: str) -> "Chart":
        """The same drawing under another name."""
        return replace(self, name=name)

    @property
    def inline(self) -> str:
        """The `<svg>` for a page. The page gives it its colours and its font."""
        label = _attributes({"aria-label": f"{self.title}. {self.caption}"})
        return f'<svg viewBox="{self._box}" role="img"{label}>{self._body}</svg>'

    @property
    def svg(self) -> str:
        """The text of an SVG file, which follows light and dark as a page does."""
        style = f"svg{{font-family:system-ui,sans-serif}}{_PALETTE.read_text('utf-8')}"
        box = self._box
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"><!-- {CHART_SIGN} -->'
            f"<title>{escape(self.title)}</title><style>{style}</style>"
            f'<rect width="100%" height="100%" class="f-paper"/>{self._body}</svg>\n'
        )

    @cached_property
    def png(self) -> bytes:
        """The content of a PNG file, in light colours. It has 128 colours, which makes it a third as large."""
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        file, facts = io.BytesIO(), PngInfo()
        facts.add_text("Software", CHART_SIGN)
        image = (
            Image.open(io.BytesIO(_raster(self.figure)))
            .convert("RGB")
            .quantize(128, method=Image.Quantize.FASTOCTREE)
        )
        image.save(file, format="png", optimize=True, pnginfo=facts)
        return file.getvalue()

    @property
    def _box(self) -> str:
        width, height = self.figure.get_size_inches() * 72
        return f"0 0 {width:g} {height:g}"

    @cached_property
    def _body(self) -> str:
        file = io.StringIO()
        with _quiet():
            self.figure.savefig(file, format="svg", transparent=True)
        return "".join(_rewritten(file.getvalue(), self.names))


def draw(
    name: str,
    title: str,
    caption: str,
    paint: "Callable[[Figure, Names], None]",
    height: float = HEIGHT,
) -> Chart:
    """Return the chart that `paint` draws on an empty figure, whose layout fits its texts.

    It takes the texts of names from its second argument.
    """
    from matplotlib.text import Text

    with _quiet():
        figure = _kind_of_figure()(figsize=(WIDTH, height), layout="constrained")
        paint(figure, names := Names())
        _lay_out(figure)  # once, for both files
        if len(known := fonts.families(one.get_text() for one in figure.findobj(Text))) > 1:
            for text in figure.findobj(Text):
                text.set_fontfamily(known)
            _lay_out(figure)
        figure.set_layout_engine(None)  # with a placeholder matplotlib would draw each file twice
    return Chart(name=name, title=title, caption=caption, figure=figure, names=names)


def _lay_out(figure: "Figure") -> None:
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)


@cache
def _kind_of_figure() -> "type[Figure]":
    from matplotlib.figure import Figure

    class Shown(Figure):
        """A figure that a notebook shows, also if nobody has imported pyplot, which makes it do so."""

        def _repr_png_(self) -> bytes:
            return _raster(self)

    return Shown


def _raster(figure: "Figure") -> bytes:
    """Return a figure as a PNG file."""
    file = io.BytesIO()
    with _quiet():
        figure.savefig(file, format="png", dpi=144)
    return file.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Our settings of matplotlib, and none of its words."""
    import matplotlib

    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with warnings.catch_warnings(), matplotlib.rc_context(fname=_STYLE):
        warnings.simplefilter("ignore")
        yield


def _rewritten(svg: str, names: Names) -> Iterator[str]:
    """Yield the elements of matplotlib's drawing without identifiers, styles and references."""
    root = ElementTree.fromstring(svg)
    marks = {one.get("id", ""): one for one in root.iter(_tag("path"))}
    for element in root.iter():
        name = element.tag.rpartition("}")[2]
        if name == "use":
            mark = marks[next(v for k, v in element.items() if k.endswith("href"))[1:]]
            moved = f"translate({_short(element.get('x', '0'))} {_short(element.get('y', '0'))})"
            style = f"{mark.get('style', '')};{element.get('style', '')}"
            yield _path(mark.get("d", ""), style, moved)
        elif name == "path" and not element.get("id"):
            yield _path(element.get("d", ""), element.get("style", ""))
        elif name == "text":
            turned = element.get("transform", "")
            place = {key: _short(element.get(key, "0")) for key in ("x", "y")}
            if turned and not turned.startswith("rotate(-0 "):
                place["transform"] = _short(turned)
            words = _attributes(place | _look(element.get("style", ""), is_text=True))
            yield f"<text{words}>{escape(names.text(element.text or ''))}</text>"


def _path(shape: str, style: str, moved: str = "") -> str:
    look = _look(style)
    if look.get("class") == "" or not shape.strip():
        return ""
    place = {"d": _short(" ".join(shape.split()))} | ({"transform": moved} if moved else {})
    return f"<path{_attributes(place | look)}/>"


def _look(style: str, is_text: bool = False) -> dict[str, str]:
    """Return the attributes that stand for a style: a class for each colour. An empty class: nothing
    is seen.
    """
    rules = dict(pair.split(":", 1) for pair in style.split(";") if ":" in pair)
    rules = {name.strip(): value.strip() for name, value in rules.items()}
    fill = rules.get("fill", INK if is_text else "#000000")
    classes = [] if fill == "none" or rules.get("fill-opacity") == "0" else [f"f-{_colour(fill)}"]
    if (stroke := rules.get("stroke", "none")) != "none":
        classes.append(f"s-{_colour(stroke)}")
    look = {"class": " ".join(classes)}
    if fill == "none":
        look["fill"] = "none"
    return look | {name: rules[name].replace("px", "") for name in _KEPT if name in rules}


def _colour(value: str) -> str:
    """Return the name of a colour. matplotlib writes none for black text."""
    return "ink" if value == "#000000" else COLOURS[value]


def _attributes(values: Mapping[str, str]) -> str:
    quoted = {'"': "&quot;"}
    return "".join(f' {name}="{escape(value, quoted)}"' for name, value in values.items())


def _short(text: str) -> str:
    """Return a text whose numbers have one decimal at most: a tenth of a pixel is not seen."""
    return _NUMBER.sub(lambda found: f"{float(found[0]):.1f}".rstrip("0").rstrip("."), text)


def _tag(name: str) -> str:
    return f"{{http://www.w3.org/2000/svg}}{name}"
