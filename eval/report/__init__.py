"""Tables and the HTML page of results, made only from the files that evaluations leave.

compare(folders)       systems side by side, as tables
render(tables, form)   the tables as text for a terminal, Markdown or LaTeX
write_html(run)        report.html of a run folder
write_comparison(...)  the same page of any results
charts_of(run)         the charts of that page, as figures
"""

from .page import charts_of, write_comparison, write_html
from .table import Table, compare
from .text import render

__all__ = ["Table", "charts_of", "compare", "render", "write_comparison", "write_html"]
