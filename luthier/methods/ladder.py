"""Ladder side-tuning: a thin transformer beside the base climbs over the base's layers and reads each on its way.

Sung et al. 2022, https://arxiv.org/abs/2206.06522. Every width of the side network is the base's divided by ρ:

    s ← D₀(h₀);   for each kept layer ℓ:  g = σ(a_ℓ / τ),  s ← Side_ℓ(g s + (1 − g) D_ℓ(h_ℓ));   U(norm(s))

with h_ℓ what the base's layer gives, a = 0 (g = ½) and τ = 0.1 at the start. The paper's: that, and side weights cut out of
the base's. Ours: the side blocks are the base's own kind of block at the smaller width, with as many heads; the channels
kept are those with the largest |W| (the paper ranks by Fisher information); D and U begin as the choice of these channels;
and a last gate, h_L + γ (U(norm(s)) − h_L) with γ = 0, so that training begins at the base model.

In an encoder-decoder there is a side stack beside each, and the side decoder reads what the side encoder gives.

Merges: no. Deep backward: no. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: the side's blocks and norm + (S + 1)(D d + d) + (d D + D) + S + 1, for S kept layers and d = D / ρ; for the
encoder of an encoder-decoder another (S + 1)(D d + d) + S, with its own S.
Shapes: D the base's width, d the side's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedConfig,
    PreTrainedModel,
)

from luthier.errors import RecipeError
from luthier.methods.adapter_files import OwnForm
from luthier.methods.contract import Group, Kin, Traits
from luthier.methods.pruning import Kept, prune_layer, strongest_channels
from luthier.methods.side import SideMethod
from luthier.models.anatomy import Anatomy, LayerAnatomy
from luthier.models.call import calling, current_call
from luthier.models.fast_layers import use_fast_layers
from luthier.models.language_model import LanguageModel
from luthier.models.reading import read_anatomy
from luthier.models.sides import LaterLayers, Side
from luthier.models.taps import Taps

_WIDTHS = (
    "hidden_size", "n_embd", "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "head_dim",
    "d_model", "d_kv", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "dim", "hidden_dim",
)  # fmt: skip
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_decoder_layers", "decoder_layers")
_ENCODER_DEPTHS = ("num_layers", "encoder_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
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
        anatomy = model.anatomy
        kept, read = (_every(len(stack), self.every) for stack in (anatomy.answering, anatomy.encoding))
        config = small_config(model.hf.config, self.reduction, kept, len(read))
        small = _small_model(config, anatomy, generator)
        own = read_anatomy(small, anatomy.family)
        if self.start == "pruned":
            beside = (*(anatomy.encoding[index] for index in read), *(anatomy.answering[index] for index in kept))
            channels = Kept(strongest_channels(model, _width(config)), self.reduction)
            for layer, thin in zip(beside, own.layers, strict=True):
                prune_layer(model, layer, small, thin, channels)
        fast = model.fast
        use_fast_layers(small, own, norm=fast.norm, gated_mlp=fast.gated_mlp, linear=False)
        return LadderSide(small, own, (kept, read), strongest_channels(model, _width(config)), self.temperature, model)

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
        kept: tuple[tuple[int, ...], tuple[int, ...]],
        channels_d: Tensor,
        temperature: float,
        model: LanguageModel,
    ) -> None:
        """kept: which of the base's layers have a side block, in the last stack and in an encoder."""
        super().__init__()
        width = _width(model.hf.config)
        self.small = small
        self.downs = nn.ModuleList([_down(channels_d, width) for _ in range(len(kept[0]) + 1)])
        self.up = _up(channels_d, width)
        self.rungs = nn.Parameter(torch.zeros(len(kept[0])))
        self.gate = nn.Parameter(torch.zeros(()))
        self._anatomy, self._temperature = anatomy, temperature
        self._kept, self._read = kept
        self._num_layers = len(model.anatomy.answering)
        self._final_norm: Callable[[Tensor], Tensor] = model.final_norm
        self._train_blocks()
        self._climb(anatomy.answering, kept[0], self.downs, self.rungs)
        if anatomy.encoder is not None:
            self.source_downs = nn.ModuleList([_down(channels_d, width) for _ in range(len(kept[1]) + 1)])
            self.source_rungs = nn.Parameter(torch.zeros(len(kept[1])))
            self._climb(anatomy.encoding, kept[1], self.source_downs, self.source_rungs)

    def _train_blocks(self) -> None:
        """Let the side's blocks and final norms train, and nothing else of it."""
        self.small.requires_grad_(False)
        family, stacks = self._anatomy.family, (self._anatomy.encoder, self._anatomy.trunk)
        norms = tuple(f"{stack}.{family.final_norm}." for stack in stacks)
        for name, parameter in self.small.named_parameters():
            if self._anatomy.layer_of(name) is not None or name.startswith(norms):
                parameter.requires_grad_(True)

    def _climb(
        self, layers: tuple[LayerAnatomy, ...], kept: tuple[int, ...], downs: nn.ModuleList, rungs: nn.Parameter
    ) -> None:
        """Let each side block of a stack read the base's layer beside it."""
        for index, layer in enumerate(layers):
            enter = self._rung(index, kept[index] + 1, downs, rungs)
            self.small.get_submodule(layer.name).register_forward_pre_hook(enter, with_kwargs=True)

    @property
    def taps(self) -> Taps:
        """Of each stack what enters its first layer, and what the kept layers give, the last one among them."""
        own, source = ((0, *(index + 1 for index in kept)) if kept else () for kept in (self._kept, self._read))
        return Taps(own, source)

    def forward(self, tapped: Mapping[int, Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """h_L + γ (U(norm(s)) − h_L) of every token, through the base's final norm."""
        own = {name: value for name, value in inputs.items() if name not in ("input_ids", "past_key_values")}
        if self._anatomy.encoder is not None:
            own["encoder_hidden_states"] = self._source_states(self._anatomy.encoder, inputs)
        output = self.small.get_submodule(self._anatomy.trunk)(
            inputs_embeds=self._blank(tapped[0]), past_key_values=self._cache(inputs.get("past_key_values")), **own
        )
        last_BTD = tapped[self._num_layers]
        side_BTD = self.up(output.last_hidden_state)
        z_BTD = last_BTD.float() + self.gate * (side_BTD - last_BTD.float())
        return self._final_norm(z_BTD.to(last_BTD.dtype))

    def _blank(self, of_BT: Tensor) -> Tensor:
        """What stands for a side stack's input, (B, T, d): the first rung puts D₀(h₀) in its place."""
        return of_BT.new_zeros(*of_BT.shape[:2], self.up.in_features, dtype=torch.float32)

    def _source_states(self, encoder: str, inputs: Mapping[str, Any]) -> Tensor:
        """What the side encoder gives, (B, S, d); blank where a cache holds what the side decoder made of it."""
        blank_BSd = self._blank(inputs["encoder_attention_mask"])
        source = current_call().source
        if source is None:
            return blank_BSd
        with calling(replace(source, prefixes=(), gated=None)):
            output = self.small.get_submodule(encoder)(
                inputs_embeds=blank_BSd, attention_mask=inputs["encoder_attention_mask"]
            )
        states_BSd: Tensor = output.last_hidden_state
        return states_BSd

    def _cache(self, cache: Cache | None) -> Cache | None:
        """Where the side keeps its keys and values: behind the base's."""
        if isinstance(cache, EncoderDecoderCache):
            own, read = self._cache(cache.self_attention_cache), self._cache(cache.cross_attention_cache)
            return EncoderDecoderCache(own, read)
        assert cache is None or isinstance(cache, DynamicCache)
        return None if cache is None else LaterLayers(cache, self._num_layers)

    def _rung(self, index: int, number: int, downs: nn.ModuleList, rungs: nn.Parameter) -> Any:
        """What enters a side block: the gate's share of the side's own state, and the rest of the base layer's."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            tapped = current_call().tapped
            assert tapped is not None
            own_BTd = args[0] if args else kwargs["hidden_states"]
            state_BTd = own_BTd if index else downs[0](tapped[0].float())
            share = torch.sigmoid(rungs[index] / self._temperature)
            mixed_BTd = share * state_BTd + (1 - share) * downs[index + 1](tapped[number].float())
            return ((mixed_BTd, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": mixed_BTd})

        return enter


def _every(count: int, step: int) -> tuple[int, ...]:
    """Every so many of a stack's layers, the last one among them."""
    return tuple(range(count))[::-step][::-1]


def _width(config: PreTrainedConfig) -> int:
    return int(config.hidden_size)


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


def small_config(
    config: PreTrainedConfig, reduction: int, kept: tuple[int, ...], num_encoding: int = 0
) -> PreTrainedConfig:
    """The base's config with every width divided, and only the kept layers. Raises RecipeError if they do not divide."""
    values = config.to_dict()
    heads = next(values[key] for key in _HEADS if values.get(key))
    head_width = values.get("head_dim") or values.get("d_kv") or _width(config) // heads
    wide = {key: values[key] for key in _WIDTHS if isinstance(values.get(key), int)}
    if head_width % (reduction if num_encoding else 2 * reduction) or any(width % reduction for width in wide.values()):
        raise RecipeError(
            f"The model's widths ({', '.join(f'{key} {width}' for key, width in wide.items())}, "
            f"{head_width} a head) cannot all be divided by {reduction}{'' if num_encoding else ' with an even width a head'}.",
            "Choose another method.reduction.",
            field="method.reduction",
        )
    small = copy.deepcopy(config)
    changes: dict[str, Any] = {key: width // reduction for key, width in wide.items()}
    changes |= {key: len(kept) for key in _DEPTHS if key in values}
    changes |= {key: num_encoding for key in _ENCODER_DEPTHS if key in values and num_encoding}
    changes |= {key: 0.0 for key in _DROPOUTS if key in values}
    changes |= {"vocab_size": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    if values.get("word_embed_proj_dim"):
        changes["word_embed_proj_dim"] = _width(config) // reduction
    if values.get("layer_types"):
        changes["layer_types"] = [values["layer_types"][index] for index in kept]
    for key, value in changes.items():
        setattr(small, key, value)
    return small


def _small_model(config: PreTrainedConfig, anatomy: Anatomy, generator: torch.Generator) -> PreTrainedModel:
    """A model of that config in fp32, its random start from the generator; its embeddings give nothing."""
    auto: Any = {
        "decoder": AutoModelForCausalLM,
        "encoder": AutoModelForMaskedLM,
        "encoder-decoder": AutoModelForSeq2SeqLM,
    }[anatomy.family.kind]
    if anatomy.purpose == "classes":
        auto = AutoModelForTokenClassification if anatomy.reads_tokens else AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(generator.initial_seed())
        made: PreTrainedModel = auto.from_config(
            config, dtype=torch.float32, attn_implementation=config._attn_implementation
        )
    for module in made.modules():
        if isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight)
    made.train(False)
    return made
