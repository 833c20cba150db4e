"""Ladder side-tuning: a thin transformer beside the base climbs over the base's layers and reads each on its way.

Sung et al. 2022, https://arxiv.org/abs/2206.06522. Every width of the side network is the base's divided by ρ:

    s ← D₀(h₀);   for each kept layer ℓ:  g = σ(a_ℓ / τ),  s ← Side_ℓ(g s + (1 − g) D_ℓ(h_ℓ));   U(norm(s))

with h_ℓ what the base's layer gives, a = 0 (g = ½) and τ = 0.1 at the start. The paper's: that, and side weights cut out of
the base's. Ours: the side blocks are the base's own kind of block at the smaller width, with as many heads; the channels
kept are those with the largest |W| (the paper ranks by Fisher information); D and U begin as the choice of these channels;
and a last gate, h_L + γ (U(norm(s)) − h_L) with γ = 0, so that training begins at the base model.

Merges: no. Deep backward: no. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: the side's blocks and norm + (S + 1)(D d + d) + (d D + D) + S + 1, for S kept layers and d = D / ρ.
Shapes: D the base's width, d the side's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from luthier.errors import RecipeError
from luthier.methods.adapter_files import OwnForm
from luthier.methods.contract import Group, Kin, Traits
from luthier.methods.pruning import Kept, prune_layer, strongest_channels
from luthier.methods.side import SideMethod
from luthier.models.anatomy import Anatomy, read_anatomy
from luthier.models.call import current_call
from luthier.models.fast_layers import use_fast_layers
from luthier.models.language_model import LanguageModel
from luthier.models.sides import LaterLayers, Side

_WIDTHS = ("hidden_size", "n_embd", "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "head_dim")
_DEPTHS = ("num_hidden_layers", "n_layer")
_HEADS = ("num_attention_heads", "n_head")
_DROPOUTS = ("hidden_dropout", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout")


class Ladder(SideMethod):
    """A thin transformer beside the base."""

    family: ClassVar[Kin] = "additive"
    paper: ClassVar[str] = "https://arxiv.org/abs/2206.06522"
    count: ClassVar[str] = "side blocks and norm + (S + 1)(D d + d) + (d D + D) + S + 1, with d = D / reduction"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=False, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 3e-3
    form: ClassVar[OwnForm] = OwnForm("ladder")
    free_fields: ClassVar[frozenset[str]] = frozenset()

    kind: Literal["ladder"] = "ladder"
    reduction: int = Field(8, ge=2, description="What the base's widths are divided by.")
    every: int = Field(1, ge=1, description="A side block beside every so many layers; the last layer always has one.")
    temperature: float = Field(0.1, gt=0, allow_inf_nan=False, description="τ of the gates between rungs.")
    start: Literal["pruned", "random"] = Field(
        "pruned", description="Side blocks cut out of the base's, or with the random start of their architecture."
    )

    def side(self, model: LanguageModel, generator: torch.Generator) -> LadderSide:
        """The side network. Raises RecipeError if the base's widths do not divide."""
        kept = tuple(layer.index for layer in model.anatomy.layers)[:: -self.every][::-1]
        config = small_config(model.hf.config, self.reduction, kept)
        small = _small_model(config, model.anatomy.purpose, generator)
        anatomy = read_anatomy(small, model.anatomy.family)
        if self.start == "pruned":
            _cut_out(model, small, anatomy, kept, self.reduction)
        fast = model.fast
        use_fast_layers(small, anatomy, norm=fast.norm, gated_mlp=fast.gated_mlp, linear=False)
        channels = strongest_channels(model, _width(model.hf.config) // self.reduction)
        return LadderSide(small, anatomy, kept, channels, self.temperature, model)

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """Matrices, which decay; vectors and gates, which do not."""
        matrices = {name: tensor for name, tensor in tensors.items() if tensor.dim() > 1}
        vectors = {name: tensor for name, tensor in tensors.items() if tensor.dim() <= 1}
        return Group(matrices), Group(vectors, decays=False)


class LadderSide(Side):
    """The side network at work over one base."""

    def __init__(
        self,
        small: PreTrainedModel,
        anatomy: Anatomy,
        kept: tuple[int, ...],
        channels_d: Tensor,
        temperature: float,
        model: LanguageModel,
    ) -> None:
        super().__init__()
        self.small = small
        self.downs = nn.ModuleList([_down(channels_d, _width(model.hf.config)) for _ in range(len(kept) + 1)])
        self.up = _up(channels_d, _width(model.hf.config))
        self.rungs = nn.Parameter(torch.zeros(len(kept)))
        self.gate = nn.Parameter(torch.zeros(()))
        self._anatomy, self._kept, self._temperature = anatomy, kept, temperature
        self._num_layers = len(model.anatomy.layers)
        self._final_norm: Callable[[Tensor], Tensor] = model.final_norm
        small.requires_grad_(False)
        final = () if anatomy.final_norm is None else (anatomy.final_norm + ".",)
        for name, parameter in small.named_parameters():
            if anatomy.layer_of(name) is not None or name.startswith(final):
                parameter.requires_grad_(True)
        for index, layer in enumerate(anatomy.layers):
            small.get_submodule(layer.name).register_forward_pre_hook(self._rung(index), with_kwargs=True)

    @property
    def taps(self) -> tuple[int, ...]:
        """What enters the first layer, what the kept layers give, the last one among them."""
        return (0, *(index + 1 for index in self._kept))

    def forward(self, tapped: Mapping[int, Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """h_L + γ (U(norm(s)) − h_L) of every token, through the base's final norm."""
        cache = inputs.get("past_key_values")
        own = {name: value for name, value in inputs.items() if name not in ("input_ids", "past_key_values")}
        start_BTD = tapped[0]
        output = self.small.get_submodule(self._anatomy.trunk)(
            # what the trunk makes of its input is not used: the first rung begins at D₀(h₀)
            inputs_embeds=start_BTD.new_zeros(*start_BTD.shape[:2], self.up.in_features, dtype=torch.float32),
            past_key_values=None if cache is None else LaterLayers(cache, self._num_layers),
            **own,
        )
        last_BTD = tapped[self._num_layers]
        side_BTD = self.up(output.last_hidden_state)
        z_BTD = last_BTD.float() + self.gate * (side_BTD - last_BTD.float())
        return self._final_norm(z_BTD.to(last_BTD.dtype))

    def _rung(self, index: int) -> Any:
        """What enters a side block: the gate's share of the side's own state, and the rest of the base layer's."""
        number = self._kept[index] + 1

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            tapped = current_call().tapped
            assert tapped is not None
            own_BTd = args[0] if args else kwargs["hidden_states"]
            state_BTd = own_BTd if index else self.downs[0](tapped[0].float())
            share = torch.sigmoid(self.rungs[index] / self._temperature)
            mixed_BTd = share * state_BTd + (1 - share) * self.downs[index + 1](tapped[number].float())
            return ((mixed_BTd, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": mixed_BTd})

        return enter


def _width(config: PreTrainedConfig) -> int:
    values = config.to_dict()
    return int(values.get("hidden_size") or values["n_embd"])


def _down(channels_d: Tensor, width: int) -> nn.Linear:
    """D (d, D): the choice of the kept channels."""
    down = nn.Linear(width, len(channels_d))
    down.weight = nn.Parameter(nn.functional.one_hot(channels_d, width).float())
    down.bias = nn.Parameter(torch.zeros(len(channels_d)))
    return down


def _up(channels_d: Tensor, width: int) -> nn.Linear:
    """U (D, d): each kept channel back to its place."""
    up = nn.Linear(len(channels_d), width)
    up.weight = nn.Parameter(nn.functional.one_hot(channels_d, width).float().t().contiguous())
    up.bias = nn.Parameter(torch.zeros(width))
    return up


def small_config(config: PreTrainedConfig, reduction: int, kept: tuple[int, ...]) -> PreTrainedConfig:
    """The base's config with every width divided, and only the kept layers. Raises RecipeError if they do not divide."""
    values = config.to_dict()
    heads = next(values[key] for key in _HEADS if values.get(key))
    head_width = values.get("head_dim") or _width(config) // heads
    wide = {key: values[key] for key in _WIDTHS if isinstance(values.get(key), int)}
    if head_width % (2 * reduction) or any(width % reduction for width in wide.values()):
        raise RecipeError(
            f"The model's widths ({', '.join(f'{key} {width}' for key, width in wide.items())}, "
            f"{head_width} a head) cannot all be divided by {reduction} with an even width a head.",
            "Choose another method.reduction.",
            field="method.reduction",
        )
    small = copy.deepcopy(config)
    changes: dict[str, Any] = {key: width // reduction for key, width in wide.items()}
    changes |= {key: len(kept) for key in _DEPTHS if key in values}
    changes |= {key: 0.0 for key in _DROPOUTS if key in values}
    changes |= {"vocab_size": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    if values.get("word_embed_proj_dim"):
        changes["word_embed_proj_dim"] = _width(config) // reduction
    if values.get("layer_types"):
        changes["layer_types"] = [values["layer_types"][index] for index in kept]
    for key, value in changes.items():
        setattr(small, key, value)
    return small


def _small_model(
    config: PreTrainedConfig, purpose: Literal["words", "classes"], generator: torch.Generator
) -> PreTrainedModel:
    """A model of that config in fp32, its random start from the generator; its embeddings give nothing."""
    auto: Any = AutoModelForCausalLM if purpose == "words" else AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        made: PreTrainedModel = auto.from_config(
            config, dtype=torch.float32, attn_implementation=config._attn_implementation
        )
    for module in made.modules():
        if isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight)
    made.train(False)
    return made


def _cut_out(
    model: LanguageModel, small: PreTrainedModel, anatomy: Anatomy, kept: tuple[int, ...], reduction: int
) -> None:
    """Give every side block the strongest channels of the base's layer beside it."""
    channels_d = strongest_channels(model, _width(model.hf.config) // reduction)
    for index, own in zip(kept, anatomy.layers, strict=True):
        prune_layer(model, model.anatomy.layers[index], small, own, Kept(channels_d, reduction))
