"""AdapterFusion: adapters that were trained apart, frozen, and at each place an attention that mixes what they give.

Pfeiffer et al. 2021, https://arxiv.org/abs/2005.00247. Where adapters n = 1 … M stand, with z_n = f_n(·) what each adds to
what the sublayer gives, u, and h what the last of them reads:

    u' = u + Σ_n α_n V z_n,   α = softmax_n((Q h) · (K z_n)),   Q, K, V (D, D)

h is the residual sum for Pfeiffer adapters (after its norm where norms follow the sums), as in the paper; u for Houlsby
adapters and the residual for parallel ones, as in the paper's code, which also takes the last adapter's. An adapter that
does not stand at a place has no part there; where one stands alone its share is 1, and Q and K, which nothing could
train, are left out.

Q and K start normal with σ = 0.02; V starts as the identity with 10⁻⁶ beside its diagonal and is held near it by
λ Σ ‖I − V‖²; λ = 0.01 is that of the code. The paper's formula has no biases, and so have we; the code adds one to Q, and
one to K, which cancels in the softmax. Its dropout of the shares, and its temperature (off by default), are left out.
That the default learning rate is the paper's is from memory. Computed as V (Σ α z) and (Kᵀ Q h) · z_n: three products of
D² a token however many adapters there are.

The adapter's folder holds whole copies of the fused adapters, so it needs no other run; each can be used alone.

Merges: no. Deep backward: yes, to the lowest adapter. Over 4 bits: yes. Identity at the start: no; it begins close to the
adapters' mean.
Trainable numbers: 3 D² at each place where several of the adapters stand, D² where one does.
Shapes: N tokens, D width of the model, M adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from luthier.errors import LuthierError, RecipeError
from luthier.methods.adapter import AdapterMethod, generator_of, trainable
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import AdapterFile, Form, OwnForm, adapter_folder, read_config
from luthier.methods.adapterhub_files import CONFIG, read_hub_config
from luthier.methods.bank import AdaptedLayer, Branch
from luthier.methods.bottleneck import BottleneckMethod
from luthier.methods.contract import Kin, Traits
from luthier.methods.houlsby import Houlsby
from luthier.methods.parallel import Parallel
from luthier.methods.pfeiffer import Pfeiffer
from luthier.methods.sublayers import AddingBranch, NoteBranch, note_residual, noted_residual, with_branches
from luthier.models.anatomy import Anatomy
from luthier.models.call import Run
from luthier.models.language_model import LanguageModel
from luthier.store.files import make_folder

HOSTS: Mapping[str, type[BottleneckMethod]] = {"houlsby": Houlsby, "pfeiffer": Pfeiffer, "parallel": Parallel}
_FUSED = "fused"
_OFF_DIAGONAL = 1e-6


class FusionForm(Form):
    """A form of our own; the fused adapters lie in folders of their own within, `fused/0` and on, each in its own form."""

    own: ClassVar[OwnForm] = OwnForm("adapter-fusion")

    def read(self, source: str) -> AdapterFile:
        """The fusion, with the folders of its adapters as their paths."""
        file = self.own.read(source)
        parts = range(len(file.settings["adapters"]))
        adapters = tuple(str(Path(file.path) / _FUSED / str(index)) for index in parts)
        return replace(file, settings={**file.settings, "adapters": adapters})

    def write(self, folder: Path, file: AdapterFile, anatomy: Anatomy, is_transposed: bool) -> None:
        """The fusion alone, which says of its adapters where they are within the folder."""
        adapters = [f"{_FUSED}/{index}" for index in range(len(file.settings["adapters"]))]
        self.own.write(folder, replace(file, settings={**file.settings, "adapters": adapters}), anatomy, is_transposed)


class AdapterFusion(AdapterMethod):
    """An attention over trained adapters."""

    family: ClassVar[Kin] = "adapter"
    paper: ClassVar[str] = "https://arxiv.org/abs/2005.00247"
    count: ClassVar[str] = "3 D² at each place where several of the adapters stand, D² where one does, D = width"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=False)
    default_lr: ClassVar[float] = 5e-5
    form: ClassVar[FusionForm] = FusionForm()
    free_fields: ClassVar[frozenset[str]] = frozenset({"regularization"})
    path_fields: ClassVar[tuple[str, ...]] = ("begin_from", "adapters")

    kind: Literal["adapter-fusion"] = "adapter-fusion"
    adapters: tuple[str, ...] = Field(
        (), description="Finished runs of houlsby, pfeiffer or parallel on this base, or their adapters' folders."
    )
    regularization: float = Field(
        0.01, ge=0, allow_inf_nan=False, description="Weight λ of the values' distance from the identity."
    )

    @model_validator(mode="after")
    def _adapters_come_from_one_place(self) -> Self:
        if self.begin_from is not None and self.adapters:
            raise ValueError("from brings its own adapters; leave adapters out.")
        if self.begin_from is None and not self.adapters:
            raise ValueError(
                "there is nothing to fuse; name finished runs of houlsby, pfeiffer or parallel in adapters."
            )
        return self

    @property
    def without_new_tokens(self) -> str | None:
        """The base must be the one that the adapters were trained over."""
        return "the adapters that it mixes were trained over a base without them"

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """The fused adapters under names of their own, frozen, and a fusion wherever one of them stands."""
        parts = tuple(_frozen(path, model, f"{name}:{i}", fast) for i, path in enumerate(self.adapters))
        branches: dict[str, Branch] = {}
        standing: dict[str, list[AddingBranch]] = {}
        for part in parts:
            for place, branch in part.branches.items():
                if isinstance(branch, NoteBranch):
                    branches[place] = NoteBranch(branch.reader, branch.noted)
                else:
                    assert isinstance(branch, AddingBranch)
                    standing.setdefault(place, []).append(branch)
        for place, adapters in standing.items():
            branches[place] = FusionBranch(adapters, generator_of(place, seed), model.device)
        return FusionAttachment(self, model, name, with_branches(model, name, branches), parts)


def _frozen(path: str, model: LanguageModel, name: str, fast: bool) -> AdapterAttachment:
    """A trained adapter in the model under a name of its own. Raises LuthierError, naming the recipe's field.

    The head of the task that it was trained for stays out: the fusion learns a task of its own.
    """
    try:
        attachment = _host_of(path).model_validate({"from": path}).attach_without_head(model, name, fast=fast)
    except LuthierError as error:
        if error.field == "method.from":
            error.field = "method.adapters"
        raise
    for tensor in attachment.trainables.values():
        tensor.requires_grad_(False)
    return attachment


def _host_of(path: str) -> type[BottleneckMethod]:
    """The method that made an adapter. Raises RecipeError if it is not one that can be fused."""
    folder = adapter_folder(path, CONFIG, OwnForm.CONFIG)
    if (folder / CONFIG).is_file():
        shape = read_hub_config(folder / CONFIG)["config"]
        kind = "parallel" if shape.get("is_parallel") else "pfeiffer" if shape.get("original_ln_before") else "houlsby"
    else:
        kind = str(read_config(folder / OwnForm.CONFIG).get("kind"))
    if kind not in HOSTS:
        raise RecipeError(
            f"The adapter in {path} is of kind {kind!r}; only those of {', '.join(HOSTS)} can be fused.",
            "Take it out of method.adapters.",
            field="method.adapters",
        )
    return HOSTS[kind]


class FusionBranch(Branch):
    """V (D, D), Q and K (D, D) if there is a choice, and the frozen adapters that stand at a sublayer's end."""

    def __init__(self, adapters: Sequence[AddingBranch], generator: torch.Generator, device: torch.device) -> None:
        super().__init__()
        self.adapters = tuple(adapters)  # a tuple: they belong to the bank
        self.factor = adapters[0].factor
        width = len(adapters[0].tensors["adapter_up.bias"])
        self.value_DD = trainable(torch.full((width, width), _OFF_DIAGONAL).fill_diagonal_(1.0), device)
        self.query_DD: nn.Parameter | None = None
        self.key_DD: nn.Parameter | None = None
        if len(self.adapters) > 1:
            query_DD, key_DD = (torch.randn(width, width, generator=generator) * 0.02 for _ in range(2))
            self.query_DD, self.key_DD = trainable(query_DD, device), trainable(key_DD, device)

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The matrices that there are."""
        named = {"query.weight": self.query_DD, "key.weight": self.key_DD, "value.weight": self.value_DD}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def forward(self, x: Tensor, layer: AdaptedLayer, run: Run) -> Tensor:
        """What the frozen layer gives, with the adapters' mixture added in front of the model's factor."""
        u_ND: Tensor = layer.base(x)
        scaled_ND = u_ND if self.factor == 1 else u_ND * self.factor
        read_ND, given_NMD = self._read_and_given(scaled_ND, layer, run)
        mixed_ND = self.mixed(read_ND, given_NMD)
        return u_ND + (mixed_ND if self.factor == 1 else mixed_ND / self.factor).to(u_ND.dtype)

    def _read_and_given(self, u_ND: Tensor, layer: AdaptedLayer, run: Run) -> tuple[Tensor, Tensor]:
        """What the last adapter reads, and what all give."""
        noted_ND = noted_residual(layer, run) if any(adapter.reads_residual for adapter in self.adapters) else None
        given = []
        for adapter in self.adapters:
            if adapter.reads_residual and noted_ND is not None:
                note_residual(layer.name, run, noted_ND)
            read_ND = adapter.reads(u_ND, layer, run)
            given.append(adapter.added(read_ND))
        return read_ND, torch.stack(given, dim=1)

    def mixed(self, read_ND: Tensor, given_NMD: Tensor) -> Tensor:
        """V Σ_n α_n z_n, in the dtype of what the adapters give."""
        shares_NM = self.shares(read_ND, given_NMD)
        sum_ND = torch.einsum("nm,nmd->nd", shares_NM.to(given_NMD.dtype), given_NMD)
        return F.linear(sum_ND, self.value_DD.to(sum_ND.dtype))

    def shares(self, read_ND: Tensor, given_NMD: Tensor) -> Tensor:
        """α, fp32: how much each token takes of each adapter."""
        if self.query_DD is None or self.key_DD is None:
            return torch.ones(given_NMD.shape[:2], device=given_NMD.device)
        dtype = given_NMD.dtype
        asked_ND = F.linear(read_ND.to(dtype), self.query_DD.to(dtype)) @ self.key_DD.to(dtype)
        return torch.einsum("nd,nmd->nm", asked_ND, given_NMD).float().softmax(-1)

    def penalty(self) -> Tensor:
        """‖I − V‖²."""
        identity_DD = torch.eye(len(self.value_DD), device=self.value_DD.device)
        return (identity_DD - self.value_DD).square().sum()

    def merge_into(self, layer: AdaptedLayer) -> None:
        """Refused: what mixes adapters beside the stream has no weight to go into."""
        raise RecipeError(
            "A mixture of adapters computes something that no linear layer can, so it cannot be merged.",
            "Keep it beside the base model.",
            field="method.kind",
        )


class FusionAttachment(AdapterAttachment):
    """A fusion at work; the adapters that it mixes are attachments of their own."""

    def __init__(
        self,
        method: AdapterFusion,
        model: LanguageModel,
        name: str,
        layers: Mapping[str, AdaptedLayer],
        parts: tuple[AdapterAttachment, ...],
    ) -> None:
        super().__init__(method, model, name, layers)
        self.parts = parts
        self.regularization = method.regularization

    def extra_loss(self) -> Tensor | None:
        """λ Σ ‖I − V‖²."""
        penalties = [branch.penalty() for branch in self.branches.values() if isinstance(branch, FusionBranch)]
        return self.regularization * torch.stack(penalties).sum()

    def state(self) -> dict[str, Tensor]:
        """The fused adapters, so that a resumed run has those that it began with."""
        return {name: tensor.detach().cpu() for name, tensor in self._fused().items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, tensor in self._fused().items():
            tensor.copy_(state[name])

    def write(self, folder: Path, announce: Callable[[str], None]) -> None:
        """The fusion, and beside it every adapter."""
        super().write(folder, announce)
        for index, part in enumerate(self.parts):
            own = folder / _FUSED / str(index)
            make_folder(own)
            part.write(own, announce)

    def _fused(self) -> dict[str, nn.Parameter]:
        return {
            f"{_FUSED}.{index}.{name}": tensor
            for index, part in enumerate(self.parts)
            for name, tensor in part.trainables.items()
        }
