"""The rows of new tokens, trained beside an adapter.

An adapter leaves the base as it is, but the rows of tokens that it never had say nothing yet and must learn too. So each adapter
has rows of its own for them in the place of the frozen ones: in the embedding, and in the head over words, which shares
them where it is tied. A soft prompt at the embedding goes on from these rows instead of the frozen ones. In peft's files of
LoRA they are the `trainable_token_indices`, beside other adapters they lie in a file of their own (`rows_files`).
Shapes: K tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter_files import TOKEN_INDICES, AdapterFile
from luthier.methods.bank import AdaptedEmbedding, AdaptedLayer, AdaptedLinear, Branch, adapted, put_module
from luthier.methods.contract import Group
from luthier.methods.rows_layers import HeadRows, OverRows, TokenRows
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
        self._own: dict[str, Branch] = {}
        self._prompt: OverRows | None = None
        if self.tokens:
            self._attach()

    def _attach(self) -> None:
        anatomy, tokens_K = self.model.anatomy, torch.tensor(self.tokens, device=self.model.device)
        embedding = adapted(self.model, anatomy.embedding)
        assert isinstance(embedding, AdaptedEmbedding)
        rows_KD = self.tensors[anatomy.embedding] = _rows_of(embedding.weight, tokens_K)
        own = TokenRows(tokens_K, rows_KD)
        standing = dict(embedding.branches.items()).get(self.name)
        if isinstance(standing, OverRows):
            standing.new_rows = own
            self._prompt = standing
        else:
            self._add(anatomy.embedding, embedding, own)
        if anatomy.purpose == "classes" or not self.model.is_head_read:
            return
        head = adapted(self.model, anatomy.head)
        assert isinstance(head, AdaptedLinear)
        if not anatomy.is_head_tied:
            rows_KD = self.tensors[anatomy.head] = _rows_of(head.weight, tokens_K)
        self._add(anatomy.head, head, HeadRows(tokens_K, rows_KD, owns=not anatomy.is_head_tied))

    def _add(self, target: str, layer: AdaptedLayer, branch: Branch) -> None:
        layer.add(self.name, branch)
        self.layers[target], self._own[target] = layer, branch

    def leave(self) -> None:
        """Take the rows out again, but for places where others of this name stand by now."""
        for target, layer in self.layers.items():
            if layer.branches[self.name] is self._own[target]:
                del layer.branches[self.name]
        if self._prompt is not None and self._prompt.new_rows is not None:
            is_own = self._prompt.new_rows.rows_KD is self.tensors[self.model.anatomy.embedding]
            self._prompt.new_rows = None if is_own else self._prompt.new_rows
        self.layers, self._prompt = {}, None

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """The rows by names of their own."""
        return {f"{layer}.rows": tensor for layer, tensor in self.tensors.items()}

    @property
    def groups(self) -> tuple[Group, ...]:
        """The rows, which do not decay: they are places of tokens, and no change of any."""
        return (Group(self.named, decays=False),) if self.tensors else ()

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


def check_apart_from_rows(model: LanguageModel, name: str, adapted_places: Sequence[str]) -> None:
    """Raise RecipeError if an adapter has places at the embedding or the head, where the rows of new tokens train.

    A soft prompt, which only goes on from those rows, may stand at the embedding.
    """
    anatomy = model.anatomy
    if not model.new_tokens:
        return
    trained = {anatomy.embedding} if anatomy.purpose == "classes" else {anatomy.embedding, anatomy.head}
    for place in sorted(trained & set(adapted_places)):
        layer = model.hf.get_submodule(place)
        if not (isinstance(layer, AdaptedLayer) and isinstance(layer.branch(name), OverRows)):
            raise RecipeError(
                f"{place} has the rows of the new tokens, which train whole.",
                "Leave it out of method.targets (of rows: out of method.tokens), or choose another method.",
                field="method.targets",
            )
