"""What holds for all tests of shared prefixes."""

import pytest

from llama_peft.prefix_tree import block_attention


@pytest.fixture(autouse=True)
def _rows_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small rows must not hide in one block of queries."""
    monkeypatch.setattr(block_attention, "QUERIES", 16)
