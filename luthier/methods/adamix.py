"""AdaMix: several experts at each place, one drawn at random for each forward pass, averaged into one for use.

Wang et al. 2022, https://arxiv.org/abs/2205.12410. At each place there are M down-projections and M or 1 (shared) up-
projections. A training pass draws one of each, independently and uniformly, once a place for the whole batch; outside of
training the projections' arithmetic means take their place. Two passes with other draws are held together:

    loss = objective(p₁) + w · mean_n ½ [KL(p₁ ‖ sg p₂) + KL(p₂ ‖ sg p₁)],

the mean over learned tokens by their weights. Hosts: bottlenecks after the feed-forward (u + B_j σ(A_i u), as Houlsby's
there), or LoRA (s B_j A_i beside W). Note that mean(B) mean(A) is not mean(B A): what is used is what is written.
The paper's code draws all experts alike near zero; ours start from different downs and zero ups, so from the base itself.
Decoders like Llama, with the place after the feed-forward, are our extension of the paper.

Merges: only over LoRA. Deep backward: yes, two passes. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: bottlenecks L (M (D H + H) + U (H D + D)), LoRA Σ R (M I + U O); U = 1 shared, else M.
Deployed: L (2 D H + D + H), as a Houlsby adapter, or Σ R (I + O), as a LoRA.
Shapes: N tokens, M experts, U up-experts, D width, H bottleneck, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import adapted_layers, generator_of, trainable
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, LowRankBranch
from luthier.methods.bottleneck import Activation, bottleneck, fresh_down
from luthier.methods.contract import Forward, Kin, Method, Traits
from luthier.methods.houlsby import Houlsby
from luthier.methods.lora import LoRA
from luthier.methods.sublayers import AddedMap, End, SerialBranch, sublayer_ends, with_branches
from luthier.models.call import Run, current_call
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import Outputs
from luthier.ops.divergence import divergence_recomputed, divergence_reference
from luthier.ops.draws import choose, salt_of
from luthier.ops.lora import Update
from luthier.types import Settings


class AdapterHost(Settings):
    """Experts are bottlenecks after the feed-forward."""

    kind: Literal["adapter"] = "adapter"
    width: int = Field(16, ge=1, description="Width of each bottleneck.")
    activation: Activation = Field("gelu", description="The function between its two projections.")


class LoRAHost(Settings):
    """Experts are low-rank updates of linear layers."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(4, ge=1, description="Rank of each update.")
    alpha: float = Field(32.0, gt=0, description="Strength: an update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the branch's inputs dropped in training.")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Layers to adapt, by the last parts of their names; all-linear is every linear layer but the head.",
    )


def _host_kind(value: object) -> str:
    """The `kind` of a host as a recipe writes it; adapter where it is left out."""
    if isinstance(value, AdapterHost | LoRAHost):
        return value.kind
    return str(value.get("kind", "adapter")) if isinstance(value, dict) else "adapter"


class AdaMix(Method):
    """A mixture of adapters."""

    family: ClassVar[Kin] = "adapter"
    paper: ClassVar[str] = "https://arxiv.org/abs/2205.12410"
    count: ClassVar[str] = (
        "bottlenecks: L (M (D H + H) + U (H D + D)), LoRA: Σ R (M I + U O); M = experts, U = 1 if the up-projections are shared, else M"
    )
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 3e-4
    output_folder: ClassVar[str] = "adapter"

    kind: Literal["adamix"] = "adamix"
    host: Annotated[
        Annotated[AdapterHost, Tag("adapter")] | Annotated[LoRAHost, Tag("lora")], Discriminator(_host_kind)
    ] = Field(AdapterHost(), description="What the experts are.")
    experts: int = Field(4, ge=1, description="How many there are at each place.")
    shares_up: bool = Field(True, description="Whether the experts of a place have one up-projection in common.")
    consistency: float = Field(
        1.0,
        ge=0,
        description="Weight w of the disagreement of two passes (the paper's code: 1 to classify, 100 to write); 0: one pass.",
    )
    layers: tuple[int, ...] | None = Field(
        None,
        description="Only in these transformer layers, counted from 0 (an encoder's first, then its decoder's); unset: in all.",
    )

    @property
    def without_new_tokens(self) -> str | None:
        """None: as for the adapter that the experts average to."""
        return self.deployed.without_new_tokens

    @property
    def deployed(self) -> Houlsby | LoRA:
        """The method that the averaged experts are an adapter of."""
        if isinstance(self.host, AdapterHost):
            width, activation = self.host.width, self.host.activation
            return Houlsby(width=width, activation=activation, sublayers=("feedforward",), layers=self.layers)
        host = self.host
        return LoRA(rank=host.rank, alpha=host.alpha, dropout=host.dropout, targets=host.targets, layers=self.layers)

    def attach(self, model: LanguageModel, name: str, seed: int, *, fast: bool = True) -> AdaMixAttachment:
        """Fresh experts at every place of the host."""
        deployed = self.deployed
        if isinstance(deployed, Houlsby):
            layers = self._with_bottlenecks(deployed, model, name, seed)
        else:
            layers = self._with_updates(deployed, model, name, seed, fast)
        return AdaMixAttachment(deployed, model, name, layers, self.consistency)

    def continued(self, folder: Path) -> Method:
        """What reads the averaged experts: Houlsby or LoRA."""
        return self.deployed.continued(folder)

    def _with_bottlenecks(
        self, deployed: Houlsby, model: LanguageModel, name: str, seed: int
    ) -> dict[str, AdaptedLayer]:
        branches = {}
        for end in sublayer_ends(model, self.layers, deployed.sublayers):
            branches[end.place] = SerialBranch(self.bottlenecks(end, deployed, seed, model.device), end.factor)
        return with_branches(model, name, branches)

    def bottlenecks(self, end: End, deployed: Houlsby, seed: int, device: torch.device) -> ExpertBottlenecks:
        """Experts for a sublayer's end, their random start decided by the seed and the place's name."""
        generator = generator_of(end.place, seed)
        down_MHD = torch.stack([fresh_down(deployed.width, end.width, generator) for _ in range(self.experts)])
        up_UDH = torch.zeros(self._num_ups, end.width, deployed.width)
        return ExpertBottlenecks(trainable(down_MHD, device), trainable(up_UDH, device), deployed.activation, end.place)

    def _with_updates(
        self, deployed: LoRA, model: LanguageModel, name: str, seed: int, fast: bool
    ) -> dict[str, AdaptedLayer]:
        layers = adapted_layers(model, self._places(deployed, model))
        for place, layer in layers.items():
            assert isinstance(layer, AdaptedLinear)
            (outputs, inputs), device = layer.shape, layer.device
            generator = generator_of(place, seed)
            a_MRI = torch.stack([fresh_down(deployed.rank, inputs, generator) for _ in range(self.experts)])
            b_UOR = torch.zeros(self._num_ups, outputs, deployed.rank)
            scale = deployed.scale_of(place)
            branch = ExpertUpdates(
                trainable(a_MRI, device), trainable(b_UOR, device), scale, deployed.dropout, fast, place
            )
            layer.add(name, branch)
        return layers

    def _places(self, deployed: LoRA, model: LanguageModel) -> tuple[str, ...]:
        """The linear layers that the LoRA experts adapt. Raises RecipeError, naming the host's field."""
        try:
            places = deployed.places(model)
        except RecipeError as error:
            if error.field != "method.targets":
                raise
            mend = error.mend.replace("method.targets", "method.host.targets")
            raise type(error)(error.found, mend, field="method.host.targets") from error
        if model.anatomy.embedding in places:
            raise RecipeError(
                "The experts of AdaMix are updates of linear layers; an embedding has none.",
                "Leave the embedding out of method.host.targets.",
                field="method.host.targets",
            )
        return places

    @property
    def _num_ups(self) -> int:
        return 1 if self.shares_up else self.experts


class AdaMixAttachment(AdapterAttachment):
    """Experts at work; to files and merging, the adapter that they average to."""

    def __init__(
        self,
        deployed: Houlsby | LoRA,
        model: LanguageModel,
        name: str,
        layers: dict[str, AdaptedLayer],
        consistency: float,
    ) -> None:
        super().__init__(deployed, model, name, layers)
        self.consistency = consistency

    @property
    def is_random(self) -> bool:
        """Each pass draws its experts."""
        return True

    def loss_sum(self, forward: Forward, loss_of: Callable[[Outputs], Tensor]) -> Tensor:
        """The objective of one pass, and w times the summed disagreement with a second, of other draws."""
        first = forward(0)
        if self.consistency == 0:
            return loss_of(first)
        second = forward(1)
        heads = first.head.logits, second.head.logits
        divergence = divergence_recomputed if self.model.fast.head else divergence_reference
        divergence_N = divergence(first.hidden_ND, second.hidden_ND, *heads)
        return loss_of(first) + self.consistency * (divergence_N * first.targets.weight_N).sum()


class ExpertBottlenecks(AddedMap):
    """M downs and U ups, of which a training pass draws one each."""

    def __init__(self, down_MHD: nn.Parameter, up_UDH: nn.Parameter, activation: Activation, place: str) -> None:
        super().__init__()
        device = down_MHD.device
        self.down_MHD, self.down_MH = down_MHD, trainable(torch.zeros(down_MHD.shape[:2]), device)
        self.up_UDH, self.up_UD = up_UDH, trainable(torch.zeros(up_UDH.shape[:2]), device)
        self.activation: Activation = activation
        self.place = place

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """All experts, stacked."""
        return {
            "adapter_down.weight": self.down_MHD,
            "adapter_down.bias": self.down_MH,
            "adapter_up.weight": self.up_UDH,
            "adapter_up.bias": self.up_UD,
        }

    def file_tensors(self) -> dict[str, Tensor]:
        """Their means."""
        return {ending: tensor.detach().mean(0) for ending, tensor in self.tensors.items()}

    def forward(self, z_ND: Tensor) -> Tensor:
        """B_j σ(A_i z)."""
        down_HD, down_H = routed(self.place + ".down", self.down_MHD, self.down_MH)
        up_DH, up_D = routed(self.place + ".up", self.up_UDH, self.up_UD)
        return bottleneck(z_ND, down_HD, down_H, up_DH, up_D, self.activation)


class ExpertUpdates(LowRankBranch):
    """M A and U B, of which a training pass draws one each."""

    def __init__(
        self, a_MRI: nn.Parameter, b_UOR: nn.Parameter, scale: float, drop: float, fast: bool, place: str
    ) -> None:
        super().__init__()
        self.a_MRI, self.b_UOR = a_MRI, b_UOR
        self.scale, self.drop, self.fast, self.place = scale, drop, fast, place

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """All experts, stacked."""
        return {"lora_A.weight": self.a_MRI, "lora_B.weight": self.b_UOR}

    @property
    def draws(self) -> bool:
        """Whether there is dropout; experts are drawn for the whole batch and not for each document."""
        return self.drop > 0

    def file_tensors(self) -> dict[str, Tensor]:
        """Their means."""
        return {ending: tensor.detach().mean(0) for ending, tensor in self.tensors.items()}

    def low_rank(self, layer: AdaptedLinear, run: Run) -> Update:
        """s · drop(x) A_iᵀ B_jᵀ."""
        (a_RI,), (b_OR,) = routed(self.place + ".down", self.a_MRI), routed(self.place + ".up", self.b_UOR)
        return Update(run.start, run.stop, a_RI, b_OR, self.scale, layer.dropout(self.drop, run))

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + s mean(B) mean(A)."""
        return weight_OI + self.scale * (self.b_UOR.mean(0) @ self.a_MRI.mean(0)), bias_O


def routed(site: str, *stacks: Tensor) -> tuple[Tensor, ...]:
    """Of stacks along their first axis, the entry that this call draws for a site; in a call without draws, the mean."""
    draws = current_call().draws
    if draws is None:
        return tuple(stack.mean(0) for stack in stacks)
    chosen = choose(len(stacks[0]), draws.seed, draws.address, salt_of(site))
    return tuple(stack[chosen] for stack in stacks)
