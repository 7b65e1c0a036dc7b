"""Laws of tables as text: every cell is there, and no name changes the layout."""

import re
from dataclasses import replace

import pytest

from eval import report


def test_markdown_and_latex_rows_have_as_many_cells_as_columns_whatever_the_names(run, evil):
    for folder in (run, evil):
        (table,) = report.compare([folder])
        lines = [x for x in report.render([table], "markdown").split("\n") if x.startswith("|")]
        assert len(lines) == len(table.rows) + 2
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.columns) + 2}
        latex = report.render([table], "latex")
        body = [line for line in latex.split("\n") if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(table.columns)}
        assert not re.search(r"(?<!\\)%", latex)
    assert "<b>" not in report.render([table], "markdown")


@pytest.mark.parametrize("width", [70, 100, 250])
def test_a_terminal_table_fits_its_width_and_shows_every_cell(run, width):
    tables = report.compare([run])
    text = report.render(tables, "rich", width=width)
    assert max(map(len, text.split("\n"))) <= width
    for row in tables[0].rows:
        for cell in row.cells:
            assert cell.text in text and cell.interval in text
    assert all(column in text for column in tables[0].columns)


def test_a_table_in_a_notebook_is_text_too(run, monkeypatch):
    """rich would show it there and then, and nothing would be left to print."""
    tables = report.compare([run])
    text = report.render(tables, "rich")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert text.count("\n") > 3 and report.render(tables, "rich") == text


@pytest.mark.parametrize("form", ["rich", "markdown", "latex"])
def test_names_hold_no_control_character_and_no_secret(run, form):
    from markdown_it import MarkdownIt

    bad, token = "\x1b]0;x\x07\u202e\n| [a](javascript:x) <b> `*_$", "hf_" + "aB3" * 10
    (table,) = report.compare([run])
    name = bad + token
    rows = tuple(row._replace(name=name) for row in table.rows)
    evil = replace(table, title=name, rows=rows, notes=(name,))
    text = report.render([evil], form, width=250)
    assert not set(text) & set("\x1b\x07\u202e") and r"\x1b" in text.replace(
        r"\textbackslash{}", "\\"
    ).replace("&#92;", "\\")
    assert token not in text.replace("\\_", "_")
    if form == "markdown":
        html = MarkdownIt("commonmark").enable("table").render(text)
        assert not re.findall("<(?:a|b|img|code)\\b", html)
        assert html.count("<tr>") == len(table.rows) + 1
