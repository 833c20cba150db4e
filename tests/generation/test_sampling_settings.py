import pytest
from pydantic import ValidationError

from luthier.generation.settings import Sampling


def test_one_stop_text_may_be_given_without_a_list():
    assert Sampling(stop="\n").stop == ("\n",)
    assert Sampling.model_validate({"stop": ["a", "b"]}).stop == ("a", "b")


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": 2},
        {"stop": [""]},
        {"seed": -1},
        {"seed": 2**63},
        {"max_new_tokens": 0},
        {"topk": 3},
    ],
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        Sampling.model_validate(wrong)
