"""predictions.jsonl: one line, many lines on disk, and what they say as columns."""

from .file import Lines, read_lines, spooled
from .line import PredictionLine, before_threshold
from .told import Told

__all__ = ["Lines", "PredictionLine", "Told", "before_threshold", "read_lines", "spooled"]
