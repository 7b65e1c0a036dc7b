"""report.html: one file that shows results to people, and that a browser opens without a network."""

from .page import charts_of, write_comparison, write_html

__all__ = ["charts_of", "write_comparison", "write_html"]
