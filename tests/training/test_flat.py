"""Trainable tensors and their gradients as views of flat vectors."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from luthier.methods.contract import Group
from luthier.training.flat import FlatGroup, FlatTrainables

SHAPES = {"a": (3, 5), "b": (7,), "c": (), "d": (2, 3, 4), "e": (16,)}


def groups() -> list[Group]:
    """Two groups of odd shapes."""
    torch.manual_seed(0)
    tensors = {name: nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}
    return [
        Group({name: tensors[name] for name in ("a", "b", "c")}),
        Group({name: tensors[name] for name in ("d", "e")}, lr_factor=2.0),
    ]


def gradients_like(flat: FlatTrainables, seed: int) -> list[Tensor]:
    """One random gradient for each tensor."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tensor.shape, generator=generator) for tensor in flat.tensors]


def test_laying_tensors_flat_changes_no_value_and_makes_each_a_view_of_its_vector() -> None:
    before = {name: tensor.detach().clone() for group in groups() for name, tensor in group.tensors.items()}
    own = groups()
    flat = FlatTrainables(own, workers=1)
    for group, laid in zip(own, flat.groups, strict=True):
        for name, tensor in group.tensors.items():
            assert torch.equal(tensor, before[name])
            assert tensor.requires_grad
            laid.vector.data.view(-1)[laid.spans[name][0]] += 1
            assert float(tensor.detach().flatten()[0]) == pytest.approx(float(before[name].flatten()[0]) + 1)


def test_tensors_do_not_overlap_and_begin_on_cache_lines() -> None:
    laid = FlatGroup(Group({name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}))
    end = 0
    for name, (start, stop) in laid.spans.items():
        assert start >= end
        assert start % 16 == 0
        assert stop - start == torch.zeros(SHAPES[name]).numel()
        end = stop
    assert end <= laid.vector.numel()


def test_gradients_of_micro_batches_add_up_and_a_missing_one_counts_as_zero() -> None:
    flat = FlatTrainables(groups(), workers=1)
    first, second = gradients_like(flat, 1), gradients_like(flat, 2)
    flat.add_gradients(0, first)
    flat.add_gradients(0, [None, *second[1:]])
    vectors = flat.sum_gradients()
    found = [view for laid, vector in zip(flat.groups, vectors, strict=True) for view in laid.views(vector)]
    expected = [first[0], *(a + b for a, b in zip(first[1:], second[1:], strict=True))]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_workers_are_summed_in_their_own_order_and_become_the_gradient() -> None:
    flat = FlatTrainables(groups(), workers=3)
    shares = [gradients_like(flat, seed) for seed in range(3)]
    for worker in (2, 0, 1):  # whoever ends first
        flat.add_gradients(worker, shares[worker])
    vectors = flat.sum_gradients()
    found = [view for laid, vector in zip(flat.groups, vectors, strict=True) for view in laid.views(vector)]
    for view, *parts in zip(found, *shares, strict=True):
        assert torch.equal(view, (parts[0] + parts[1]) + parts[2])
    assert all(laid.vector.grad is vector for laid, vector in zip(flat.groups, vectors, strict=True))
    flat.clear_gradients()
    assert not any(bool(vector.any()) for vectors in flat.gradients for vector in vectors)


def test_padding_adds_nothing_to_the_norm() -> None:
    flat = FlatTrainables(groups(), workers=1)
    gradients = gradients_like(flat, 1)
    flat.add_gradients(0, gradients)
    norm = torch.linalg.vector_norm(torch.cat(flat.sum_gradients()))
    torch.testing.assert_close(norm, torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])))


def test_named_tensors_are_copies_and_load_puts_them_back() -> None:
    flat = FlatTrainables(groups(), workers=1)
    kept = flat.named()
    assert {name: tuple(tensor.shape) for name, tensor in kept.items()} == SHAPES
    for laid in flat.groups:
        laid.vector.data.add_(1)
    assert not torch.equal(kept["a"], flat.named()["a"])
    flat.load(kept)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in flat.named().items())
    assert torch.equal(flat.tensors[0], kept["a"])


def test_exchanging_groups_leaves_those_of_the_same_tensors_where_they_are_and_lays_out_the_others() -> None:
    own = groups()
    flat = FlatTrainables(own, workers=2)
    kept, gone = flat.groups[0].vector, weakref.ref(flat.groups[1].vector)
    values = flat.named()
    new = Group({"d": nn.Parameter(torch.arange(5.0)), "f": nn.Parameter(torch.ones(2, 2))}, lr_factor=2.0)
    flat.add_gradients(1, gradients_like(flat, 1))
    flat.sum_gradients()
    flat.exchange([own[0], new])
    assert flat.groups[0].vector is kept
    assert gone() is None
    assert list(flat.named()) == ["a", "b", "c", "d", "f"]
    assert all(torch.equal(flat.named()[name], values[name]) for name in ("a", "b", "c"))
    assert torch.equal(flat.named()["d"], torch.arange(5.0))
    share = gradients_like(flat, 2)
    flat.add_gradients(1, share)
    vectors = flat.sum_gradients()
    found = [view for laid, vector in zip(flat.groups, vectors, strict=True) for view in laid.views(vector)]
    assert all(torch.equal(one, other) for one, other in zip(found, share, strict=True))
