"""Encoder-decoders whose virtual tokens take no positions.

Such models are not given positions: they count the columns of a row, virtual tokens too. Where positions are a table of
embeddings (BART), a row's own tokens are looked up from 0 on. Where attention has a bias by distance (T5), queries count
from 0 and keys stay where they are, so that a distance k − q becomes V + k − q. No text alone has such distances; it is the
function of the `adapters` library, which counts its prefix among the keys and leaves it out among the queries.

Shapes: B rows, T new tokens of a row, H heads, L keys, D width, V virtual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.models.anatomy import Anatomy
from luthier.models.call import Run, current_call
from luthier.models.virtual_tokens import VirtualTokens


def untaken_positions(known: Mapping[str, VirtualTokens], runs: Sequence[Run], tokens_BT: Tensor) -> tuple[int, ...]:
    """How many virtual tokens that take no position each row begins with; empty if none does."""
    num_rows, per_row = tokens_BT.shape
    untaken = [0] * num_rows
    for run in runs:
        virtual = None if run.adapter is None else known.get(run.adapter)
        if virtual is not None and not virtual.takes_positions:
            for row in range(run.start // per_row, run.stop // per_row):
                untaken[row] = virtual.count
    return tuple(untaken) if any(untaken) else ()


def leave_positions(hf: PreTrainedModel, anatomy: Anatomy) -> None:
    """From now on, the calls that say so count some rows' positions without their virtual tokens."""
    family = anatomy.family
    for stack, layers in ((anatomy.encoder, anatomy.encoding), (anatomy.trunk, anatomy.answering)):
        if family.position_table is not None:
            table = hf.get_submodule(f"{stack}.{family.position_table}")
            table.forward = _from_own_tokens(table.forward)
        if family.bias_by_distance:
            attention: Any = hf.get_submodule(layers[0].attention)
            attention.compute_bias = _from_own_queries(attention.compute_bias)


def _from_own_tokens(look_up: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The embeddings of positions, shape (B, T, D), or (1, T, D) where all rows have the same."""

    def positions(input_ids: Tensor, past_key_values_length: int = 0, position_ids: Tensor | None = None) -> Tensor:
        untaken = current_call().untaken
        if not untaken:
            return look_up(input_ids, past_key_values_length, position_ids=position_ids)
        device = input_ids.device
        column_T = torch.arange(input_ids.shape[1], device=device) + past_key_values_length
        position_BT = (column_T - torch.tensor(untaken, device=device)[:, None]).clamp(min=0)
        return look_up(input_ids, position_ids=position_BT)[0]  # it puts an axis before those that it is given

    return positions


def _from_own_queries(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The bias on the scores, shape (B, H, T, L), or (1, H, T, L) where all rows have the same."""

    def bias(
        query_length: int, key_length: int, device: torch.device | None = None, past_seen_tokens: int = 0
    ) -> Tensor:
        untaken = current_call().untaken or (0,)
        by_count = {
            count: compute(query_length, key_length, device=device, past_seen_tokens=past_seen_tokens - count)
            for count in dict.fromkeys(untaken)
        }
        return by_count[untaken[0]] if len(by_count) == 1 else torch.cat([by_count[count] for count in untaken])

    return bias
