"""(IA)³: scale keys, values and the hidden state of the feed-forward block by learned vectors.

Liu et al. 2022, https://arxiv.org/abs/2205.05638:  k' = l_k ⊙ k,  v' = l_v ⊙ v,  FFN(x) = (l_ff ⊙ act(…)) W_downᵀ.
So the outputs of the layers that give keys and values are scaled, their biases included, and the inputs of the
feed-forward block's last linear layer. In an encoder-decoder the cross-attention's keys and values are scaled too. Where
one layer gives queries too, those stay as they are (in the file their scale is 1). Other layers can be named; they are
scaled at their outputs. l starts at 1 and does not decay, which would pull it to 0.

Merges: yes. Deep backward: yes, to the lowest adapted layer. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: 2 Hkv dh + f in each layer (Hkv key heads of width dh, feed-forward width f); in general one for each
scaled output or input.
Shapes: N tokens, I inputs, O outputs, S scaled outputs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.methods.adapter import LayerMethod, adapted_layers, generator_of, linear_of, trainable
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import AdapterFile
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, Branch, LinearBranch
from luthier.methods.contract import Group, Kin, Traits
from luthier.methods.peft_files import PeftForm
from luthier.models.anatomy import find_targets, fused_outputs
from luthier.models.call import Run
from luthier.models.language_model import LanguageModel

_VECTOR = "ia3_l"


@dataclass(frozen=True)
class IA3Form(PeftForm):
    """peft's IA3, whose vectors show by their shape what they scale: (O, 1) outputs, (1, I) inputs."""

    def settings_of(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Which layers are scaled at their inputs; whether queries are scaled shows against the model."""
        at_input = {name for name, tensor in tensors.items() if tensor.dim() == 2 and tensor.shape[0] == 1}
        return {"feedforward": tuple(sorted(name.removesuffix(f".{_VECTOR}") for name in at_input))}

    def config_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The layers that are scaled at their inputs, as a regular expression: a list would be matched by endings."""
        at_input = tuple(settings["feedforward"])
        others = set(settings["targets"]) - set(at_input)
        endings = tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in at_input))
        if at_input and not any(name.rsplit(".", 1)[-1] in endings for name in others):
            return {"feedforward_modules": rf".*\.({'|'.join(map(re.escape, endings))})"}
        return {"feedforward_modules": "|".join(map(re.escape, at_input))}


class IA3(LayerMethod):
    """Learned scales of what frozen layers give or take."""

    family: ClassVar[Kin] = "additive"
    paper: ClassVar[str] = "https://arxiv.org/abs/2205.05638"
    count: ClassVar[str] = "2 Hkv dh + f in each layer: one for each scaled output or input"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 3e-3
    form: ClassVar[IA3Form] = IA3Form(
        title="(IA)³",
        peft_type="IA3",
        fields={},
        endings=(_VECTOR,),
        constants={"init_ia3_weights": True},
    )

    kind: Literal["ia3"] = "ia3"
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        ("role:key", "role:value", "role:down"),
        description="Layers to scale, by the last parts of their names, or by what they do: role:key, role:value and so on; all-linear is every linear layer but the head.",
    )
    feedforward: tuple[str, ...] | None = Field(
        None,
        description="Those of the targets that are scaled at their inputs rather than their outputs; unset: the last linear layers of the feed-forward blocks.",
    )
    queries: bool = Field(
        False, description="Where one layer gives queries, keys and values at once: whether its queries are scaled too."
    )

    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """A scale of 1 for every output, or for every input where `feedforward` names the layer."""
        linear = linear_of(layer, self.kind)
        (outputs, inputs), device = linear.shape, linear.device
        if self.feedforward is not None and layer.name in self.feedforward:
            return InputScaleBranch(trainable(torch.ones(inputs), device))
        return OutputScaleBranch(trainable(torch.ones(outputs), device), torch.arange(outputs, device=device), outputs)

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A branch at every place: the model says which are scaled at their inputs, and which outputs are queries."""
        settled = self.model_copy(update={"feedforward": self._at_input(model)})
        layers = adapted_layers(model, self.places(model))
        for target, layer in layers.items():
            branch = settled.branch(layer, generator_of(target, seed), fast)
            if isinstance(branch, OutputScaleBranch) and target in _fused(model) and not self.queries:
                outputs = fused_outputs(model.hf.config, model.anatomy.family, branch.num_outputs)
                branch = branch.only(torch.cat([outputs["key"], outputs["value"]]).sort().values)
            layer.add(name, branch)
        return AdapterAttachment(settled, model, name, layers)

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """One group that does not decay."""
        return (Group(tensors, decays=False),)

    def stated(self, model: LanguageModel) -> dict[str, Any]:
        """As for any adapter, with the layers that are scaled at their inputs by their whole names."""
        stated = super().stated(model)
        return {**stated, "feedforward": self._at_input(model)} if "feedforward" in stated else stated

    def understood(self, file: AdapterFile, model: LanguageModel) -> AdapterFile:
        """The queries of a fused layer are scaled if one of their scales is not 1."""
        scaled = self.queries
        for target in set(file.settings["targets"]) & set(_fused(model)) - set(file.settings["feedforward"]):
            vector = file.tensors[f"{target}.{_VECTOR}"]
            queries = fused_outputs(model.hf.config, model.anatomy.family, len(vector))["query"]
            scaled = scaled or bool((vector[queries] != 1).any())
        return replace(file, settings={**file.settings, "queries": scaled})

    def _at_input(self, model: LanguageModel) -> tuple[str, ...]:
        """The whole names of the targets that are scaled at their inputs, sorted."""
        chosen = self.feedforward
        if chosen is None:
            chosen = model.anatomy.of_role("down")
        elif chosen:
            chosen = find_targets(model.anatomy, chosen, None, "method.feedforward")
        return tuple(sorted(set(chosen) & set(self.places(model))))


def _fused(model: LanguageModel) -> tuple[str, ...]:
    """The layers that give queries, keys and values at once."""
    return () if model.anatomy.family.roles.fused is None else model.anatomy.of_role("query")


class OutputScaleBranch(LinearBranch):
    """l ⊙ (x Wᵀ + c), where l is 1 but at the outputs `rows_S`."""

    rows_S: Tensor

    def __init__(self, l_S: nn.Parameter, rows_S: Tensor, num_outputs: int) -> None:
        super().__init__()
        self.l_S = l_S
        self.num_outputs = num_outputs
        self.register_buffer("rows_S", rows_S, persistent=False)

    def only(self, rows_S: Tensor) -> OutputScaleBranch:
        """The same with a scale for these outputs only."""
        rows_S = rows_S.to(self.rows_S.device)
        return OutputScaleBranch(nn.Parameter(self.scale_O().detach()[rows_S]), rows_S, self.num_outputs)

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The scales that train."""
        return {_VECTOR: self.l_S}

    def file_tensors(self) -> dict[str, Tensor]:
        """The scale of every output, shape (O, 1)."""
        return {_VECTOR: self.scale_O().detach()[:, None]}

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over the scales that train."""
        self.l_S.copy_(tensors[_VECTOR][:, 0].to(self.l_S.device)[self.rows_S])

    def scale_O(self) -> Tensor:
        """The scale of every output."""
        return torch.ones(self.num_outputs, device=self.l_S.device).index_copy(0, self.rows_S, self.l_S)

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """The layer's output, scaled; in fp32, since bf16 knows no number between 0.996 and 1.008 but 1."""
        y_NO = layer.product(x_NI)
        return (y_NO * self.scale_O()).to(y_NO.dtype)

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """diag(l) W and l ⊙ c."""
        scale_O = self.scale_O()
        return weight_OI * scale_O[:, None], None if bias_O is None else bias_O * scale_O


class InputScaleBranch(LinearBranch):
    """(l ⊙ x) Wᵀ + c."""

    def __init__(self, l_I: nn.Parameter) -> None:
        super().__init__()
        self.l_I = l_I

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The scale of every input."""
        return {_VECTOR: self.l_I}

    def file_tensors(self) -> dict[str, Tensor]:
        """The scale of every input, shape (1, I)."""
        return {_VECTOR: self.l_I.detach()[None]}

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over the scales."""
        self.l_I.copy_(tensors[_VECTOR][0])

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """The layer's output for inputs that are scaled in fp32."""
        return layer.product((x_NI * self.l_I).to(x_NI.dtype))

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W diag(l)."""
        return weight_OI * self.l_I, bias_O
