"""All plots: drawn once by matplotlib, for the page, for the card and as files of their own."""

from .draw import Chart

__all__ = ["Chart"]
