"""AdamW over flat vectors against torch's AdamW over single tensors."""

from __future__ import annotations

import weakref

import pytest
import torch
from near import assert_near
from torch import nn

from luthier.methods.contract import Group
from luthier.training.flat import FlatTrainables
from luthier.training.optimizers import AdamW, FlatAdamW

SETTINGS = AdamW(beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1)
SHAPES = {"a": (3, 5), "b": (7,), "c": (9, 2)}
RATES = (0.01, 0.03, 0.02, 0.0, 0.05)


def parameters() -> dict[str, nn.Parameter]:
    """The same start each time."""
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def flat_of(tensors: dict[str, nn.Parameter]) -> tuple[FlatTrainables, FlatAdamW]:
    """One group that decays, one at another rate, one that does not decay."""
    groups = [
        Group({"a": tensors["a"]}),
        Group({"b": tensors["b"]}, decays=False),
        Group({"c": tensors["c"]}, lr_factor=16.0),
    ]
    flat = FlatTrainables(groups, workers=1)
    return flat, FlatAdamW(flat, SETTINGS)


def take_step(flat: FlatTrainables, optimizer: FlatAdamW, step: int) -> None:
    """One update by random gradients of this step."""
    generator = torch.Generator().manual_seed(100 + step)
    flat.clear_gradients()
    flat.add_gradients(0, [torch.randn(t.shape, generator=generator) for t in flat.tensors])
    flat.sum_gradients()
    optimizer.step(RATES[step])


@pytest.mark.parametrize("fused", [True, False])
def test_every_tensor_moves_as_torchs_adamw_moves_it_alone(fused: bool) -> None:
    # not bit for bit: where a tensor begins decides which of its numbers the fused kernel rounds in vector instructions
    flat, optimizer = flat_of(parameters())
    alone = parameters()
    plain = torch.optim.AdamW(
        [
            {"params": [alone["a"]], "factor": 1.0},
            {"params": [alone["b"]], "weight_decay": 0.0, "factor": 1.0},
            {"params": [alone["c"]], "factor": 16.0},
        ],
        betas=(0.8, 0.95),
        eps=1e-6,
        weight_decay=0.1,
        fused=fused,
    )
    for step, rate in enumerate(RATES):
        take_step(flat, optimizer, step)
        generator = torch.Generator().manual_seed(100 + step)
        for tensor in alone.values():
            tensor.grad = torch.randn(tensor.shape, generator=generator)
        for group in plain.param_groups:
            group["lr"] = rate * group["factor"]
        plain.step()
        for name, tensor in flat.named().items():
            assert_near(tensor, alone[name], 1e-6)


def test_the_first_step_moves_each_number_by_the_rate_against_its_gradients_sign() -> None:
    tensors = parameters()
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    flat = FlatTrainables([Group(tensors)], workers=1)
    optimizer = FlatAdamW(flat, AdamW(eps=1e-12))
    signs = [torch.randn(t.shape).sign() for t in flat.tensors]
    flat.add_gradients(0, signs)
    flat.sum_gradients()
    optimizer.step(0.25)
    for (name, tensor), sign in zip(flat.named().items(), signs, strict=True):
        assert_near(tensor, before[name] - 0.25 * sign, 1e-6)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_restored_optimizer_goes_on_with_the_same_bits(stop: int) -> None:
    flat, optimizer = flat_of(parameters())
    for step in range(stop):
        take_step(flat, optimizer, step)
    weights, state = flat.named(), optimizer.named_state()
    for step in range(stop, len(RATES)):
        take_step(flat, optimizer, step)
    again, restored = flat_of({name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()})
    again.load(weights)
    restored.load_state(state)
    for step in range(stop, len(RATES)):
        take_step(again, restored, step)
    assert all(torch.equal(tensor, flat.named()[name]) for name, tensor in again.named().items())
    final = optimizer.named_state()
    assert all(torch.equal(value, final[key]) for key, value in restored.named_state().items())


def test_the_state_is_named_by_tensor_and_a_copy() -> None:
    flat, optimizer = flat_of(parameters())
    assert optimizer.named_state() == {}
    take_step(flat, optimizer, 0)
    state = optimizer.named_state()
    for name, shape in SHAPES.items():
        assert tuple(state[f"exp_avg.{name}"].shape) == tuple(state[f"exp_avg_sq.{name}"].shape) == shape
    kept = {key: value.clone() for key, value in state.items()}
    take_step(flat, optimizer, 1)
    assert all(torch.equal(state[key], kept[key]) for key in kept)


@pytest.mark.parametrize("at", [1, 3])
def test_an_exchanged_group_begins_anew_and_the_others_go_on_as_if_nothing_had_been(at: int) -> None:
    flat, optimizer = flat_of(parameters())
    unbroken, usual = flat_of(parameters())
    for step in range(at):
        take_step(flat, optimizer, step)
        take_step(unbroken, usual, step)
    groups = [laid.group for laid in flat.groups]
    new = nn.Parameter(torch.zeros(4))
    optimizer.exchange([groups[0], Group({"b": new}, decays=False), groups[2]])
    alone = FlatTrainables([Group({"b": nn.Parameter(torch.zeros(4))}, decays=False)], workers=1)
    fresh = FlatAdamW(alone, SETTINGS)
    assert not any(name.endswith(".b") for name in optimizer.named_state())
    generator = torch.Generator().manual_seed(7)
    for step in range(at, len(RATES)):
        shares = {name: torch.randn(shape, generator=generator) for name, shape in {**SHAPES, "new": (4,)}.items()}
        for each, adamw, names in (
            (flat, optimizer, ("a", "new", "c")),
            (unbroken, usual, ("a", "b", "c")),
            (alone, fresh, ("new",)),
        ):
            each.clear_gradients()
            each.add_gradients(0, [shares[name] for name in names])
            each.sum_gradients()
            adamw.step(RATES[step])
    moved = flat.named()
    assert all(torch.equal(moved[name], unbroken.named()[name]) for name in ("a", "c"))
    assert torch.equal(moved["b"], alone.named()["b"])
    assert bool(moved["b"].any())


def test_nothing_is_held_any_more_of_what_was_exchanged() -> None:
    tensors = parameters()
    flat, optimizer = flat_of(tensors)
    take_step(flat, optimizer, 0)
    state = optimizer.optimizer.state[flat.groups[1].vector]
    watched = [weakref.ref(each) for each in (flat.groups[1].vector, state["exp_avg"], flat.gradients[0][1])]
    del state
    groups = [laid.group for laid in flat.groups]
    optimizer.exchange([groups[0], Group({"b": nn.Parameter(torch.zeros(4))}, decays=False), groups[2]])
    assert [each() for each in watched] == [None, None, None]
