"""Tables as text for a terminal, Markdown or LaTeX."""

import io
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, assert_never

from llama_peft.system.formatting import in_markdown
from llama_peft.system.terminal import printable

from .table import Cell, Row, Table

Form = Literal["rich", "markdown", "latex"]
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def render(tables: Sequence[Table], form: Form, width: int | None = None) -> str:
    """The tables as text. If `width` is None, it is the width of the terminal."""
    tables = [_printable(table) for table in tables]
    if form == "rich":
        width = width or shutil.get_terminal_size((200, 50)).columns
        parts = [_rich(table, width) for table in tables]
    elif form == "markdown":
        parts = [_markdown(table) for table in tables]
    elif form == "latex":
        parts = [_latex(table) for table in tables]
    else:
        assert_never(form)
    return "\n\n".join(parts)


def _printable(table: Table) -> Table:
    """The table without secrets and control characters in its names. Later a secret could not be
    recognised, because every form changes the names in its own way.
    """
    return replace(
        table,
        title=printable(table.title),
        columns=tuple(map(printable, table.columns)),
        rows=tuple(row._replace(name=printable(row.name)) for row in table.rows),
        notes=tuple(map(printable, table.notes)),
    )


def _rich(table: Table, width: int) -> str:
    """One drawn table, or several below one another if the columns need more room."""
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    names = [_indented_name(row) for row in table.rows]
    # In a notebook rich would show the table there, and write nothing.
    console = Console(file=io.StringIO(), width=width, color_system=None, force_jupyter=False)
    for number, columns in enumerate(_fitting(table, width)):
        drawn = Drawn(title=None if number else Text(table.title), title_justify="left")
        drawn.add_column("")
        for column in columns:
            drawn.add_column(Text(table.columns[column]), justify="right")
        for row, name in zip(table.rows, names, strict=True):
            cells = [Text("\n".join(filter(None, row.cells[column]))) for column in columns]
            if any(cell.plain for cell in cells):
                drawn.add_row(Text(name), *cells)
        console.print(drawn)
    for note in table.notes:
        console.print(Text(note))
    written = console.file
    assert isinstance(written, io.StringIO)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def _fitting(table: Table, width: int) -> Iterator[list[int]]:
    """Groups of columns that fit beside the names, with costs apart; one alone may be too wide."""
    room = width - max(len(_indented_name(row)) for row in table.rows) - 4
    group: list[int] = []
    used = 0
    for column, header in enumerate(table.columns):
        texts = [text for row in table.rows for text in row.cells[column]]
        need = max(map(len, [header, *texts])) + 3
        if group and (used + need > room or column == table.costs_from):
            yield group
            group, used = [], 0
        group.append(column)
        used += need
    yield group


def _indented_name(row: Row) -> str:
    return f"  {row.name}" if row.is_detail else row.name


def _joined(cell: Cell) -> str:
    return " ".join(filter(None, cell))


def _markdown(table: Table) -> str:
    def line(first: str, cells: Sequence[str]) -> str:
        return "| " + " | ".join([first, *cells]) + " |"

    lines = [f"**{in_markdown(table.title)}**", "", line("system", table.columns)]
    lines.append("|---|" + "---:|" * len(table.columns))
    for row in table.rows:
        name = in_markdown(row.name)
        lines.append(line(f"*{name}*" if row.is_detail else name, [*map(_joined, row.cells)]))
    return "\n".join([*lines, "", *(f"- {in_markdown(note)}" for note in table.notes)])


def _latex(table: Table) -> str:
    def safe(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in text)

    def cell(value: Cell) -> str:
        interval = rf"{{\scriptsize {safe(value.interval)}}}" if value.interval else ""
        return " ".join(filter(None, [safe(value.text), interval]))

    lines = [r"\begin{table}", rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\hline"]
    lines.append(" & ".join(map(safe, ["system", *table.columns])) + r" \\")
    lines.append(r"\hline")
    for row in table.rows:
        name = rf"\quad {safe(row.name)}" if row.is_detail else safe(row.name)
        lines.append(" & ".join([name, *map(cell, row.cells)]) + r" \\")
    notes = safe(" ".join([table.title + ".", *table.notes]))
    return "\n".join([*lines, r"\hline", r"\end{tabular}", rf"\caption{{{notes}}}", r"\end{table}"])
