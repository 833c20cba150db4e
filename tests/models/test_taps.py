"""What of a frozen base the rest reads: which states, of which stack."""

from __future__ import annotations

import pytest
from models.tiny import tiny_model

from luthier.methods import AttentionFusion, Ladder, LNTuning, LoRA, Method, Stack, TopLayers
from luthier.models.taps import Taps, taps_below


@pytest.mark.parametrize(
    ("lowest", "taps"),
    [(None, Taps()), (0, Taps()), (1, Taps((1,))), (2, Taps((2,)))],
    ids=["embedding", "first layer", "second layer", "above the layers"],
)
def test_of_one_stack_it_is_what_enters_the_lowest_trained_layer(lowest: int | None, taps: Taps) -> None:
    for name in ("llama", "bert"):
        assert taps_below(tiny_model(name).anatomy, lowest) == taps


@pytest.mark.parametrize(
    ("lowest", "taps"),
    [
        (None, Taps()),
        (0, Taps()),
        (1, Taps(source=(1,))),  # and the decoder reads what then changes
        (2, Taps(source=(2,))),
        (3, Taps((1,), (2,))),
        (4, Taps((2,), (2,))),
        (5, Taps((3,))),  # no layer that would read the encoder is left
    ],
)
def test_of_two_stacks_it_is_the_encoders_last_state_too_if_a_decoder_layer_is_computed(
    lowest: int | None, taps: Taps
) -> None:
    for name in ("t5", "bart"):
        assert taps_below(tiny_model(name).anatomy, lowest) == taps


@pytest.mark.parametrize(
    ("method", "taps"),
    [
        (AttentionFusion(), Taps((0, 1, 2, 3))),
        (Ladder(reduction=2), Taps((0, 1, 2, 3), (0, 1, 2))),
        (Ladder(reduction=2, every=2), Taps((0, 1, 3), (0, 2))),
        (TopLayers(num_layers=1), Taps((2,), (2,))),
        (LoRA(targets=("role:cross_value",), layers=(4,)), Taps((2,), (2,))),
        (LoRA(layers=(1, 4)), Taps(source=(1,))),
        (LNTuning(targets=("encoder.final_layer_norm",)), Taps(source=(2,))),
    ],
    ids=[
        "fusion",
        "ladder",
        "ladder beside some",
        "top layer",
        "lora",
        "lora in both stacks",
        "the encoder's last norm",
    ],
)
def test_a_method_beside_or_within_an_encoder_decoder_reads_no_more_than_it_needs(method: Method, taps: Taps) -> None:
    assert method.attach(tiny_model("t5"), "default", seed=0).taps == taps


def test_a_network_beside_the_base_reads_the_same_as_the_only_part_of_another_method() -> None:
    alone = AttentionFusion().attach(tiny_model("llama"), "default", seed=0)
    within = Stack(parts=(AttentionFusion(),)).attach(tiny_model("llama"), "default", seed=0)
    assert within.taps == alone.taps == Taps((0, 1, 2))
