"""Random draws that depend on what is drawn for, not on when or where it is computed.

A generator's stream depends on the order of calls, so another micro-batch size, another number of threads, or the
recomputation of a checkpointed layer would draw differently. Here every number is a hash of its own address: the seed,
the step, the document, the position in it, the place in the model (`salt`) and the column. The hash is the finaliser of
SplitMix64 (Steele, Lea & Flood 2014, https://doi.org/10.1145/2660193.2660195) in wrapping int64 arithmetic. Of a mask each token and each
column has such a hash, and each entry one of these two in int32, which is a tenth of the work.

Shapes: T tokens, D columns.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_ENTRY_1, _ENTRY_2 = 0x7FEB352D, 0x846CA68B - (1 << 32)
"""Odd factors of the entries' hash."""


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 values."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """A hash of each int64 value: the SplitMix64 finaliser."""
    x = x * _GOLDEN + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def salt_of(text: str) -> int:
    """A number for a place in the model, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True) >> 1


def token_keys(seed: int, step: int, documents_T: Tensor, positions_T: Tensor) -> Tensor:
    """One int64 key for each token, from the seed, the step, its document and its position there, shape (T,)."""
    start = mix(torch.tensor([seed], dtype=torch.int64)) ^ step
    key_T = mix(mix(start.to(documents_T.device)) ^ documents_T)
    return mix(key_T ^ positions_T)


def choose(count: int, seed: int, step: int, salt: int) -> int:
    """One of 0 … count − 1, each as likely as the others, for the whole of a forward pass."""
    hashed = mix(mix(mix(torch.tensor([seed], dtype=torch.int64)) ^ step) ^ salt)
    return int(_shift_right(hashed, 11)) % count


def uniforms(count: int, seed: int, step: int, salt: int) -> Tensor:
    """So many numbers between 0 and 1, neither of them among these, for the whole of a forward pass, fp64."""
    start = mix(mix(mix(torch.tensor([seed], dtype=torch.int64)) ^ step) ^ salt)
    hashed = mix(start ^ torch.arange(count, dtype=torch.int64))
    return (_shift_right(hashed, 12).double() + 0.5) / (1 << 52)


def signed_uniforms(keys_T: Tensor, salt: int, width: int) -> Tensor:
    """Uniform in (−1, 1), independently for each token and column, fp32, shape (T, D)."""
    columns_D = torch.arange(width, dtype=torch.int64, device=keys_T.device)
    hashed_TD = mix((mix(keys_T ^ salt))[:, None] ^ columns_D)
    return (_shift_right(hashed_TD, 41).float() + 0.5) / (1 << 22) - 1


def keep_mask(keys_T: Tensor, salt: int, width: int, drop: float) -> Tensor:
    """True with probability 1 − drop, independently for each token and column, shape (T, D)."""
    return keep_entries(*mask_sides(keys_T, salt, width), drop)


def mask_sides(keys_T: Tensor, salt: int, width: int) -> tuple[Tensor, Tensor]:
    """The hashes of a mask's tokens, shape (T,), and of its columns, shape (D,), int32."""
    place = mix(torch.tensor([salt], dtype=torch.int64, device=keys_T.device))
    columns_D = torch.arange(width, dtype=torch.int64, device=keys_T.device)
    return mix(keys_T ^ salt).to(torch.int32), mix(place ^ columns_D).to(torch.int32)


def keep_entries(token_T: Tensor, column_D: Tensor, drop: float) -> Tensor:
    """The mask of some tokens by the hashes of tokens and columns, shape (T, D)."""
    x_TD = (token_T[:, None] ^ column_D).mul_(_ENTRY_1)
    x_TD.bitwise_xor_(x_TD >> 15).mul_(_ENTRY_2)
    return x_TD >= round(drop * (1 << 32)) - (1 << 31)
