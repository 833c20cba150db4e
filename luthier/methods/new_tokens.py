"""The rows of new tokens, trained beside an adapter.

An adapter leaves the base as it is, but the rows of tokens that it never had say nothing yet and must learn too. So each adapter
has rows of its own for them in the place of the frozen ones: in the embedding, and in the head over words, which shares
them where it is tied. In peft's files of LoRA these are the `trainable_token_indices`.
Shapes: K tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter_files import TOKEN_INDICES, AdapterFile
from luthier.methods.bank import AdaptedEmbedding, AdaptedLayer, AdaptedLinear, adapted, put_module
from luthier.methods.contract import Group
from luthier.methods.rows_layers import HeadRows, TokenRows
from luthier.models.language_model import LanguageModel


class TrainedRows:
    """The rows of a model's new tokens beside one adapter; none where the base has all its tokens."""

    def __init__(self, model: LanguageModel, name: str, tokens: Sequence[int] = ()) -> None:
        """Give embedding and head branches that begin as the frozen rows."""
        self.model = model
        self.name = name
        self.tokens = tuple(tokens)
        self.layers: dict[str, AdaptedLayer] = {}
        self.tensors: dict[str, nn.Parameter] = {}
        if self.tokens:
            self._attach()

    def _attach(self) -> None:
        anatomy, tokens_K = self.model.anatomy, torch.tensor(self.tokens, device=self.model.device)
        embedding = adapted(self.model, anatomy.embedding)
        assert isinstance(embedding, AdaptedEmbedding)
        rows_KD = _rows_of(embedding.weight, tokens_K)
        embedding.add(self.name, TokenRows(tokens_K, rows_KD))
        self.layers[anatomy.embedding] = embedding
        self.tensors[anatomy.embedding] = rows_KD
        if anatomy.purpose == "classes":
            return
        head = adapted(self.model, anatomy.head)
        assert isinstance(head, AdaptedLinear)
        if not anatomy.is_head_tied:
            rows_KD = self.tensors[anatomy.head] = _rows_of(head.weight, tokens_K)
        head.add(self.name, HeadRows(tokens_K, rows_KD, owns=not anatomy.is_head_tied))
        self.layers[anatomy.head] = head

    @property
    def groups(self) -> tuple[Group, ...]:
        """The rows, which do not decay: they are places of tokens, and no change of any."""
        named = {f"{layer}.rows": tensor for layer, tensor in self.tensors.items()}
        return (Group(named, decays=False),) if named else ()

    @torch.no_grad()
    def load(self, file: AdapterFile) -> None:
        """Take the rows of a file; one that holds none leaves them as they begin. Raises RecipeError for other tokens."""
        if not file.rows and not file.tokens:
            return
        rows = self._once(file.rows)
        shapes = {layer: tuple(tensor.shape) for layer, tensor in self.tensors.items()}
        if file.tokens != self.tokens or {layer: tuple(tensor.shape) for layer, tensor in rows.items()} != shapes:
            own = f"are {', '.join(map(str, self.tokens))}" if self.tokens else "there are none"
            raise RecipeError(
                f"The adapter has trained rows of the tokens {', '.join(map(str, file.tokens))} in {', '.join(file.rows)}; "
                f"of this model's new tokens {own}.",
                "Set model.add_tokens to the tokens that were new when the adapter was trained, in the same order; or merge it "
                "into its base with the tool that made it, and begin from the merged model.",
                file=file.config or file.path,
                field=TOKEN_INDICES,
            )
        for layer, tensor in self.tensors.items():
            tensor.copy_(rows[layer])

    def _once(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows without those of a tied head, which peft saves again where the whole embedding is saved too."""
        embedding, head = self.model.anatomy.embedding, self.model.anatomy.head
        is_copy = embedding in rows and head in rows and torch.equal(rows[head], rows[embedding])
        return {
            layer: tensor
            for layer, tensor in rows.items()
            if not (layer == head and self.model.anatomy.is_head_tied and is_copy)
        }

    def merge(self) -> None:
        """Write the rows into the base."""
        for target, layer in self.layers.items():
            base = layer.merge(self.name)
            if not layer.branches:
                put_module(self.model, target, base)
        self.layers = {}


def _rows_of(weight_VD: Tensor, tokens_K: Tensor) -> nn.Parameter:
    return nn.Parameter(weight_VD.detach()[tokens_K].to(torch.float32, copy=True))


def check_apart_from_rows(adapted_places: Sequence[str], rows: TrainedRows) -> None:
    """Raise RecipeError if a method names the embedding or the head, where the rows of new tokens train."""
    both = sorted(set(adapted_places) & set(rows.layers))
    if both:
        raise RecipeError(
            f"{both[0]} has the rows of the new tokens, which train whole.",
            "Leave it out of method.targets.",
            field="method.targets",
        )
