"""LoftQ: a LoRA over a quantized base that starts by making up for what the quantization lost.

Li et al. 2023, https://arxiv.org/abs/2310.08659, algorithm 1. From B A = 0, as often as `iterations` says:

    Q ← q(W − s B A),   B, A ← the best product of rank R for (W − Q) / s, its singular values shared evenly,

so that Q + s B A is closer to W than q(W) is. (The paper and peft leave s out, so there the start holds for α = R alone.)
It is done while the base is read, one weight at a time. With more than one iteration Q is not q(W): the trained adapter is right
over this Q alone, which the recipe makes anew wherever the run is loaded. On the same machine and versions that gives the same
bits; elsewhere a singular value decomposition may round differently, and a few numbers of Q land on the code beside. Another
tool, over its own q(W), computes something else.

Merges: yes, onto Q unpacked. Deep backward: yes, to the lowest adapted layer. Over 4 bits: it is for that. Identity at the start: no,
but closer to the model in full precision than its quantized one.
Trainable numbers: Σ R (I + O) over the adapted layers.
Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods.adapter import linear_of, trainable
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, Branch
from luthier.methods.contract import Kin, Traits
from luthier.methods.lora import LORA_FORM, LowRank, fresh_pair
from luthier.methods.lora_layers import LoRABranch
from luthier.methods.peft_files import PeftForm
from luthier.models.anatomy import Anatomy, find_targets
from luthier.models.language_model import LanguageModel
from luthier.models.streaming import Packing, Prepare, Prepared
from luthier.ops.products import Packed
from luthier.ops.spectrum import svd_of

LOFTQ_FORM = replace(
    LORA_FORM,
    title="LoRA over the base that LoftQ prepared",
    allowed={**LORA_FORM.allowed, "init_lora_weights": ("loftq",)},
    constants={**LORA_FORM.constants, "init_lora_weights": "loftq"},
)
"""A LoRA's files, marked so that none takes it for one over an ordinary base."""


class LoftQ(LowRank):
    """Low-rank updates that start at what a quantized base lost."""

    family: ClassVar[Kin] = "low-rank"
    paper: ClassVar[str] = "https://arxiv.org/abs/2310.08659"
    count: ClassVar[str] = "Σ R (I + O) over the adapted layers"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=False)
    default_lr: ClassVar[float] = 2e-4
    form: ClassVar[PeftForm] = LOFTQ_FORM
    needs_quantization: ClassVar[bool] = True

    kind: Literal["loftq"] = "loftq"
    iterations: int = Field(1, ge=1, le=20, description="How often the base is quantized and its loss taken up anew.")

    def prepare_weights(self, anatomy: Anatomy) -> Prepare:
        """Algorithm 1 at the layers that are adapted."""
        places = set(find_targets(anatomy, self.targets, self.layers))

        def prepare(name: str, weight_OI: Tensor, pack: Packing) -> Prepared:
            if name not in places:
                return Prepared(pack(weight_OI))
            return self.alternated(name, weight_OI.float(), pack)

        return prepare

    @torch.no_grad()
    def alternated(self, name: str, weight_OI: Tensor, pack: Packing) -> Prepared:
        """Q, and A and B that start at what it lost."""
        rank, scale = self.rank_of(name), self.scale_of(name)
        if rank > min(weight_OI.shape):
            raise RecipeError(
                f"{name} has {min(weight_OI.shape)} singular vectors, fewer than the rank {rank}.",
                "Lower method.rank, or give the layer a rank of its own in method.rank_pattern.",
                field="method.rank",
            )
        packed = pack(weight_OI)
        for iteration in range(self.iterations):
            best = svd_of(weight_OI - packed.dense(torch.float32)).best(rank)
            if iteration + 1 < self.iterations:
                packed = pack(weight_OI - best.dense())
        root = math.sqrt(scale)
        return Prepared(packed, {"a_RI": best.right_RI / root, "b_OR": best.left_OR / root})

    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """A LoRA's; `place` gives it its start."""
        linear = linear_of(layer, self.kind)
        a_RI, b_OR = fresh_pair(linear, self.rank_of(layer.name), generator)
        return LoRABranch(a_RI, b_OR, self.scale_of(layer.name), self.dropout, fast)

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A branch at every place, begun as the base was prepared. Raises RecipeError where a layer was not."""
        attachment = super().place(model, name, seed, fast)
        for target, branch in attachment.branches.items():
            start = model.prepared.get(target)
            if start is None:
                raise self._without_start(target, linear_of(attachment.layers[target], self.kind))
            assert isinstance(branch, LoRABranch)
            branch.a_RI, branch.b_OR = (trainable(start[key].clone(), model.device) for key in ("a_RI", "b_OR"))
        return attachment

    def _without_start(self, name: str, linear: AdaptedLinear) -> RecipeError:
        """Why a layer was not prepared."""
        if isinstance(linear.frozen, Packed):
            return RecipeError(
                f"{name} comes in few bits, so what it lost as it was quantized, which {self.kind} begins with, is not known.",
                "Name the unquantized model, or set method.kind to lora.",
                field="method.kind",
            )
        return RecipeError(
            f"{name} is not quantized, so there is nothing lost to begin with.",
            "Set quantization: {kind: nf4}, and leave the layer out of quantization.skip or out of method.targets.",
            field="quantization",
        )
