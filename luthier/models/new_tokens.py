"""Tokens that a model did not have: its tokenizer is given them, its tables rows for them.

A new row begins at the mean of the rows of the known tokens, moved a little: by a tenth of their standard deviation, in a
direction that the seed and the token's own text decide. So a new token is as likely as others at first, and no two are alike.
Shapes: V rows, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from luthier.errors import RecipeError
from luthier.models.reading import words_layer
from luthier.ops.draws import salt_of

_SPREAD = 0.1
_ROUND = 64


@dataclass(frozen=True)
class Added:
    """Tokens to be added to a model, and the seed that decides their rows."""

    tokens: tuple[str, ...]
    seed: int


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Give a tokenizer special tokens. Raises RecipeError for one that it has."""
    known = tokenizer.get_vocab()
    for token in tokens:
        if token in known:
            raise RecipeError(
                f"{token!r} is a token of the model already.",
                "Leave it out of model.add_tokens.",
                field="model.add_tokens",
            )
    special = [AddedToken(token, special=True, normalized=False) for token in tokens]
    tokenizer.add_special_tokens({"extra_special_tokens": special}, replace_extra_special_tokens=False)


def grown_size(num_rows: int, num_tokens: int) -> int:
    """The rows of a table for so many tokens: as many as it has if they suffice; a round number stays one."""
    if num_tokens <= num_rows:
        return num_rows
    return -(-num_tokens // _ROUND) * _ROUND if num_rows % _ROUND == 0 else num_tokens


@torch.no_grad()
def grow(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, added: Added) -> tuple[int, ...]:
    """Give a model rows for the tokens that its tokenizer was given; returns their ids. What is tied stays tied.

    Raises RecipeError for a head that is held in few bits and lacks them.
    """
    ids = {token: tokenizer.get_vocab()[token] for token in added.tokens}
    num_rows = len(_embedding(model))
    size = grown_size(num_rows, len(tokenizer))
    if size > num_rows:
        head = words_layer(model)
        if head is not None and "weight" not in dict(head.named_parameters(recurse=False)):
            raise RecipeError(
                "The model's head is held in few bits, and has no place for new tokens.",
                "Name the unquantized model, or leave the head out of quantization.targets.",
                field="model.add_tokens",
            )
        with torch.random.fork_rng(devices=[]):  # what it draws is drawn again below
            model.resize_token_embeddings(size, mean_resizing=False)
    num_known = min(ids.values())
    for name, table_VD in _tables(model).items():
        _fill(name, table_VD, min(num_known, num_rows), num_rows, ids, added.seed)
    return tuple(ids.values())


def _embedding(model: PreTrainedModel) -> Tensor:
    layer: nn.Module = model.get_input_embeddings()
    return layer.get_parameter("weight")


def _tables(model: PreTrainedModel) -> dict[str, Tensor]:
    """The embedding, and what an untied head over words has for each token."""
    embedding, head = _embedding(model), words_layer(model)
    own = {} if head is None else dict(head.named_parameters(recurse=False))
    return {"embedding": embedding} | {
        f"head.{name}": tensor for name, tensor in own.items() if tensor is not embedding
    }


def _fill(name: str, table: Tensor, num_known: int, num_rows: int, ids: Mapping[str, int], seed: int) -> None:
    known = table[:num_known].float()
    mean, spread = known.mean(0), _SPREAD * known.std(0)
    table[num_rows:] = mean.to(table.dtype)  # also those that only round the number off
    for token, index in ids.items():
        generator = torch.Generator().manual_seed((salt_of(f"{name} {token}") ^ seed) & (2**63 - 1))
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        table[index] = (mean + spread * noise).to(table.dtype)
