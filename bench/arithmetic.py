"""How much arithmetic a training step needs, so that its time can be set against what the machine's matrix products reach.

For a row of n tokens, N of them learned; I inputs and O outputs of a linear layer, R the rank, H the attention's width
(query heads × head width), D the hidden width, V the vocabulary. A multiplication and an addition count as two.

    frozen linears   2 n I O forward, 2 n I O for the gradient of the input (no weight gradient: they are frozen)
    LoRA             2 n R (I + O) forward, 2 n R (I + O) for dA and dB, 2 n R (I + O) for the gradients passed on
    attention        of each layer: 4 H pairs forward and 8 H pairs backward, with pairs = n (n + 1) / 2 (causal)
    head             2 N D V forward, 2 N D V for the gradient of the hidden state; only learned positions

Where a linear's input needs no gradient, the products that would make one are left out: 2 n I O, and 2 n R I of LoRA's.
Elementwise work, recomputation and padding are not counted: they are what a step may waste.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.work import Shape, WorkRow


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations by part."""

    linears: float
    lora: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.linears + self.lora + self.attention + self.head


def arithmetic_of(shape: Shape, rows: Iterable[WorkRow]) -> Arithmetic:
    """The operations that one forward and backward pass over the rows needs."""
    linears_per_token = lora_per_token = 0
    for linear in shape.linears:
        products = 2 if linear.needs_input_gradient else 1
        linears_per_token += 2 * products * linear.inputs * linear.outputs
        lora_per_token += 2 * shape.rank * (3 * (linear.inputs + linear.outputs))
        if not linear.needs_input_gradient:
            lora_per_token -= 2 * shape.rank * linear.inputs
    tokens = pairs = learned = 0
    for row in rows:
        n = len(row.input_ids)
        tokens += n
        pairs += n * (n + 1) // 2
        learned += row.num_learned
    return Arithmetic(
        linears=float(tokens * linears_per_token),
        lora=float(tokens * lora_per_token),
        attention=float(12 * shape.layers * shape.attention_width * pairs),
        head=float(4 * learned * shape.hidden * shape.vocabulary),
    )


def bytes_a_token(config: Mapping[str, Any]) -> int:
    """What a token's keys and values take in fp32, of a model with that config."""
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    return 2 * 4 * int(config["num_hidden_layers"]) * int(config.get("num_key_value_heads") or heads) * width
