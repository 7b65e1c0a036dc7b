"""Tables and the HTML page of results."""

from .page import write_html
from .table import Table, compare
from .text import render

__all__ = ["Table", "compare", "render", "write_html"]
