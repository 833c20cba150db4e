"""Reads the anatomy of a loaded model off its modules, by its family's entry."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

from torch import nn
from transformers import PreTrainedModel

from luthier.errors import RecipeError
from luthier.models.anatomy import Anatomy, LayerAnatomy, is_linear, is_norm
from luthier.models.experts import PROJECTIONS, SplitExperts
from luthier.models.families import Encoder, Family, HeadPart
from luthier.quantization.packed import QuantizedLinear


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


def read_anatomy(model: PreTrainedModel, family: Family) -> Anatomy:
    """The anatomy of a loaded model whose layers are not wrapped yet. Raises RecipeError for an embedding of several tables and a packed head."""
    encoder = family.encoder
    below = () if encoder is None else _read_stack(model, _of_encoder(family, encoder), encoder.trunk, 0)
    places = tuple(_join(trunk, family.embedding) for trunk in _trunks(family))
    embedding = places[0] if encoder is None else encoder.shared
    table = model.get_submodule(embedding).get_parameter("weight")
    if any(model.get_submodule(place).get_parameter("weight") is not table for place in places):
        raise RecipeError(
            "The model's encoder and decoder have embeddings of their own, which Luthier does not tell apart.",
            "Choose a model whose two stacks share one embedding.",
            field="model",
        )
    purpose, head_parts, reads_tokens = _head(model, family)
    reads_mask = purpose == "classes" and words_layer(model) is not None
    head, key = head_parts[-1].name, family.norm_first_key
    if isinstance(model.get_submodule(head), QuantizedLinear):
        raise RecipeError(
            f"The model's head {head} is held in few bits, but its weight is used whole.",
            "Name the unquantized model, or one that leaves the head as it is.",
            field="model",
        )
    return Anatomy(
        family=family,
        model_type=str(model.config.model_type),
        trunk=family.trunk,
        embedding=embedding,
        layers=(*below, *_read_stack(model, family, family.trunk, len(below))),
        final_norm=_present(model, family.trunk, family.final_norm),
        head=head,
        is_head_tied=table is model.get_submodule(head).get_parameter("weight"),
        embedding_places=tuple(dict.fromkeys((embedding, *places))),
        norms_first=family.norms_first if key is None else bool(model.config.to_dict()[key]),
        outer_norms=_outer_norms(model, family),
        encoder=None if encoder is None else encoder.trunk,
        purpose=purpose,
        head_parts=head_parts,
        reads_tokens=reads_tokens,
        reads_mask=reads_mask,
        reads_mean=purpose == "classes" and not (reads_mask or reads_tokens) and _pools_mean(model, family),
    )


def _pools_mean(model: PreTrainedModel, family: Family) -> bool:
    return family.pooling_key is not None and model.config.to_dict().get(family.pooling_key) == "mean"


def words_layer(model: PreTrainedModel) -> nn.Module | None:
    """The last layer of a model's head over words; None if it has no such head."""
    return cast("nn.Module | None", model.get_output_embeddings())  # type: ignore[no-untyped-call]


def _head(model: PreTrainedModel, family: Family) -> tuple[Literal["words", "classes"], tuple[HeadPart, ...], bool]:
    """What the model's head is for, its layers, and whether it tells classes of every token."""
    words = words_layer(model)
    if words is None:
        reads_tokens = type(model).__name__.endswith("ForTokenClassification")
        return "classes", family.tag_head if reads_tokens else family.class_head, reads_tokens
    names = {module: name for name, module in model.named_modules()}
    if family.mask_head and family.mask_head[-1].name in names.values():  # a layer for classes beside that for words
        return "classes", family.mask_head, False
    return "words", (*family.mask_head[:-1], HeadPart(names[words])), False


def _trunks(family: Family) -> tuple[str, ...]:
    """The stacks in the order of computation."""
    return (family.trunk,) if family.encoder is None else (family.encoder.trunk, family.trunk)


def _of_encoder(family: Family, encoder: Encoder) -> Family:
    """The family as its encoder's layers are built."""
    return replace(family, feedforward=encoder.feedforward, roles=encoder.roles, norms=encoder.norms, cross=None)


def _outer_norms(model: PreTrainedModel, family: Family) -> tuple[str, ...]:
    """The norms outside of the layers, but for the last stack's final one."""
    found = []
    for trunk in _trunks(family):
        found.append(_present(model, trunk, family.embedding_norm))
        found.append(_present(model, trunk, family.distance_norm))
        if trunk != family.trunk:
            found.append(_present(model, trunk, family.final_norm))
    return tuple(name for name in found if name is not None)


def _present(model: nn.Module, trunk: str, part: str | None) -> str | None:
    """The whole name of a part of a stack, if there is such a part."""
    name = None if part is None else _join(trunk, part)
    return name if name in dict(model.named_modules()) else None


def _read_stack(model: PreTrainedModel, family: Family, trunk: str, first: int) -> tuple[LayerAnatomy, ...]:
    """The layers of one stack, counted from `first`; the family says how they are built."""
    norms, cross = family.norms, family.cross
    stack_name = _join(trunk, family.layers)
    stack = model.get_submodule(stack_name)
    assert isinstance(stack, nn.ModuleList)
    layers = []
    for number, layer in enumerate(stack):
        name = f"{stack_name}.{number}"
        parts = [(_join(name, part), module) for part, module in layer.named_modules() if part]
        routers = tuple(_join(name, family.feedforward, part) for part in family.routers)
        linears = tuple(part for part, module in parts if is_linear(module))
        mixtures = tuple(f"{part}." for part, module in parts if isinstance(module, SplitExperts))
        layers.append(
            LayerAnatomy(
                index=first + number,
                name=name,
                attention=_join(name, family.attention),
                feedforward=_join(name, family.feedforward),
                linears=tuple(part for part in linears if part not in routers),
                experts=tuple(part for part in linears if part.startswith(mixtures)),
                routers=tuple(part for part in linears if part in routers),
                mixture=_mixture(family, linears, mixtures, name),
                norms=tuple(part for part, module in parts if is_norm(module)),
                roles=_roles(family, layer, name),
                attention_norm=_first_norm(norms.attention, layer, name),
                feedforward_norm=_first_norm(norms.feedforward, layer, name),
                attention_post_norm=_first_norm(norms.attention_post, layer, name),
                feedforward_post_norm=_first_norm(norms.feedforward_post, layer, name),
                stack="encoder" if family.kind == "encoder" or trunk != family.trunk else "decoder",
                cross_attention=None if cross is None else _join(name, cross.attention),
                cross_norm=None if cross is None else _join(name, cross.norm),
            )
        )
    return tuple(layers)


def _roles(family: Family, layer: nn.Module, name: str) -> dict[str, str]:
    roles, cross = family.roles, family.cross
    names = {"query": roles.query, "key": roles.key, "value": roles.value, "attention_out": roles.attention_out}
    if cross is not None:
        names |= {"cross_query": cross.query, "cross_key": cross.key, "cross_value": cross.value}
        names |= {"cross_attention_out": cross.out}
    found = {role: _join(name, part) for role, part in names.items()}
    up = _first_of((roles.up,) if isinstance(roles.up, str) else roles.up, layer, name)
    return found if up is None else {**found, "up": up, "down": _join(name, roles.down)}


def _mixture(
    family: Family, linears: tuple[str, ...], mixtures: tuple[str, ...], name: str
) -> dict[str, tuple[str, ...]]:
    """The layers of the experts that go up and down, with those of the expert that every token is sent to."""
    if not mixtures:
        return {}
    found = {}
    for role, projection, place in zip(("up", "down"), PROJECTIONS, (1, 2), strict=True):
        own = [part for part in linears if part.startswith(mixtures) and part.rpartition(".")[2] == projection]
        if family.shared_expert is not None and family.gated is not None:
            own.append(_join(name, family.feedforward, family.shared_expert, family.gated[place]))
        found[role] = tuple(own)
    return found


def _first_of(parts: tuple[str, ...], layer: nn.Module, name: str) -> str | None:
    """The whole name of the first of these parts that a layer has; None if it has none."""
    present = dict(layer.named_modules())
    return next((_join(name, part) for part in parts if part in present), None)


def _first_norm(parts: tuple[str, ...], layer: nn.Module, name: str) -> str | None:
    """The same of norms; what stands in the place of one and norms nothing (in ModernBERT's first layer) is none."""
    norms = tuple(part for part, module in layer.named_modules() if is_norm(module))
    return _first_of(tuple(part for part in parts if part in norms), layer, name)
