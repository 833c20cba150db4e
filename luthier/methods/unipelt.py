"""UniPELT: LoRA, a prefix and bottleneck adapters together, each behind a gate that learns where it helps.

Mao et al. 2021, https://arxiv.org/abs/2110.07577. The parts are `lora` on queries and values, `prefix-tuning`, and
`pfeiffer` after the feed-forward; each has in every layer a gate g = σ(x w + c), computed of what enters its submodule:

    LoRA      y = x Wᵀ + c + g · s x Aᵀ Bᵀ,      x what enters the adapted linear layer
    adapter   h' = r + u + g · f(r + u),          g of r, the residual that enters the feed-forward
    prefix    (1 − g) A₀ + g A,                   g of what enters the attention, at the query's token

with A the query's attention as prefix tuning has it, and A₀ that which does not see the prefix. The paper's: the three parts
with gates of their inputs, averaged over the sequence, and the prefix's gate multiplied into its keys and values (that is
from memory). Ours, for models that read from left to right: every token has gates of its own, since an average would tell of
later tokens; the prefix's gate scales its share in the attention, so that g = 0 is attention without it (keys of zero would
still take a share); a gate for each linear layer that has a LoRA, where the paper has one a layer; w = 0 and c = 0 at the
start, where g = ½; and each part at its own default rate.

In an encoder-decoder the prefix has gates at all of its places (ours): in the encoder's attention, in the decoder's, and in the
cross-attention, there of what enters it at the decoder's token.

Merges: no. Deep backward: yes. Over 4 bits: yes. Identity at the start: no, because of the prefix.
Trainable numbers: the parts' Σ R (I + O) + 2 P V K E + L (2 D H + D + H), and gates Σ (I + 1) + (P + L) (D + 1).
Shapes: N tokens, L layers, P places of attention (L; in an encoder-decoder the encoder's L + 2 · the decoder's L), D width,
I inputs and O outputs of the layers with a LoRA, R rank, V virtual tokens, K key/value heads, E head width, H bottleneck.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from luthier.methods.adapter import linear_of
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import OwnForm
from luthier.methods.composed import ComposedMethod, of_part, with_part_defaults
from luthier.methods.contract import Group, Kin, Traits
from luthier.methods.gates import Gate, GatedAdding, GatedUpdate
from luthier.methods.lora import LoRA
from luthier.methods.lora_layers import LoRABranch
from luthier.methods.pfeiffer import Pfeiffer
from luthier.methods.prefix_tuning import PrefixTuning
from luthier.methods.sublayers import AddingBranch
from luthier.models.anatomy import Anatomy
from luthier.models.language_model import LanguageModel
from luthier.models.virtual_tokens import attention_modules

_DEFAULTS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 8, "targets": ("role:query", "role:value")},
    "prefix": {"num_virtual_tokens": 10},
    "adapter": {"width": 48},
}


class UniPELT(ComposedMethod):
    """A LoRA, a prefix and bottlenecks, each behind gates."""

    family: ClassVar[Kin] = "additive"
    paper: ClassVar[str] = "https://arxiv.org/abs/2110.07577"
    count: ClassVar[str] = "Σ R (I + O) + 2 P V K E + L (2 D H + D + H); gates Σ (I + 1) + (P + L) (D + 1)"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=False)
    default_lr: ClassVar[float] = 5e-4
    form: ClassVar[OwnForm] = OwnForm("unipelt")

    kind: Literal["unipelt"] = "unipelt"
    lora: LoRA = Field(
        LoRA(**_DEFAULTS["lora"]),
        description="The LoRA; rank 8 on queries and values where it does not say otherwise.",
    )
    prefix: PrefixTuning = Field(
        PrefixTuning(**_DEFAULTS["prefix"]),
        description="The prefix; 10 virtual tokens where it does not say how many.",
    )
    adapter: Pfeiffer = Field(
        Pfeiffer(**_DEFAULTS["adapter"]),
        description="The bottlenecks after the feed-forward; of width 48 where they do not say otherwise.",
    )

    @model_validator(mode="before")
    @classmethod
    def _parts_have_their_defaults(cls, values: Any) -> Any:
        return with_part_defaults(values, _DEFAULTS)

    def joined(
        self, model: LanguageModel, name: str, parts: Mapping[str, AdapterAttachment]
    ) -> dict[str, nn.Parameter]:
        """The gates, in front of what the parts do."""
        gates: dict[str, Gate] = {}
        for place, layer in parts["lora"].layers.items():
            with of_part("lora"):
                linear = linear_of(layer, self.kind)
            branch = linear.branch(name)
            assert isinstance(branch, LoRABranch)
            gates[f"lora.{place}"] = gate = Gate(linear.shape[1], model.device)
            linear.add(name, GatedUpdate(branch, gate))
        for place, layer in parts["adapter"].layers.items():
            branch = layer.branch(name)
            if isinstance(branch, AddingBranch):
                gates[f"adapter.{place}"] = gate = Gate(_width(model), model.device)
                layer.add(name, GatedAdding(branch, gate))
        of_prefix = [Gate(_width(model), model.device) for _ in attention_modules(model.anatomy)]
        gates |= {f"prefix.{place}": gate for place, gate in zip(_places(model.anatomy), of_prefix, strict=True)}

        def share(place: int, x_ND: Tensor) -> Tensor:
            g_N1: Tensor = of_prefix[place](x_ND)
            return g_N1.squeeze(-1)

        model.gate_prefix(name, share)
        return {f"gates.{of}.{end}": tensor for of, gate in gates.items() for end, tensor in gate.tensors.items()}

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """The gates, which do not decay."""
        return (Group(tensors, decays=False),)


def _places(anatomy: Anatomy) -> tuple[str, ...]:
    """What the prefix's gates are called by: the layer whose attention it is, or a cross-attention itself."""
    num_layers = len(anatomy.layers)
    return (*(layer.name for layer in anatomy.layers), *attention_modules(anatomy)[num_layers:])


def _width(model: LanguageModel) -> int:
    """D: the width of the layers."""
    return int(model.hf.config.hidden_size)
