"""The small base of tests/features, on which heads alone and upper blocks are trained."""

from tests.features.conftest import make

__all__ = ["make"]
