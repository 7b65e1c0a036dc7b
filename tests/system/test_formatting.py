"""Names stand in Markdown as they are."""

import html
import re

import pytest

from llama_peft.system.formatting import as_code, hub_link, in_markdown
from llama_peft.system.terminal import one_line
from tests.support.html import EVIL, GOOD, rendered


@pytest.mark.parametrize("text", [*EVIL, *GOOD])
def test_a_text_is_shown_as_it_is(text: str) -> None:
    shown = rendered(f"Name: {in_markdown(text)}, and *{in_markdown(text)}*.")
    inside = html.unescape(shown.removeprefix("<p>").removesuffix("</p>\n"))
    assert inside == f"Name: {one_line(text)}, and <em>{one_line(text)}</em>."
    cells = re.findall(
        "<td>(.*)</td>", rendered(f"| a | b |\n|---|---|\n| {in_markdown(text)} | 5 |")
    )
    assert [html.unescape(cell) for cell in cells] == [one_line(text), "5"]


@pytest.mark.parametrize("text", EVIL)
def test_no_naive_reader_finds_markup(text: str) -> None:
    for shown in (in_markdown(text), as_code(text), hub_link(text)):
        without = shown.replace("[---](https://huggingface.co/---)", "")
        assert not re.search(r"<|>|\]\(|`[^`]*[^\w`./:+-]|://|www\.|\n", without)


def test_ordinary_names_stay_readable_in_the_file() -> None:
    assert [in_markdown(text) for text in GOOD] == GOOD
    assert as_code("sst2-head_official") == "`sst2-head_official`"
    assert hub_link("a/b_c", "datasets/") == "[a/b_c](https://huggingface.co/datasets/a/b_c)"
