"""The parts of a language model by their roles, whatever its architecture calls them.

Methods, the planner and quantization work on these names; modules are looked up by name, so that the view stays true
when a layer is wrapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.errors import RecipeError, TargetNotFound
from luthier.models.families import Family


@dataclass(frozen=True)
class LayerAnatomy:
    """One transformer layer: dotted names from the root of the model.

    attention_out, down: the linear layers that end its attention and its feed-forward. attention_norm, feedforward_norm:
    the norms that read the residual stream before them (or, with `Anatomy.norms_first` false, after them); None where
    there is none. attention_post_norm, feedforward_post_norm: norms between them and the residual sum.
    """

    index: int
    name: str
    attention: str
    feedforward: str
    linears: tuple[str, ...]
    norms: tuple[str, ...]
    attention_out: str
    down: str
    attention_norm: str | None
    feedforward_norm: str | None
    attention_post_norm: str | None
    feedforward_post_norm: str | None


@dataclass(frozen=True)
class Anatomy:
    """A model's parts, as dotted names from its root, in the order of computation.

    norms_first: whether a layer's norms come before attention and feed-forward; else they follow the residual sums.
    """

    family: Family
    trunk: str
    embedding: str
    layers: tuple[LayerAnatomy, ...]
    final_norm: str
    head: str
    is_head_tied: bool
    norms_first: bool = True

    @property
    def linears(self) -> tuple[str, ...]:
        """Every linear layer of every transformer layer; neither embedding nor head."""
        return tuple(name for layer in self.layers for name in layer.linears)

    def layer_of(self, name: str) -> int | None:
        """The index of the layer that holds a module or parameter; None for embedding, final norm and head."""
        for layer in self.layers:
            if name.startswith(layer.name + "."):
                return layer.index
        return None


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map: `nn.Linear`, or GPT-2's `Conv1D` with its transposed weight."""
    return isinstance(module, nn.Linear | Conv1D)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a layer norm, or one of the families' RMSNorms."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


def read_anatomy(model: PreTrainedModel, family: Family) -> Anatomy:
    """The anatomy of a loaded model whose layers are not wrapped yet."""
    layers = []
    roles = family.sublayers
    layers_name = _join(family.trunk, family.layers)
    embedding = model.get_submodule(_join(family.trunk, family.embedding))
    head = cast(nn.Module, model.get_output_embeddings())  # type: ignore[no-untyped-call]
    stack = model.get_submodule(layers_name)
    assert isinstance(stack, nn.ModuleList)
    for index, layer in enumerate(stack):
        name = f"{layers_name}.{index}"
        parts = [(_join(name, part), module) for part, module in layer.named_modules() if part]
        layers.append(
            LayerAnatomy(
                index=index,
                name=name,
                attention=_join(name, family.attention),
                feedforward=_join(name, family.feedforward),
                linears=tuple(part for part, module in parts if is_linear(module)),
                norms=tuple(part for part, module in parts if is_norm(module)),
                attention_out=_join(name, roles.attention_out),
                down=_join(name, roles.down),
                attention_norm=_first_of(roles.attention_norm, layer, name),
                feedforward_norm=_first_of(roles.feedforward_norm, layer, name),
                attention_post_norm=_first_of(roles.attention_post_norm, layer, name),
                feedforward_post_norm=_first_of(roles.feedforward_post_norm, layer, name),
            )
        )
    return Anatomy(
        family=family,
        trunk=family.trunk,
        embedding=_join(family.trunk, family.embedding),
        layers=tuple(layers),
        final_norm=_join(family.trunk, family.final_norm),
        head=next(name for name, module in model.named_modules() if module is head),
        is_head_tied=embedding.get_parameter("weight") is head.get_parameter("weight"),
        norms_first=family.norm_first_key is None or bool(model.config.to_dict()[family.norm_first_key]),
    )


def _first_of(parts: tuple[str, ...], layer: nn.Module, name: str) -> str | None:
    """The whole name of the first of these parts that a layer has; None if it has none."""
    present = dict(layer.named_children())
    return next((_join(name, part) for part in parts if part in present), None)


def chosen_layers(anatomy: Anatomy, layers: tuple[int, ...] | None) -> tuple[LayerAnatomy, ...]:
    """The layers of these indices; None: all. Raises RecipeError for an index that does not exist, or an empty list."""
    if layers is None:
        return anatomy.layers
    _check_not_empty(layers, "method.layers")
    count = len(anatomy.layers)
    for index in layers:
        if not 0 <= index < count:
            raise RecipeError(
                f"The model has {count} layers; there is no layer {index}.",
                f"Use indices from 0 to {count - 1}.",
                field="method.layers",
            )
    return tuple(layer for layer in anatomy.layers if layer.index in layers)


def find_targets(anatomy: Anatomy, targets: str | tuple[str, ...], layers: tuple[int, ...] | None) -> tuple[str, ...]:
    """The modules that a method adapts: `all-linear`, or those whose dotted name ends in one of `targets`.

    Whole components are compared: `proj` does not match `q_proj`. The embedding and the head are found only by name.
    Raises TargetNotFound for a target that no module bears, and RecipeError for a layer index that does not exist and
    for an empty list.
    """
    _check_not_empty(targets, "method.targets")
    chosen = tuple(name for layer in chosen_layers(anatomy, layers) for name in layer.linears)
    if targets == "all-linear":
        return chosen
    wanted = (targets,) if isinstance(targets, str) else targets
    candidates = (anatomy.embedding, *chosen, anatomy.head)
    for target in wanted:
        if not any(_ends_in(name, target) for name in candidates):
            raise TargetNotFound(
                f"No layer of the model is called {target!r}.",
                f"Set method.targets to all-linear or to some of: {', '.join(_endings(candidates))}.",
                field="method.targets",
            )
    return tuple(name for name in candidates if any(_ends_in(name, target) for target in wanted))


def _check_not_empty(named: str | tuple[object, ...], field: str) -> None:
    if len(named) == 0:
        raise RecipeError("The list is empty, so nothing would train.", "Name some, or leave it out.", field=field)


def _ends_in(name: str, target: str) -> bool:
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
