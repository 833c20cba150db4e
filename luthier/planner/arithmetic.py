"""The arithmetic of memory that is often quoted, worked out from shapes, each number with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.models.shapes import NAMED
from luthier.quantization.four_bit import SCALES_A_BLOCK

_ONE_BILLION = 10**9
_NF4_BLOCK = 64
_NF4_BITS = 4 + 8 / _NF4_BLOCK + 32 / (_NF4_BLOCK * SCALES_A_BLOCK)
"""Of a number in NF4 with double quantization: its code, its block's scale in eight bits, and a scale of 256 of those."""
_LORA_RANK = 64


@dataclass(frozen=True)
class Fact:
    """what: takes memory. num_bytes: how much; None for what is a rule and not an amount. amount: in words. why: how it comes about."""

    what: str
    num_bytes: int | None
    amount: str
    why: str


def facts() -> tuple[Fact, ...]:
    """All of them, as docs/planning.md has them."""
    return (*_of_one_billion(), *_of_65_billion(), _of_a_cache())


def _of_one_billion() -> tuple[Fact, ...]:
    loaded, trained, guessed = (each * _ONE_BILLION for each in (4, 16, 80))
    return (
        Fact("1 B parameters in fp32, loaded", loaded, _gb(loaded), "4 bytes each"),
        Fact(
            "the same, trained with AdamW",
            trained,
            f"{_gb(trained)}, and what the layers keep",
            "weight, gradient and two moments of 4 bytes each",
        ),
        Fact(
            '"up to 80 GB to train 1 B"',
            guessed,
            _gb(guessed),
            "20 times the 4 GB. The parts it is given by, 4 + 20 bytes a parameter (4 gradient, 8 moments, 8 guessed for what layers "
            "keep), come to 24 GB; long rows without recomputation can reach 80",
        ),
        Fact(
            "16 bytes a parameter",
            None,
            "",
            "mixed precision: 2 weight, 2 gradient, 4 master copy, 8 moments (Rajbhandari et al. 2020)",
        ),
    )


def _of_65_billion() -> tuple[Fact, ...]:
    shape = NAMED["llama-65b"]
    count, in_layers = num_parameters(shape), num_in_layers(shape)
    halves, packed = 12 * count, round(in_layers * _NF4_BITS / 8) + 2 * (count - in_layers)
    adapter = _LORA_RANK * shape["num_hidden_layers"] * sum(rows + columns for rows, columns in linear_shapes(shape))
    return (
        Fact(
            "65 B trained in half precision",
            halves,
            _gb(halves),
            f'{count / 1e9:.1f} B × 12 bytes: 2 weight, 2 gradient, 8 moments (the "more than 780 GB" of Dettmers et al. 2023)',
        ),
        Fact(
            "65 B in NF4 with double quantization",
            packed,
            _gb(packed),
            f"{_NF4_BITS:.3f} bits a number of the layers; embedding and head in bf16",
        ),
        Fact(
            f"LoRA of rank {_LORA_RANK} on all its layers, as it is quoted",
            12 * adapter,
            f"{_gb(12 * adapter)} more",
            f"{adapter / 1e9:.1f} B numbers × 12 bytes, in half precision",
        ),
        Fact(
            "the same as Luthier trains it",
            16 * adapter,
            f"{_gb(16 * adapter)} more",
            "in fp32: × 16 bytes, weight, gradient and two moments of 4 each",
        ),
    )


def _of_a_cache() -> Fact:
    shape = NAMED["llama-3-8b"]
    count = 2 * shape["num_hidden_layers"] * _key_width(shape) * 2
    return Fact(
        "keys and values of a cache",
        count,
        "2 · L · k · d bytes a token",
        f"L layers, k key numbers a layer, d bytes a number: {count // 1024} KiB a token for Llama 3 8B in bf16",
    )


def linear_shapes(shape: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Rows and columns of each linear weight of a Llama's layer: query, output, key, value, and the feed-forward's three."""
    width, inner, keys = shape["hidden_size"], shape["intermediate_size"], _key_width(shape)
    return [(width, width)] * 2 + [(keys, width)] * 2 + [(inner, width)] * 2 + [(width, inner)]


def num_in_layers(shape: Mapping[str, Any]) -> int:
    """The numbers of all linear weights of a Llama's layers."""
    return int(shape["num_hidden_layers"] * sum(rows * columns for rows, columns in linear_shapes(shape)))


def num_parameters(shape: Mapping[str, Any]) -> int:
    """All numbers of a Llama: those of the layers, of embedding and head apart, and of two norms a layer and one at the end."""
    width, layers = shape["hidden_size"], shape["num_hidden_layers"]
    return num_in_layers(shape) + int(2 * shape["vocab_size"] * width + (2 * layers + 1) * width)


def _key_width(shape: Mapping[str, Any]) -> int:
    return int(shape["num_key_value_heads"] * shape["hidden_size"] // shape["num_attention_heads"])


def _gb(num_bytes: int) -> str:
    """Gigabytes: whole ones from a hundred on, else with a tenth where there is one."""
    size = num_bytes / 1e9
    return f"{size:.0f} GB" if size >= 100 else f"{f'{size:.1f}'.removesuffix('.0')} GB"
