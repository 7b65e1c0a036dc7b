"""Where the project is, and the real data beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
"""Real data and a real tokenizer, which are no part of the project: tests that use them skip without."""
RUNS_0_1_0 = Path(__file__).with_name("runs_0.1.0")
"""A run of each kind, and a pushed one, as version 0.1.0 wrote them before its files were moved."""
