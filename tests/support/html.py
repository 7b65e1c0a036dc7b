"""A parser that checks a page, texts that mean something in Markdown or HTML, and what they show."""

import json
import re
from html.parser import HTMLParser
from typing import Any


def embedded(page: str) -> list[dict[str, Any]]:
    """The examples that a report holds as JSON, by part."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    parts: list[dict[str, Any]] = json.loads(found[1])
    return parts


class CheckedPage(HTMLParser):
    """Fails on tags that do not nest; keeps tags, attributes and text."""

    VOID = ("meta", "br", "input", "circle", "line", "polyline")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += f"{data} "


EVIL = [
    "<script>alert(1)</script>",
    "[a](javascript:x) ![b](https://x.org/b.png)",
    "](javascript:x)",
    "``` ` ~~~",
    "a|b||c",
    "a\n\n---\n# b\n```\n- c",
    "---",
    "\x1b[31mred\x1b]0;t\x07\x7f\x9b",
    "\u202ereversed\u2066\u200b\u2028",
    "https://x.org/a?b www.x.org <x@y.org>",
    "**a** _b_ *c* $d$ &lt;b&gt; \\<i>",
]
GOOD = ["positive", "sci/tech", "C++", "très bien", "snake_case", "5 (best)", "C#", "don't: no"]


def rendered(text: str) -> str:
    """The HTML of a Markdown text without its metadata, with raw HTML and tables as on the Hub."""
    from markdown_it import MarkdownIt

    body = text.split("\n---\n", 1)[1] if text.startswith("---\n") else text
    return str(MarkdownIt("commonmark").enable("table").render(body))
