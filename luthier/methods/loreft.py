"""LoReFT: change the residual stream itself, in a small subspace, at the first and last tokens of each prompt.

Wu et al. 2024, https://arxiv.org/abs/2404.03592. In a layer whose output is h, at the chosen tokens

    h' = h + Rᵀ (W h + b − R h),   R (r, D) with orthonormal rows,   W (r, D),   b (r,)

so that h' has R h' = W h + b in the subspace that R spans, and is h across it. The tokens are the first `first` and the
last `last` of each document's prompt, which is all that stands before what the document learns; a prompt that has fewer is
changed as a whole, each token once. What is generated is left alone: it sees the changed tokens through attention only.
A row's prompt ends where the row first learns something; a chat that learns several answers therefore trains on the first
one's prompt, and `data.learn: last_answer` trains as it will be asked.
The paper's: that, R by an orthogonal parametrisation; 7 and 7 tokens, rank 8 and a rate of 9e-4 as for its Llama 7B (from
memory). Ours: the same R, W and b at the first and the last tokens (the paper has that too, as tied weights); R as the rows of V,
orthonormalised in order, where V (r, D) is what trains (so R is orthonormal at every step and takes all of the gradient); and
W = R at the start, where the paper's is random, so that training begins at the base model.
A token's change depends on where its prompt ends, so with `last` documents do not share a common beginning.
In an encoder-decoder the prompt is the source, with the end token that the tokenizer writes: its tokens change after the
encoder's layers. The answer is left alone; it sees the change in what the encoder gives. This placement is ours.

Merges: no. Deep backward: yes, to the lowest chosen layer's output. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: Σ 2 r D + r over the chosen layers.
Shapes: M chosen tokens, D width of the layers, R the rank r.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import AdapterMethod, generator_of, trainable
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import OwnForm
from luthier.methods.contract import Group, Kin, Traits
from luthier.models.anatomy import Anatomy, LayerAnatomy, chosen_layers
from luthier.models.edits import StreamEdit
from luthier.models.language_model import LanguageModel


class LoReFT(AdapterMethod):
    """Changes of the residual stream in a small subspace, at tokens of the prompts."""

    family: ClassVar[Kin] = "additive"
    paper: ClassVar[str] = "https://arxiv.org/abs/2404.03592"
    count: ClassVar[str] = "Σ 2 r D + r over the chosen layers"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 9e-4
    form: ClassVar[OwnForm] = OwnForm("loreft")
    free_fields: ClassVar[frozenset[str]] = frozenset()

    kind: Literal["loreft"] = "loreft"
    rank: int = Field(8, ge=1, description="Dimensions of the subspace that changes.")
    first: int = Field(7, ge=0, description="How many tokens change at the beginning of each prompt.")
    last: int = Field(7, ge=0, description="How many tokens change at the end of each prompt.")
    layers: tuple[int, ...] | None = Field(
        None,
        description="After these transformer layers only, counted from 0; unset: after all. In an encoder-decoder, the encoder's.",
    )

    @model_validator(mode="after")
    def _some_token_changes(self) -> Self:
        if self.first + self.last == 0:
            raise ValueError("first and last are both 0, so no token would change; raise one of them.")
        return self

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A fresh subspace after every chosen layer.

        Raises RecipeError if the rank is more than their width, and as `prompt_layers`.
        """
        layers, width = prompt_layers(model.anatomy, self.layers), int(model.hf.config.hidden_size)
        if self.rank > width:
            raise RecipeError(
                f"The model's layers have width {width}, in which {self.rank} directions cannot be orthogonal.",
                f"Set method.rank to {width} or less.",
                field="method.rank",
            )
        spaces = {
            layer.index: Subspace(torch.randn(self.rank, width, generator=generator_of(layer.name, seed)), model.device)
            for layer in layers
        }
        model.add_edit(name, SubspaceEdit(spaces, self.first, self.last))
        tensors = {
            f"{layer.name}.{ending}": tensor
            for layer in layers
            for ending, tensor in spaces[layer.index].tensors.items()
        }
        return LoReFTAttachment(self, model, name, layers, tensors)

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """One group that does not decay: W starts at R, not at zero, and of V only the directions count."""
        return (Group(tensors, decays=False),)


class Subspace(nn.Module):
    """V (r, D), W (r, D) and b (r,) of one layer, fp32 whatever the base is."""

    def __init__(self, random_RD: Tensor, device: torch.device) -> None:
        super().__init__()
        self.basis_RD = trainable(orthonormal(random_RD).contiguous(), device)
        with torch.no_grad():
            self.source_RD = trainable(orthonormal(self.basis_RD).contiguous(), device)
        self.source_R = trainable(torch.zeros(len(random_RD)), device)

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """What trains, by the ending of its name in files."""
        return {
            "reft_basis": self.basis_RD,
            "reft_source.weight": self.source_RD,
            "reft_source.bias": self.source_R,
        }

    def rotation(self) -> Tensor:
        """R (r, D)."""
        return orthonormal(self.basis_RD)

    def forward(self, h_MD: Tensor) -> Tensor:
        """Rᵀ (W h + b − R h)."""
        rotation_RD = self.rotation()
        return F.linear(h_MD.float(), self.source_RD - rotation_RD, self.source_R) @ rotation_RD


class SubspaceEdit(StreamEdit):
    """The subspaces of the chosen layers, by index."""

    def __init__(self, spaces: dict[int, Subspace], first: int, last: int) -> None:
        super().__init__(first, last)
        self.spaces = nn.ModuleDict({str(index): space for index, space in spaces.items()})

    @property
    def layers(self) -> frozenset[int]:
        """The chosen layers."""
        return frozenset(map(int, self.spaces))

    def forward(self, layer: int, h_MD: Tensor) -> Tensor:
        """Rᵀ (W h + b − R h) of a layer."""
        added_MD: Tensor = self.spaces[str(layer)](h_MD)
        return added_MD


class LoReFTAttachment(AdapterAttachment):
    """LoReFT at work: it stands between the layers, at no module of the base."""

    def __init__(
        self,
        method: LoReFT,
        model: LanguageModel,
        name: str,
        edited: Sequence[LayerAnatomy],
        tensors: dict[str, nn.Parameter],
    ) -> None:
        super().__init__(method, model, name, {}, shared=tensors)
        self.edited = tuple(edited)

    @property
    def lowest_changed(self) -> int | None:
        """The lowest chosen layer, of which no more than the output needs a backward pass."""
        return min(layer.index for layer in self.edited)

    @property
    def occupied(self) -> frozenset[str]:
        """The residual stream between the layers: a model has one edit of it under a name."""
        return frozenset({"the residual stream between the layers"})

    def merge(self) -> None:
        """Refused: no weight treats tokens by where they stand."""
        raise RecipeError(
            "Changes at some tokens of a prompt are no change of weights, so they cannot be merged.",
            "Keep the adapter beside the base model.",
            field="method.kind",
        )


def prompt_layers(anatomy: Anatomy, layers: tuple[int, ...] | None) -> tuple[LayerAnatomy, ...]:
    """The layers of these indices, None: all, among those that prompts go through: an encoder's, where there is one.

    Raises RecipeError for a decoder's layer behind an encoder, and as `chosen_layers`.
    """
    through = anatomy.encoding or anatomy.layers
    if layers is None:
        return through
    chosen, last = chosen_layers(anatomy, layers), through[-1].index
    if chosen[-1].index > last:
        raise RecipeError(
            f"Layer {chosen[-1].index} is the decoder's; a prompt goes through the encoder's, which are 0 to {last}.",
            f"Use indices from 0 to {last}.",
            field="method.layers",
        )
    return chosen


def orthonormal(rows_RD: Tensor) -> Tensor:
    """The rows made orthonormal one after another, each as close to its own direction as those before it allow (R, D)."""
    directions_DR, upper_RR = torch.linalg.qr(rows_RD.t())
    signs_R = upper_RR.detach().diagonal().sign()  # the factorisation itself leaves each direction's sign open
    unit_RD: Tensor = (directions_DR * signs_R).t()
    return unit_RD
