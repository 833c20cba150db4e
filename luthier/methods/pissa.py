"""PiSSA: a LoRA that starts from the principal part of the weight rather than beside it.

Meng et al. 2024, https://arxiv.org/abs/2404.02948, equations 2–4: with the singular value decomposition W = U Σ Vᵀ,

    B₀ = U_R √(Σ_R / s),   A₀ = √(Σ_R / s) V_Rᵀ,   W' = (W − s B₀ A₀) + s B A,   B = B₀ and A = A₀ at the start.

The paper replaces W by the residual W − s B₀ A₀. Here W stays what it is, so that the model without the adapter, or with
another in the same batch, remains right; A₀ and B₀ are kept instead, and the same W' is computed as

    W' = W + s (B − B₀) A + s B₀ (A − A₀),

a low-rank update that is exactly zero at the start and, in half precision, has no large parts that cancel. Dropout acts on
the input of this update (our choice; the paper uses none).

Over a base that is quantized while it is read (the paper's QPiSSA, section 4) what is quantized is the residual, whose numbers are
smaller: the base becomes q(W − s B₀ A₀) + s B₀ A₀, nearer to W than q(W), and W' is the same. Over one that comes quantized, A₀ and B₀ are
those of the weight as it is unpacked.

Written as an ordinary LoRA of rank 2R on the unchanged W, B⁺ = [B, −B₀] and A⁺ = [A; A₀], its strength such that s holds;
a run that goes on from it is therefore one of LoRA. A₀ and B₀ belong to every checkpoint: a resumed run goes on with the
same bits, whatever decomposition its machine would find.

Merges: yes. Deep backward: yes, to the lowest adapted layer. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: Σ R (I + O) over the adapted layers.
Shapes: I inputs, O outputs, R rank, S columns of a random sketch.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import linear_of, trainable
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, Branch, LowRankBranch
from luthier.methods.contract import Kin, Method, Traits
from luthier.methods.lora import LORA_FORM, LoRA, LowRank
from luthier.methods.peft_files import PeftForm
from luthier.models.anatomy import Anatomy, find_targets
from luthier.models.call import Run
from luthier.models.language_model import LanguageModel
from luthier.models.streaming import Packing, Prepare, Prepared
from luthier.ops.lora import Update
from luthier.ops.spectrum import SVD, Factors, svd_of
from luthier.quantization.with_low_rank import WithLowRank

_OVERSAMPLING = 8


class PiSSA(LowRank):
    """Low-rank updates that start from each weight's principal singular vectors."""

    family: ClassVar[Kin] = "low-rank"
    paper: ClassVar[str] = "https://arxiv.org/abs/2404.02948"
    count: ClassVar[str] = "Σ R (I + O) over the adapted layers"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 5e-5  # the paper: 2e-5, for 7 B weights and rank 128; small models bear more
    form: ClassVar[PeftForm] = LORA_FORM
    alpha_over_rank: ClassVar[float] = 1.0

    kind: Literal["pissa"] = "pissa"
    alpha: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Strength: the product of the factors is scaled by alpha / rank. Unset: the rank, as in the paper.",
    )
    niter: int | None = Field(
        None,
        ge=1,
        description="Find the singular vectors by this many power iterations from a random start, which is faster; 4 to 16 are usual. Unset: exactly.",
    )

    def attach(self, model: LanguageModel, name: str, seed: int, *, fast: bool = True) -> AdapterAttachment:
        """Put a fresh adapter into the model. Raises RecipeError with `from`: what PiSSA leaves is a LoRA."""
        if self.begin_from is None:
            return self.place(model, name, seed, fast)
        raise RecipeError(
            "PiSSA begins at the base's own singular vectors; its finished adapter is an ordinary LoRA.",
            "Set method.kind to lora to go on from that, or leave method.from out.",
            field="method.from",
        )

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A branch at every place, and what they start from as part of the run's state."""
        return PiSSAAttachment(self, model, name, super().place(model, name, seed, fast).layers)

    def prepare_weights(self, anatomy: Anatomy) -> Prepare:
        """At the layers that are adapted, the principal part is held in full and the residual quantized."""
        places = set(find_targets(anatomy, self.targets, self.layers))

        @torch.no_grad()
        def prepare(name: str, weight_OI: Tensor, pack: Packing) -> Prepared:
            if name not in places:
                return Prepared(pack(weight_OI))
            weight_OI = weight_OI.float()
            a_RI, b_OR = self.principal(name, weight_OI, torch.Generator().manual_seed(zlib.crc32(name.encode())))
            part = Factors(self.scale_of(name) * b_OR, a_RI)
            return Prepared(WithLowRank(pack(weight_OI - part.dense()), part))

        return prepare

    def principal(self, name: str, weight_OI: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A₀ (R, I) and B₀ (O, R) of a layer; the generator serves the fast decomposition only."""
        rank, root = self.rank_of(name), math.sqrt(self.scale_of(name))
        if rank > min(weight_OI.shape):
            raise RecipeError(
                f"{name} has {min(weight_OI.shape)} singular vectors, fewer than the rank {rank}.",
                "Lower method.rank, or give the layer a rank of its own in method.rank_pattern.",
                field="method.rank",
            )
        svd = svd_of(weight_OI) if self.niter is None else randomized_svd(weight_OI, rank, self.niter, generator)
        start = svd.best(rank)
        return start.right_RI / root, start.left_OR / root

    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """A and B from the weight, or from what was held of it when the base was quantized."""
        linear, scale = linear_of(layer, self.kind), self.scale_of(layer.name)
        if isinstance(linear.frozen, WithLowRank):
            part = linear.frozen.part
            a_RI, b_OR = part.right_RI.clone(), part.left_OR / scale
        else:
            a_RI, b_OR = self.principal(layer.name, linear.weight.detach().float(), generator)
        return PiSSABranch(a_RI, b_OR, scale, self.dropout, fast)

    def file_settings(self) -> dict[str, Any]:
        """Those of the LoRA of twice the rank that is written, with the same s."""
        growth = math.sqrt(2) if self.rslora else 2.0
        settings = super().file_settings()
        settings.pop("niter")
        return settings | {
            "rank": 2 * self.rank,
            "alpha": growth * settings["alpha"],
            "rank_pattern": {pattern: 2 * rank for pattern, rank in self.rank_pattern.items()},
            "alpha_pattern": {pattern: growth * alpha for pattern, alpha in self.alpha_pattern.items()},
        }

    def continued(self, folder: Path) -> Method:
        """The LoRA that was written."""
        return LoRA(begin_from=str(folder))


class PiSSABranch(LowRankBranch):
    """A (R, I) and B (O, R), which train, and what they started from."""

    def __init__(self, a0_RI: Tensor, b0_OR: Tensor, scale: float, drop: float, fast: bool) -> None:
        super().__init__()
        self.a_RI, self.b_OR = trainable(a0_RI.clone(), a0_RI.device), trainable(b0_OR.clone(), b0_OR.device)
        self.register_buffer("a0_RI", a0_RI.contiguous())
        self.register_buffer("b0_OR", b0_OR.contiguous())
        self.scale, self.drop, self.fast = scale, drop, fast

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """A and B under peft's names."""
        return {"lora_A.weight": self.a_RI, "lora_B.weight": self.b_OR}

    @property
    def start(self) -> dict[str, Tensor]:
        """A₀ and B₀, by name."""
        return {"start_A": self.get_buffer("a0_RI"), "start_B": self.get_buffer("b0_OR")}

    @property
    def draws(self) -> bool:
        """Whether there is dropout."""
        return self.drop > 0

    def change(self) -> Factors:
        """B A − B₀ A₀ as one product of rank 2R, with gradients for A and B: [B − B₀, B₀] · [A; A − A₀]."""
        a0_RI, b0_OR = self.start["start_A"], self.start["start_B"]
        return Factors(
            torch.cat([self.b_OR - b0_OR, b0_OR], dim=1),
            torch.cat([self.a_RI, self.a_RI - a0_RI]),
        )

    def low_rank(self, layer: AdaptedLinear, run: Run) -> Update:
        """s · drop(x) (B A − B₀ A₀)ᵀ."""
        change, dropout = self.change(), layer.dropout(self.drop, run)
        return Update(run.start, run.stop, change.right_RI, change.left_OR, self.scale, dropout)

    def file_tensors(self) -> dict[str, Tensor]:
        """[A; A₀] and [B, −B₀]: the same function as a LoRA on the base's own weight."""
        return {
            "lora_A.weight": torch.cat([self.a_RI.detach(), self.start["start_A"]]),
            "lora_B.weight": torch.cat([self.b_OR.detach(), -self.start["start_B"]], dim=1),
        }

    def update(self, layer: AdaptedLinear) -> Factors:
        """s (B A − B₀ A₀)."""
        change = self.change()
        return Factors(self.scale * change.left_OR.detach(), change.right_RI.detach())

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + s (B A − B₀ A₀)."""
        return weight_OI + self.scale * self.change().dense(), bias_O


class PiSSAAttachment(AdapterAttachment):
    """PiSSA at work: its checkpoints hold what A and B started from."""

    def state(self) -> dict[str, Tensor]:
        """A₀ and B₀ of every layer."""
        return {name: tensor.cpu() for name, tensor in self._starts().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over the A₀ and B₀ of the run that is resumed."""
        for name, tensor in self._starts().items():
            tensor.copy_(state[name])

    def _starts(self) -> dict[str, Tensor]:
        starts: dict[str, Tensor] = {}
        for target, branch in self.branches.items():
            assert isinstance(branch, PiSSABranch)
            starts |= {f"{target}.{ending}": tensor for ending, tensor in branch.start.items()}
        return starts


def randomized_svd(weight_OI: Tensor, rank: int, niter: int, generator: torch.Generator) -> SVD:
    """Close to the `rank` largest singular values and their vectors, by subspace iteration from a random sketch.

    Halko, Martinsson & Tropp 2011, https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.1, with a few columns to spare.
    """
    size = min(rank + _OVERSAMPLING, *weight_OI.shape)
    sketch_IS = torch.randn(weight_OI.shape[1], size, generator=generator).to(weight_OI.device)
    left_OS = torch.linalg.qr(weight_OI @ sketch_IS).Q
    for _ in range(niter):
        right_IS = torch.linalg.qr(weight_OI.t() @ left_OS).Q
        left_OS = torch.linalg.qr(weight_OI @ right_IS).Q
    u_SS, sigma_S, vt_SI = torch.linalg.svd(left_OS.t() @ weight_OI, full_matrices=False)
    return SVD(left_OS @ u_SS, sigma_S, vt_SI)
