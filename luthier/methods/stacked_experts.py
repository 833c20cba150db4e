"""LoRAs of experts as peft's files have them: one A and B for the experts of a layer together, as transformers has one weight.

peft (0.17 and later) calls such parameters `target_parameters`. Where both projections of a mixture are adapted, the tensors of
the first bear the name of the mixture and `base_layer`, those of the second the name of the mixture alone.

Shapes: E experts, R rank of each, I inputs, O outputs. A (E R, I) has one expert after another; in B (O, R E) the experts of the
first rank are followed by those of the second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods.patterns import match_pattern
from luthier.models.anatomy import Anatomy
from luthier.models.experts import PROJECTIONS

_A, _B = "lora_A.weight", "lora_B.weight"
_INNER = ".base_layer"
PATTERNS = {"rank_pattern": "rank", "alpha_pattern": "alpha"}
"""Settings by layer, and the setting that holds where they say nothing."""


@dataclass(frozen=True)
class Stack:
    """The experts' layers of one projection: `mixture` and `projection` name the parameter that holds their weights."""

    mixture: str
    projection: str
    layers: tuple[str, ...]

    @property
    def parameter(self) -> str:
        """What transformers calls the parameter."""
        return f"{self.mixture}.{self.projection}"


def stacks_of(experts: Iterable[str]) -> tuple[Stack, ...]:
    """These layers of experts by the parameters that hold their weights, in order."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in experts:
        mixture, _, projection = name.rsplit(".", 2)
        found.setdefault((mixture, projection), []).append(name)
    return tuple(Stack(*place, tuple(layers)) for place, layers in found.items())


def adapted_stacks(targets: Iterable[str], anatomy: Anatomy) -> tuple[Stack, ...]:
    """The stacks of which some layer is adapted."""
    chosen = set(targets)
    return tuple(stack for stack in stacks_of(anatomy.experts) if chosen & set(stack.layers))


def unstackable(stacks: Iterable[Stack], settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
    """Why the adapters of experts cannot lie as one for all of a layer; None if they can."""
    for stack in stacks:
        if not all(f"{layer}.{_A}" in tensors for layer in stack.layers):
            return f"only some of the experts of {stack.parameter} have an adapter"
        if len({tensors[f"{layer}.{_A}"].shape for layer in stack.layers}) > 1 or len(_alphas(stack, settings)) > 1:
            return f"the experts of {stack.parameter} have adapters of different ranks or strengths"
    return None


def _alphas(stack: Stack, settings: Mapping[str, Any]) -> set[float]:
    return {match_pattern(settings["alpha_pattern"], layer, settings["alpha"]) for layer in stack.layers}


def stacked(stacks: tuple[Stack, ...], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors with those of experts as peft has them."""
    found = dict(tensors)
    both = {stack.mixture for stack in stacks if stack.projection == PROJECTIONS[0]}
    both &= {stack.mixture for stack in stacks if stack.projection == PROJECTIONS[1]}
    for stack in stacks:
        is_inner = stack.mixture in both and stack.projection == PROJECTIONS[0]
        place = stack.mixture + (_INNER if is_inner else "")
        found[f"{place}.{_A}"] = torch.cat([found.pop(f"{layer}.{_A}") for layer in stack.layers])
        b_ORE = torch.stack([found.pop(f"{layer}.{_B}") for layer in stack.layers], dim=-1)
        found[f"{place}.{_B}"] = b_ORE.flatten(1)
    return found


def with_patterns(stacks: Iterable[Stack], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with patterns that say of the stacked parameters what they say of the experts."""
    changed = dict(settings)
    for field, default in PATTERNS.items():
        own = settings[field]
        wanted = {stack: match_pattern(own, stack.layers[0], settings[default]) for stack in stacks}
        more = {
            re.escape(stack.parameter): value
            for stack, value in wanted.items()
            if match_pattern(own, stack.parameter, settings[default]) != value
        }
        changed[field] = {**more, **own}
    return changed


def parameter_names(stacks: tuple[Stack, ...], anatomy: Anatomy) -> list[str]:
    """Short names of these parameters where those say exactly them, whole names where not."""
    known = stacks_of(anatomy.experts)
    endings = dict.fromkeys(_ending(stack) for stack in stacks)
    if {stack.parameter for stack in known if _ending(stack) in endings} == {stack.parameter for stack in stacks}:
        return list(endings)
    return [stack.parameter for stack in stacks]


def _ending(stack: Stack) -> str:
    return ".".join(stack.parameter.rsplit(".", 2)[1:])


def apart(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors and config with an A and B for each expert. Raises RecipeError for shapes that hold no whole ranks."""
    stacks = {name: stack for name in tensors if (stack := _stack_of(name, config)) is not None}
    changed = dict(config)
    found = {name: tensor for name, tensor in tensors.items() if name not in stacks}
    for name, (mixture, projection) in stacks.items():
        rank = match_pattern(config.get("rank_pattern") or {}, f"{mixture}.{projection}", config["r"])
        axis = 0 if name.endswith(_A) else 1
        if tensors[name].dim() != 2 or tensors[name].shape[axis] % rank:
            raise RecipeError(
                f"{name} has shape {tuple(tensors[name].shape)} in the adapter, which holds no whole number of experts of rank {rank}.",
                "Copy the file again, or save it with peft again.",
                file=path,
            )
        count = tensors[name].shape[axis] // rank
        each = tensors[name].chunk(count) if axis == 0 else tensors[name].unflatten(1, (rank, count)).unbind(-1)
        ending = _A if axis == 0 else _B
        found |= {f"{mixture}.{index}.{projection}.{ending}": part for index, part in enumerate(each)}
    for mixture, projection in dict.fromkeys(stacks.values()):
        for field, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
            own = changed.get(field) or {}
            wanted = match_pattern(own, f"{mixture}.{projection}", config[default])
            if match_pattern(own, f"{mixture}.0.{projection}", config[default]) != wanted:
                changed[field] = {rf"{re.escape(mixture)}\.\d+\.{projection}": wanted, **own}
    return found, changed


def _stack_of(name: str, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """The mixture and the projection that a file's tensor is of, if it is of experts."""
    ending = next((ending for ending in (_A, _B) if name.endswith(f".{ending}")), None)
    if ending is None:
        return None
    layer = name.removesuffix(f".{ending}")
    mixture = layer.removesuffix(_INNER)
    named = (str(parameter).rpartition(".") for parameter in config.get("target_parameters") or ())
    own = {
        projection
        for place, _, projection in named
        if projection in PROJECTIONS and (mixture == place or mixture.endswith(f".{place}"))
    }
    if not own:
        return None
    is_first = layer != mixture or own == {PROJECTIONS[0]}
    return mixture, PROJECTIONS[0] if is_first else PROJECTIONS[1]
