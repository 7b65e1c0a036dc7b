"""The base that checkpoints of others are made of."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def base(make_base: Callable[..., Path]) -> Path:
    return make_base()
