"""The parts of a language model by their roles, whatever its architecture calls them.

Methods, the planner and quantization work on these names; modules are looked up by name, so that the view stays true
when a layer is wrapped. An encoder-decoder has its layers in the order of computation: those of the encoder are counted
from 0, and those of the decoder go on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from luthier.errors import RecipeError, TargetNotFound
from luthier.models.families import Family, HeadPart
from luthier.quantization.packed import QuantizedLinear

MIXTURE_END = "end"
"""What a mixture of experts has where its output leaves it."""

ROLE = "role:"
"""What begins a target that names what layers do rather than how they are called."""


@dataclass(frozen=True)
class LayerAnatomy:
    """One transformer layer: dotted names from the root of the model.

    linears: its linear layers but for routers. experts: those of them that belong to the experts of a mixture (`SplitExperts`).
    routers: linear layers that say how much of an expert a token gets. roles: its linear layers by what they do.
    mixture: in a mixture of experts, the layers of all of them that go up and down. attention_norm, feedforward_norm: the norms that read the residual stream
    before attention and feed-forward (or, with `Anatomy.norms_first` false, after them); None where there is none.
    attention_post_norm, feedforward_post_norm: norms between what they give and the residual sum.
    stack: which stack of an encoder-decoder it is in. cross_attention, cross_norm: where a decoder's layer reads the
    encoder's states, between its attention and its feed-forward, and the norm there; its roles begin with `cross_`.
    """

    index: int
    name: str
    attention: str
    feedforward: str
    linears: tuple[str, ...]
    norms: tuple[str, ...]
    roles: Mapping[str, str]
    attention_norm: str | None
    feedforward_norm: str | None
    attention_post_norm: str | None
    feedforward_post_norm: str | None
    stack: Literal["encoder", "decoder"] = "decoder"
    cross_attention: str | None = None
    cross_norm: str | None = None
    experts: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()
    mixture: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def attention_out(self) -> str:
        """The linear layer that ends the attention."""
        return self.roles["attention_out"]

    @property
    def feedforward_end(self) -> str:
        """Where what the feed-forward gives leaves it: its last linear layer, or the end of a mixture of experts."""
        return self.roles.get("down") or f"{self.feedforward}.{MIXTURE_END}"

    @property
    def down(self) -> str:
        """The linear layer that ends the feed-forward. Raises RecipeError for a mixture of experts, which has many."""
        if "down" not in self.roles:
            raise RecipeError(
                "The model's feed-forward layers are mixtures of experts, at whose end no one linear layer stands.",
                "Choose a method that needs none, such as lora.",
                field="method.kind",
            )
        return self.roles["down"]


@dataclass(frozen=True)
class Anatomy:
    """A model's parts, as dotted names from its root, in the order of computation.

    model_type: what transformers calls the architecture; a family may have several.
    norms_first: whether a layer's norms come before attention and feed-forward; else they follow the residual sums.
    outer_norms: those of what enters the first layer of a stack, and an encoder's final one before a decoder.
    encoder: in an encoder-decoder, the stack that reads the source; `trunk` is then the decoder.
    embedding_places: under which names the model keeps the embedding.
    purpose: what the head gives logits of, the words of the vocabulary or classes of whole texts. head: its last linear
    layer. head_parts: all of its layers, from the hidden state on. reads_tokens: whether classes are told of every token.
    reads_mask: whether it reads classes off a masked token, by layers of the head over words. reads_mean: whether it reads
    the mean of a text's tokens.
    """

    family: Family
    model_type: str
    trunk: str
    embedding: str
    layers: tuple[LayerAnatomy, ...]
    final_norm: str | None  # a model whose layers end in norms may have none
    head: str
    is_head_tied: bool
    embedding_places: tuple[str, ...]
    norms_first: bool = True
    outer_norms: tuple[str, ...] = ()
    encoder: str | None = None
    purpose: Literal["words", "classes"] = "words"
    head_parts: tuple[HeadPart, ...] = ()
    reads_tokens: bool = False
    reads_mask: bool = False
    reads_mean: bool = False

    @property
    def head_linears(self) -> tuple[str, ...]:
        """The linear layers of the head."""
        return tuple(part.name for part in self.head_parts if part.is_linear)

    @property
    def answering(self) -> tuple[LayerAnatomy, ...]:
        """The layers whose states the head reads: all of them, or a decoder's where there is an encoder too."""
        return tuple(layer for layer in self.layers if layer.stack == self.layers[-1].stack)

    @property
    def encoding(self) -> tuple[LayerAnatomy, ...]:
        """The layers of the encoder of an encoder-decoder; none in other models."""
        return self.layers[: -len(self.answering)]

    @property
    def source_readers(self) -> frozenset[str]:
        """The linear layers of a decoder that read the encoder's states: those that give a cross-attention its keys and values."""
        return frozenset((*self.of_role("cross_key"), *self.of_role("cross_value")))

    @property
    def linears(self) -> tuple[str, ...]:
        """Every linear layer of every transformer layer but for routers; neither embedding nor head."""
        return tuple(name for layer in self.layers for name in layer.linears)

    @property
    def experts(self) -> tuple[str, ...]:
        """The linear layers of the experts of every mixture."""
        return tuple(name for layer in self.layers for name in layer.experts)

    @property
    def routers(self) -> tuple[str, ...]:
        """The linear layers that say how much of an expert a token gets."""
        return tuple(name for layer in self.layers for name in layer.routers)

    def of_role(self, role: str) -> tuple[str, ...]:
        """The linear layers of that role, in order; none if there is no such role. `key` is that of every attention, `up` of every expert."""
        roles = (role, f"cross_{role}")
        found: list[str] = []
        for layer in self.layers:
            found += (name for own, name in layer.roles.items() if own in roles)
            found += layer.mixture.get(role, ())
        return tuple(found)

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role that some linear layer has."""
        return tuple(dict.fromkeys(role for layer in self.layers for role in (*layer.roles, *layer.mixture)))

    @property
    def norms(self) -> tuple[str, ...]:
        """Every norm: those outside of the transformer layers, those of each, and the final one."""
        final = () if self.final_norm is None else (self.final_norm,)
        return (*self.outer_norms, *(name for layer in self.layers for name in layer.norms), *final)

    @property
    def hidden_norms(self) -> tuple[str, ...]:
        """The norms over the residual stream: all but those of queries and keys, which sit inside attention."""
        inside = tuple(layer.attention + "." for layer in self.layers)
        return tuple(name for name in self.norms if not name.startswith(inside))

    def layer_of(self, name: str) -> int | None:
        """The index of the layer that holds a module or parameter; None for what is outside of the layers."""
        for layer in self.layers:
            if name.startswith(layer.name + "."):
                return layer.index
        return None

    def lowest_layer(self, names: Iterable[str]) -> int | None:
        """The first layer that needs a backward pass if these modules or parameters train; None if even the embedding does.

        An encoder's final norm is read by the decoder's first layer.
        """
        reached = [len(self.layers)]
        for name in names:
            index = self.layer_of(name)
            head = (part.name for part in self.head_parts)
            outside = tuple(place + "." for place in (*head, self.final_norm) if place is not None)
            if index is not None:
                reached.append(index)
            elif self.encoder is not None and f"{name}.".startswith(f"{self.encoder}.{self.family.final_norm}."):
                reached.append(self.answering[0].index)
            elif not f"{name}.".startswith(outside):
                return None
        return min(reached)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map: `nn.Linear`, GPT-2's `Conv1D` with its transposed weight, or one over a packed weight."""
    return isinstance(module, nn.Linear | Conv1D | QuantizedLinear)


def weight_of(linear: nn.Module) -> Tensor:
    """A linear layer's weight as (O, I), whatever the layer stores; a packed one is unpacked into memory of its own."""
    if isinstance(linear, QuantizedLinear):
        return linear.dense()
    weight = linear.get_parameter("weight")
    return weight.t() if isinstance(linear, Conv1D) else weight


def is_transposed(linear: nn.Module) -> bool:
    """Whether files have a linear layer's weight as (I, O)."""
    return linear.is_transposed if isinstance(linear, QuantizedLinear) else isinstance(linear, Conv1D)


def shape_of(linear: nn.Module) -> tuple[int, int]:
    """A linear layer's (O, I)."""
    if isinstance(linear, QuantizedLinear):
        return linear.packed.shape
    rows, columns = weight_of(linear).shape
    return rows, columns


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a layer norm, or one of the families' RMSNorms."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("RMSNorm", "T5LayerNorm"))


def chosen_layers(anatomy: Anatomy, layers: tuple[int, ...] | None) -> tuple[LayerAnatomy, ...]:
    """The layers of these indices; None: all. Raises RecipeError for an index that does not exist, or an empty list."""
    if layers is None:
        return anatomy.layers
    _check_not_empty(layers, "method.layers")
    check_layer_indices(anatomy, layers)
    return tuple(layer for layer in anatomy.layers if layer.index in layers)


def fused_outputs(config: PreTrainedConfig, family: Family, num_outputs: int) -> dict[str, Tensor]:
    """Which outputs of a fused projection are queries, which keys and which values: their indices, in order."""
    assert family.roles.fused is not None, "nothing to tell apart"
    num_keys = num_key_value_heads(config)
    num_heads = int(config.num_attention_heads)
    width = num_outputs // (num_heads + 2 * num_keys)
    num_groups = 1 if family.roles.fused == "blocks" else num_keys
    keys = num_keys // num_groups
    heads = torch.arange(num_heads + 2 * num_keys).view(num_groups, -1)
    of_role = dict(zip(("query", "key", "value"), heads.split([heads.shape[1] - 2 * keys, keys, keys], 1), strict=True))
    within = torch.arange(width)
    return {role: (part.reshape(-1, 1) * width + within).flatten() for role, part in of_role.items()}


def num_key_value_heads(config: PreTrainedConfig) -> int:
    """How many heads have keys and values of their own; Falcon says it in three ways, by its age."""
    values = config.to_dict()
    if values.get("new_decoder_architecture"):
        return int(values["num_kv_heads"])
    if values.get("multi_query"):
        return 1
    return int(values.get("num_key_value_heads") or config.num_attention_heads)


def find_targets(
    anatomy: Anatomy,
    targets: str | tuple[str, ...],
    layers: tuple[int, ...] | None,
    field: str = "method.targets",
) -> tuple[str, ...]:
    """The linear layers that a method adapts: `all-linear`, those whose dotted name ends in one of `targets`, or by role.

    The embedding, routers and the head are found only by name. `role:value` is the linear layer that gives the values,
    whatever the family calls it and whatever else it gives. field: what the recipe calls the targets. Raises as `find_among`.
    """
    if targets == "all-linear":
        return find_among(anatomy, anatomy.linears, None, layers, "all-linear", field)
    wanted = (targets,) if isinstance(targets, str) else targets
    modules = (anatomy.embedding, *anatomy.linears, *anatomy.routers, *anatomy.head_linears)
    return find_among(anatomy, modules, wanted, layers, "all-linear", field)


def find_among(
    anatomy: Anatomy,
    modules: tuple[str, ...],
    targets: tuple[str, ...] | None,
    layers: tuple[int, ...] | None,
    default: str,
    field: str = "method.targets",
) -> tuple[str, ...]:
    """Those of some modules that a method adapts: whose dotted name ends in one of `targets`; None: all.

    Whole components are compared: `proj` does not match `q_proj`. Where `layers` are chosen, a module of no layer is
    found only by name. Raises TargetNotFound for a target that no module bears (`default` is what a recipe writes for
    all of them), and RecipeError for a layer index that does not exist and for an empty list.
    """
    for place, named in ((field, targets), ("method.layers", layers)):
        if named is not None:
            _check_not_empty(named, place)
    check_layer_indices(anatomy, layers or ())
    indices = {name: anatomy.layer_of(name) for name in modules}
    candidates = tuple(
        name
        for name, index in indices.items()
        if layers is None or index in layers or (index is None and targets is not None)
    )
    if targets is None:
        return candidates
    found: set[str] = set()
    for target in targets:
        meant = _meant(anatomy, candidates, target)
        found |= meant
        if not meant:
            roles = [ROLE + role for role in anatomy.roles if set(anatomy.of_role(role)) <= set(modules)]
            known = [*_endings(candidates), *roles]
            raise TargetNotFound(
                f"No layer that {field} may name is called {target!r}.",
                f"Set {field} to {default} or to some of: {', '.join(known)}.",
                field=field,
            )
    return tuple(name for name in candidates if name in found)


def _check_not_empty(named: tuple[object, ...], field: str) -> None:
    if len(named) == 0:
        raise RecipeError("The list is empty, so nothing would train.", "Name some, or leave it out.", field=field)


def _meant(anatomy: Anatomy, names: tuple[str, ...], target: str) -> set[str]:
    """Those of some modules that a target names."""
    if target.startswith(ROLE):
        return set(names) & set(anatomy.of_role(target.removeprefix(ROLE)))
    return {name for name in names if ends_in(name, target)}


def check_layer_indices(anatomy: Anatomy, layers: tuple[int, ...]) -> None:
    """Raise RecipeError if one of these is no transformer layer."""
    count = len(anatomy.layers)
    for index in layers:
        if not 0 <= index < count:
            raise RecipeError(
                f"The model has {count} layers; there is no layer {index}.",
                f"Use indices from 0 to {count - 1}.",
                field="method.layers",
            )


def ends_in(name: str, target: str) -> bool:
    """Whether a dotted name ends in another, from a whole component on."""
    return name == target or name.endswith("." + target)


def _endings(names: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the model keeps the one called `name`."""
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent).register_module(last, module)


def config_number(config: PreTrainedConfig, key: str | None) -> float | None:
    """A number of a model's config, or None where the family has no such key or leaves it unset."""
    if key is None:
        return None
    value = config.to_dict().get(key)
    return None if value is None else float(value)
