"""How long a row may be, as a model's config says."""

from __future__ import annotations

import pytest
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig, T5Config

from luthier.models.positions import longest_row

SCALED = {"rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (GPT2Config(n_positions=48), 48),
        (LlamaConfig(max_position_embeddings=64), 64),
        (LlamaConfig(max_position_embeddings=128, rope_parameters={"rope_type": "linear", **SCALED}), 128),
        (LlamaConfig(max_position_embeddings=128, rope_parameters={"rope_type": "dynamic", **SCALED}), 32),
        (T5Config(), None),
    ],
    ids=["learned", "rotary", "linear", "dynamic", "no limit"],
)
def test_a_row_may_reach_as_far_as_positions_do_and_stay_the_same_in_any_batch(
    config: PreTrainedConfig, longest: int | None
) -> None:
    assert longest_row(config) == longest
