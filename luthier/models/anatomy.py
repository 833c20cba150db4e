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
    """One transformer layer: dotted names from the root of the model."""

    index: int
    name: str
    attention: str
    feedforward: str
    linears: tuple[str, ...]
    norms: tuple[str, ...]


@dataclass(frozen=True)
class Anatomy:
    """A model's parts, as dotted names from its root, in the order of computation."""

    family: Family
    trunk: str
    embedding: str
    layers: tuple[LayerAnatomy, ...]
    final_norm: str | None  # a model whose layers end in norms may have none
    head: str
    is_head_tied: bool

    @property
    def linears(self) -> tuple[str, ...]:
        """Every linear layer of every transformer layer; neither embedding nor head."""
        return tuple(name for layer in self.layers for name in layer.linears)

    @property
    def norms(self) -> tuple[str, ...]:
        """Every norm of every transformer layer, and the final one."""
        final = () if self.final_norm is None else (self.final_norm,)
        return (*(name for layer in self.layers for name in layer.norms), *final)

    @property
    def hidden_norms(self) -> tuple[str, ...]:
        """The norms over the residual stream: all but those of queries and keys, which sit inside attention."""
        inside = tuple(layer.attention + "." for layer in self.layers)
        return tuple(name for name in self.norms if not name.startswith(inside))

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
    layers_name = _join(family.trunk, family.layers)
    embedding = model.get_submodule(_join(family.trunk, family.embedding))
    head = cast(nn.Module, model.get_output_embeddings())  # type: ignore[no-untyped-call]
    final_norm = _join(family.trunk, family.final_norm)
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
            )
        )
    return Anatomy(
        family=family,
        trunk=family.trunk,
        embedding=_join(family.trunk, family.embedding),
        layers=tuple(layers),
        final_norm=final_norm if final_norm in dict(model.named_modules()) else None,
        head=next(name for name, module in model.named_modules() if module is head),
        is_head_tied=embedding.get_parameter("weight") is head.get_parameter("weight"),
    )


def find_targets(anatomy: Anatomy, targets: str | tuple[str, ...], layers: tuple[int, ...] | None) -> tuple[str, ...]:
    """The linear layers that a method adapts: `all-linear`, or those whose dotted name ends in one of `targets`.

    The embedding and the head are found only by name. Raises as `find_among`.
    """
    if targets == "all-linear":
        return find_among(anatomy, anatomy.linears, None, layers, "all-linear")
    wanted = (targets,) if isinstance(targets, str) else targets
    return find_among(anatomy, (anatomy.embedding, *anatomy.linears, anatomy.head), wanted, layers, "all-linear")


def find_among(
    anatomy: Anatomy,
    modules: tuple[str, ...],
    targets: tuple[str, ...] | None,
    layers: tuple[int, ...] | None,
    default: str,
) -> tuple[str, ...]:
    """Those of some modules that a method adapts: whose dotted name ends in one of `targets`; None: all.

    Whole components are compared: `proj` does not match `q_proj`. Where `layers` are chosen, a module of no layer is
    found only by name. Raises TargetNotFound for a target that no module bears (`default` is what a recipe writes for
    all of them), and RecipeError for a layer index that does not exist and for an empty list.
    """
    for field, named in (("method.targets", targets), ("method.layers", layers)):
        if named is not None and len(named) == 0:
            raise RecipeError("The list is empty, so nothing would train.", "Name some, or leave it out.", field=field)
    check_layer_indices(anatomy, layers or ())
    indices = {name: anatomy.layer_of(name) for name in modules}
    candidates = tuple(
        name
        for name, index in indices.items()
        if layers is None or index in layers or (index is None and targets is not None)
    )
    if targets is None:
        return candidates
    for target in targets:
        if not any(ends_in(name, target) for name in candidates):
            raise TargetNotFound(
                f"No layer of the model that this method can adapt is called {target!r}.",
                f"Set method.targets to {default} or to some of: {', '.join(_endings(candidates))}.",
                field="method.targets",
            )
    return tuple(name for name in candidates if any(ends_in(name, target) for target in targets))


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
