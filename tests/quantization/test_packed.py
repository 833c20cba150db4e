"""The linear layer over a packed weight: the same numbers and gradients as over the unpacked one, and nothing kept."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from luthier.ops.lora import Update, lora_linear, lora_linear_reference, updated_linear
from luthier.quantization.four_bit import quantize_four_bit
from luthier.quantization.int8 import quantize_int8
from luthier.quantization.mxfp4 import quantize_mxfp4
from luthier.quantization.packed import PackedWeight, QuantizedLinear

FORMATS: dict[str, Callable[[Tensor], PackedWeight]] = {
    "nf4": lambda weight: quantize_four_bit(weight, "nf4"),
    "fp4": lambda weight: quantize_four_bit(weight, "fp4", double=False, block=32),
    "int8": quantize_int8,
    "mxfp4": quantize_mxfp4,
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(kind: str) -> QuantizedLinear:
    """24 outputs, 32 inputs, with a bias."""
    return QuantizedLinear(
        FORMATS[kind](drawn(24, 32)), nn.Parameter(drawn(24, seed=1), requires_grad=False), torch.float32
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_it_computes_exactly_what_the_unpacked_layer_does(kind: str) -> None:
    layer = layer_of(kind)
    plain = layer.dense_layer()
    x, again = (drawn(2, 5, 32, seed=2).requires_grad_() for _ in range(2))
    y, expected = layer(x), plain(again)
    assert torch.equal(y, expected)
    for output in (y, expected):
        output.square().sum().backward()
    assert torch.equal(x.grad, again.grad)
    assert not any(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("kind", FORMATS)
def test_the_backward_pass_keeps_nothing_of_the_input_and_no_unpacked_weight(kind: str) -> None:
    layer, kept = layer_of(kind), []
    x = drawn(5, 32, seed=2).requires_grad_()

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    assert kept == []


@pytest.mark.parametrize("kind", FORMATS)
def test_low_rank_updates_over_it_are_those_over_the_unpacked_weight(kind: str) -> None:
    layer = layer_of(kind)
    results = []
    for weight in (layer.packed, layer.dense()):
        for compute in (lora_linear, lora_linear_reference):
            x = drawn(6, 32, seed=2).requires_grad_()
            a, b = drawn(3, 32, seed=3).requires_grad_(), drawn(24, 3, seed=4).requires_grad_()
            y = compute(x, weight, layer.bias, a, b, 0.5, None)
            y.square().sum().backward()
            results.append([y, x.grad, a.grad, b.grad])
    for others in results[1:]:
        for found, expected in zip(others, results[0], strict=True):
            assert torch.allclose(found, expected, atol=1e-4)


def test_several_updates_share_one_product_with_it() -> None:
    layer = layer_of("nf4")
    updates = [
        Update(start, start + 3, drawn(2, 32, seed=start), drawn(24, 2, seed=start + 1), 1.0, None) for start in (0, 3)
    ]
    x = drawn(8, 32, seed=2)
    both = updated_linear(x, layer.packed, layer.bias, updates)
    for update in updates:
        alone = updated_linear(
            update.of(x), layer.packed, layer.bias, [Update(0, 3, update.a_RI, update.b_OR, 1.0, None)]
        )
        assert torch.allclose(update.of(both), alone, atol=1e-5)
    assert torch.allclose(both[6:], layer(x[6:]), atol=1e-5)


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
def test_products_are_computed_in_the_format_that_is_asked_for_and_come_back_in_that_of_the_input(
    compute: torch.dtype,
) -> None:
    packed = quantize_four_bit(drawn(24, 32), "nf4", compute=compute)
    x = drawn(5, 32, seed=2).requires_grad_()
    y = QuantizedLinear(packed, None, torch.float32)(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, nn.functional.linear(x.to(compute), packed.reference().to(compute)).float())
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_autocast_computes_in_its_own_format() -> None:
    layer = layer_of("nf4")
    x = drawn(5, 32, seed=2).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, plain = layer(x), layer.dense_layer()(x)
    assert y.dtype == plain.dtype == torch.bfloat16
    assert torch.equal(y, plain)
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_an_evaluation_changes_nothing_and_gradients_come_afterwards_as_before() -> None:
    layer = layer_of("nf4")
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with torch.no_grad():
        layer.eval()(drawn(5, 32))
    layer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    x = drawn(5, 32).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None


def test_threads_do_not_unpack_into_each_others_buffers() -> None:
    packed = [quantize_four_bit(drawn(64, 256, seed=seed), "nf4") for seed in (1, 2)]
    meet, wrong = threading.Barrier(2), []

    def use(weight: PackedWeight) -> None:
        for _ in range(20):
            meet.wait()
            lent = weight.lent(torch.float32)
            meet.wait()
            if not torch.equal(lent, weight.reference()):
                wrong.append(weight)

    threads = [threading.Thread(target=use, args=(weight,)) for weight in packed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
