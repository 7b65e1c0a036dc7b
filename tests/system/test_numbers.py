"""A tensor with a number that is none is found, whatever its type and its place."""

import pytest
import torch

from llama_peft.errors import UserError
from llama_peft.system.numbers import check_scores, first_not_finite, is_finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_none_is_found(dtype: torch.dtype, value: float) -> None:
    for place in (0, 17, 998, 999):
        tensor = torch.linspace(-9, 9, 1000).to(dtype)
        assert is_finite(tensor)
        tensor[place] = value
        assert not is_finite(tensor) and not is_finite(tensor.view(10, 100).t())
        assert first_not_finite({"a": torch.zeros(2), "b": tensor}) == "b"


def test_what_holds_no_fractions_is_finite() -> None:
    most = torch.full((4,), torch.finfo(torch.float16).max, dtype=torch.float16)
    eight = torch.ones(3).to(torch.float8_e5m2)
    for tensor in (
        eight,
        torch.zeros(0),
        torch.ones(3, dtype=torch.uint8),
        torch.tensor(1.0),
        most,
    ):
        assert is_finite(tensor)


def test_a_score_that_is_none_names_its_example() -> None:
    check_scores([0.5, -1e300])
    with pytest.raises(UserError, match=r"^q7: the model's scores are not numbers"):
        check_scores([0.5, float("nan")], "q7")
