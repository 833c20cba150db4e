"""What holds for every method: where it starts, what moves, merging, files, switching off, mixing, and generation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods.answers import answers, uncached_answers
from methods.examples import ENCODERS, EXAMPLES, FAMILIES, REFUSED, TRIED, model_for, ready
from models.tiny import ENCODER_DECODERS, purpose_of
from models.tuned import logprobs, quiet, randomize, usual_batch
from near import assert_apart, assert_near
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods import METHODS, Attachment, LoRA, Method, StepDone, kind_of
from luthier.models.call import Draws
from luthier.models.language_model import LanguageModel, Outputs
from luthier.objectives import SFT

CASES = [
    pytest.param(method, name, id=f"{method.kind}-{name}")
    for method in EXAMPLES
    for name in (*FAMILIES, *ENCODERS, *ENCODER_DECODERS, *TRIED)
    if (method.kind, name) not in REFUSED and method.kind in TRIED.get(name, (method.kind,))
]
WRITERS = [case for case in CASES if purpose_of(case.values[1]) == "words"]
ADAPTERS = [case for case in CASES if not case.values[0].tunes_base]
NUM_STEPS = 3
NUM_ANSWERED = 3
"""One new token after the prompt, one over the prompt's cache, and one over a cache that has grown."""


@pytest.fixture
def method(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Method:
    """An example, with the files that it names for the family of the case."""
    return ready(request.param, request.node.callspec.params["name"], lambda: tmp_path_factory.mktemp("made"))


def base_bits(model: LanguageModel, attachment: Attachment) -> dict[str, Tensor]:
    """Copies of every tensor of the model that does not train, by a name that wrapping does not change."""
    own = {id(tensor) for tensor in attachment.trainables.values()}
    named = (*model.hf.named_parameters(), *model.hf.named_buffers())
    return {name: tensor.clone() for name, tensor in named if id(tensor) not in own}


def train(model: LanguageModel, attachment: Attachment) -> list[float]:
    """A few steps as the loop takes them; the losses."""
    tensors = attachment.trainables
    optimizer = torch.optim.AdamW(tensors.values(), lr=0.01, weight_decay=0.0)
    batch = usual_batch(model, attachment.adapter)
    objective = SFT()
    losses = []
    for number in range(1, NUM_STEPS + 1):

        def forward(repeat: int, number: int = number) -> Outputs:
            return model.forward(batch, attachment.adapter, Draws(0, number, repeat))

        optimizer.zero_grad()
        total = attachment.loss_sum(forward, objective.loss_sum)
        loss = total / batch.learned_weight
        extra = attachment.extra_loss()
        loss = loss if extra is None else loss + extra
        loss.backward()
        optimizer.step()
        gradients = {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}
        if attachment.after_step(StepDone(number, NUM_STEPS, gradients)):
            tensors = attachment.trainables
            optimizer = torch.optim.AdamW(tensors.values(), lr=0.01, weight_decay=0.0)
        losses.append(float(loss.detach()))
    return losses


def test_every_method_has_an_example() -> None:
    assert sorted(method.kind for method in EXAMPLES) == sorted(kind_of(method) for method in METHODS)


@pytest.mark.parametrize(("kind", "name"), REFUSED)
def test_a_family_without_a_place_for_a_method_is_refused_with_the_mend(kind: str, name: str) -> None:
    method = next(method for method in EXAMPLES if method.kind == kind)
    with pytest.raises(RecipeError) as caught:
        method.attach(model_for(method, name), "default", seed=0)
    assert REFUSED[kind, name] in caught.value.found
    assert caught.value.mend


@pytest.mark.parametrize(("method", "name"), CASES, indirect=["method"])
def test_it_starts_where_its_traits_say(method: Method, name: str) -> None:
    model = model_for(method, name)
    before = logprobs(model, None)
    attachment = method.attach(model, "default", seed=0)
    if method.traits.identity_at_start:
        assert_near(logprobs(model, attachment.adapter), before, 1e-5)
    else:
        assert_apart(logprobs(model, attachment.adapter), before)


@pytest.mark.parametrize(("method", "name"), CASES, indirect=["method"])
def test_training_moves_exactly_what_it_declares_and_the_loss_falls(method: Method, name: str) -> None:
    model = model_for(method, name)
    attachment = method.attach(model, "default", seed=0)
    base = base_bits(model, attachment)
    start = {key: tensor.detach().clone() for key, tensor in attachment.trainables.items()}
    assert {id(p) for p in model.hf.parameters() if p.requires_grad} <= {id(p) for p in attachment.trainables.values()}
    losses = train(model, attachment)
    assert losses[-1] < losses[0]
    still = [key for key, tensor in attachment.trainables.items() if torch.equal(tensor, start[key])]
    assert still == []
    assert all(torch.equal(tensor, base[key]) for key, tensor in base_bits(model, attachment).items())


@pytest.mark.parametrize(("method", "name"), CASES, indirect=["method"])
def test_trained_tensors_are_fp32_and_each_in_one_group(method: Method, name: str) -> None:
    attachment = method.attach(model_for(method, name), "default", seed=0)
    tensors = [tensor for group in attachment.groups for tensor in group.tensors.values()]
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
    assert len({id(tensor) for tensor in tensors}) == len(tensors) == len(attachment.trainables)
    assert attachment.num_trainable == sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize(("method", "name"), CASES, indirect=["method"])
def test_the_same_seed_makes_the_same_start(method: Method, name: str) -> None:
    starts = [method.attach(model_for(method, name), "default", seed=7).trainables for _ in range(2)]
    assert list(starts[0]) == list(starts[1])
    assert all(torch.equal(starts[0][key], starts[1][key]) for key in starts[0])


@pytest.mark.parametrize(("method", "name"), CASES, indirect=["method"])
def test_merged_computes_the_same_or_is_refused(method: Method, name: str) -> None:
    model = model_for(method, name)
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    unmerged = logprobs(model, attachment.adapter)
    if not method.traits.merges:
        with pytest.raises(RecipeError, match="merge") as caught:
            attachment.merge()
        assert caught.value.mend
        return
    attachment.merge()
    assert_near(logprobs(model, None), unmerged, 2e-4)
    assert not any("branches" in key for key in model.hf.state_dict())


@pytest.mark.parametrize(("method", "name"), ADAPTERS, indirect=["method"])
def test_a_written_adapter_is_read_back_as_the_same_function(method: Method, name: str, tmp_path: Path) -> None:
    model = model_for(method, name)
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    (tmp_path / "adapter").mkdir()
    attachment.write(tmp_path / "adapter", quiet)
    fresh = model_for(method, name)
    again = method.continued(tmp_path).attach(fresh, "default", seed=9)
    assert_near(logprobs(fresh), logprobs(model), 1e-5)
    assert again.adapter == "default"


@pytest.mark.parametrize(("method", "name"), ADAPTERS, indirect=["method"])
def test_without_its_adapter_the_model_is_the_base(method: Method, name: str) -> None:
    model = model_for(method, name)
    before = logprobs(model, None)
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    assert_apart(logprobs(model), before, 1e-5)
    assert_near(logprobs(model, None), before, 1e-6)


@pytest.mark.parametrize(("method", "name"), ADAPTERS, indirect=["method"])
def test_rows_of_a_batch_may_each_have_their_own_adapter(method: Method, name: str) -> None:
    model = model_for(method, name)
    randomize(method.attach(model, "default", seed=0))
    randomize(LoRA(rank=2).attach(model, "other", seed=1), 0.2)
    whose = ("default", None, "other", "default")
    batch = usual_batch(model, whose)
    mixed = model.forward(batch, whose).logprob_N
    row_N = row_of_target(batch.targets.source_N, [segment.start for segment in batch.segments])
    for row, adapter in enumerate(whose):
        alone = model.forward(usual_batch(model, adapter), adapter).logprob_N
        assert_near(mixed[row_N == row], alone[row_N == row], 1e-5)


def row_of_target(source_N: Tensor, starts: list[int]) -> Tensor:
    """Which row each target belongs to."""
    return torch.bucketize(source_N, torch.tensor(starts[1:]), right=True)


@pytest.mark.parametrize(("method", "name"), WRITERS, indirect=["method"])
def test_generation_with_a_cache_is_as_without_and_a_batch_as_one_by_one(method: Method, name: str) -> None:
    model = model_for(method, name)
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    prompts = [(5, 9, 30, 4, 17, 8), (7,), (11, 50, 3)]
    together = answers(model, prompts, attachment.adapter, NUM_ANSWERED)
    assert together == [answers(model, [prompt], attachment.adapter, NUM_ANSWERED)[0] for prompt in prompts]
    assert together == uncached_answers(model, prompts, attachment.adapter, [len(answer) for answer in together])
