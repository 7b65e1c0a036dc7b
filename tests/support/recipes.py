"""What tests of recipes share: a small recipe, its refusal, and strategies for values."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from llama_peft.errors import UserError
from llama_peft.recipe import load_recipe

SMALL = """\
task: classification
model:
  model_name_or_path: tiny
dataset:
  parts: {train: reviews.csv}
"""
LORA = "lora: {r: 8}\n"

quick = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder: Path, text: str | bytes, name: str = "small.yaml") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def refusal(source: str | Path | Mapping[str, object], *overrides: str) -> str:
    """Return the message of the UserError that refuses a recipe."""
    with pytest.raises(UserError) as caught:
        load_recipe(source, overrides)
    return str(caught.value)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.sampled_from(["no", "1e-4", "3:30", "null", "~", "01", "=", "<<", "- a", "a: b", "{text}"])
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts | st.text(min_size=130, max_size=200), inner, max_size=3)
    ),
    max_leaves=6,
)
