"""Fixtures that several test files share. No test needs a network, a token or a GPU."""

import os
from pathlib import Path

# One thread a test: with busy cores two threads can be ten times slower. Set before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and the real tokenizer, which is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip("real data (../shared) is not on this machine")
    return SHARED
