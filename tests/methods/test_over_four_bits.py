"""Every method that may train over a quantized base: as over the same base unpacked."""

from __future__ import annotations

import pytest
import torch
from methods.examples import EXAMPLES, REFUSED, model_for, ready
from methods.test_every_method import base_bits, train
from models.quantized import quantized_for
from models.tiny import tiny_model
from models.tuned import logprobs, randomize
from near import assert_near

from luthier.methods import Method
from luthier.methods.contract import Attachment
from luthier.models.anatomy import weight_of
from luthier.models.language_model import LanguageModel

NAMES = ("llama", "gpt2", "bert", "t5")
CASES = [
    pytest.param(method, name, id=f"{method.kind}-{name}")
    for method in EXAMPLES
    for name in NAMES
    if (method.kind, name) not in REFUSED and method.traits.over_4bit
]


@pytest.fixture
def method(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Method:
    """An example, with the files that it names for the family of the case."""
    return ready(request.param, request.node.callspec.params["name"], lambda: tmp_path_factory.mktemp("made"))


@torch.no_grad()
def packed_and_plain(method: Method, name: str) -> tuple[LanguageModel, LanguageModel]:
    """A tiny model over NF4, and one whose plain layers hold what that unpacks to."""
    packed, plain = quantized_for(method, unpacked(method, name)), unpacked(method, name)
    plain.prepared = packed.prepared
    for layer in packed.anatomy.linears:
        weight_of(plain.hf.get_submodule(layer)).copy_(weight_of(packed.hf.get_submodule(layer)))
    return packed, plain


def unpacked(method: Method, name: str) -> LanguageModel:
    """A tiny model before it is quantized."""
    return model_for(method, name) if not method.needs_quantization else tiny_model(name)


@pytest.mark.parametrize(("method", "name"), CASES, indirect=["method"])
def test_training_takes_the_same_course_and_moves_nothing_of_the_base(method: Method, name: str) -> None:
    courses, models = [], packed_and_plain(method, name)
    attachments = [method.attach(model, "default", seed=0) for model in models]
    start_together(*attachments)
    for model, attachment in zip(models, attachments, strict=True):
        base = base_bits(model, attachment)
        courses.append(train(model, attachment))
        assert all(torch.equal(tensor, base[key]) for key, tensor in base_bits(model, attachment).items())
    assert courses[0] == pytest.approx(courses[1], rel=1e-4)
    assert courses[0][-1] < courses[0][0]


def start_together(first: Attachment, second: Attachment) -> None:
    """Give the second the start of the first: PiSSA's is of the weight before it was packed."""
    second.load_state(first.state())
    for name, tensor in second.trainables.items():
        tensor.data.copy_(first.trainables[name])


MERGING = [case for case in CASES if case.values[0].traits.merges]


@pytest.mark.parametrize(("method", "name"), MERGING, indirect=["method"])
def test_merging_unpacks_the_very_base_that_was_trained_on(method: Method, name: str) -> None:
    model, _ = packed_and_plain(method, name)
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    unmerged = logprobs(model, attachment.adapter)
    attachment.merge()
    assert_near(logprobs(model, None), unmerged, 2e-4)
