"""An adapter folded into copies of the weights: it says the same, the base keeps its bits, and where it cannot be it is left alone."""

from __future__ import annotations

import pytest
import torch
from methods.examples import EXAMPLES, REFUSED, model_for, ready
from models.tiny import tiny_model
from models.tuned import logprobs, randomize
from near import assert_apart, assert_near

from luthier.methods import Method
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.lora import LoRA

FOLDED = {
    "adalora", "bitfit", "boft", "dora", "ia3", "krona", "loha", "lokr", "lora", "oft", "pissa", "vera",
}  # fmt: skip
CASES = [
    pytest.param(method, name, id=f"{method.kind}-{name}")
    for method in EXAMPLES
    for name in ("llama", *(("gpt2", "qwen2_moe") if method.kind == "lora" else ()))
    if not method.tunes_base and (method.kind, name) not in REFUSED
]


@pytest.mark.parametrize(("method", "family"), CASES)
def test_folded_or_not_it_says_the_same_and_the_base_keeps_its_bits(
    method: Method, family: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    method = ready(method, family, lambda: tmp_path_factory.mktemp("made"))
    model = model_for(method, family)
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    beside = logprobs(model, attachment.adapter)
    with attachment.folded() as name, torch.inference_mode():
        assert (name != attachment.adapter) == (method.kind in FOLDED)
        assert_near(logprobs(model, name), beside, 1e-5)
    after = model.hf.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())


def test_what_was_folded_does_not_follow_what_trains() -> None:
    model = tiny_model("llama")
    attachment = LoRA(rank=2).attach(model, "default", seed=0)
    randomize(attachment)
    with attachment.folded() as name, torch.inference_mode():
        then = logprobs(model, name)
        randomize(attachment, 0.3)
        assert torch.equal(logprobs(model, name), then)
        assert_apart(logprobs(model, attachment.adapter), then)


def test_an_adapter_over_half_precision_stays_beside_its_base() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    attachment = LoRA(rank=2).attach(model, "default", seed=0)
    with attachment.folded() as name:
        assert name == "default"


def test_others_in_the_bank_stay_as_they_are_when_drawing_fails() -> None:
    model = tiny_model("llama")
    attachment = LoRA(rank=2).attach(model, "default", seed=0)
    assert isinstance(attachment, AdapterAttachment)
    LoRA(rank=2).attach(model, "critic", seed=1)
    with pytest.raises(KeyError), attachment.folded():
        raise KeyError
    assert all(set(layer.branches) == {"default", "critic"} for layer in attachment.layers.values())
