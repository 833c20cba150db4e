"""Heads that are not for writing: what one is for, and the weights that a base model has none for.

A head for classes reads the state of one token (the first of an encoder's text, the last of a decoder's) through the
layers that the family names; one for tags reads every token. What of them the model's files do not hold is drawn from the run's seed, each layer by its
name, as transformers draws linear layers: N(0, initializer_range), biases zero.

An encoder can have another: its head over words, which fills masks, with a new last layer for the classes beside the one
for words. It reads a mask, which whoever asks for this head must put before the text. And it can have the head over words
alone, for objectives that fill masks themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from luthier.errors import RecipeError
from luthier.models.anatomy import replace_module
from luthier.models.families import Family, HeadPart, check_fixed
from luthier.models.reading import words_layer
from luthier.models.sources import ModelSource, check_complete, read_folder
from luthier.models.streaming import Streaming
from luthier.ops.draws import salt_of

_STD = 0.02

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class ClassHead:
    """A head for these classes, in this order; `seed` decides those of its weights that are new.

    reads: the token of a whole text, every token, or a mask (through the layers of the head over words).
    is_number: whether its one logit is a number of its own, rather than the share of a class.
    """

    classes: tuple[str, ...]
    seed: int = 0
    reads: Literal["text", "tokens", "mask"] = "text"
    is_number: bool = False

    @property
    def reads_mask(self) -> bool:
        """Whether it reads a mask."""
        return self.reads == "mask"

    def layers(self, family: Family) -> tuple[HeadPart, ...]:
        """Its layers in a model of that family; none where such a head has no place there."""
        return {"text": family.class_head, "tokens": family.tag_head, "mask": family.mask_head}[self.reads]


@dataclass(frozen=True)
class WordsHead:
    """An encoder's head over words, which fills masks; other models have the head that they write with.

    is_read: whether anything is asked of it, so that it must be in the model's files.
    """

    is_read: bool = True


Head = ClassHead | WordsHead


def is_read(head: Head | None) -> bool:
    """Whether what is learned is told by the head, so that it may train."""
    return not isinstance(head, WordsHead) or head.is_read


def classes_of(config: PreTrainedConfig) -> tuple[str, ...]:
    """The classes that a model's config names, in the order of their logits."""
    names = {int(index): name for index, name in (config.id2label or {}).items()}
    return tuple(names[index] for index in sorted(names))


def name_classes(config: PreTrainedConfig, head: ClassHead) -> None:
    """Have a config name a head's classes."""
    config.id2label = dict(enumerate(head.classes))
    config.label2id = {name: index for index, name in enumerate(head.classes)}
    config.problem_type = "regression" if head.is_number else "single_label_classification"


def read_class_weights(
    source: ModelSource,
    config: PreTrainedConfig,
    family: Family,
    head: ClassHead,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    streaming: Streaming | None = None,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model with a head for classes, and the names of the head's layers that are to be trained because it is new.

    Layers that the files lack, or hold for other classes, are drawn. Heads for other tasks in the files are left out.
    Raises as `sources.read_weights`, and RecipeError for a .gguf file, and where the head is to read a mask and there is none
    that does.
    """
    if source.gguf is not None:
        raise RecipeError(
            f"{source.name} is a .gguf file, which has no place for a head of classes.",
            "Use the model as a transformers folder.",
            field="model",
        )
    is_its_own = classes_of(config) == head.classes
    config = copy.deepcopy(config)
    name_classes(config, head)
    if head.reads_mask:
        model = _read_with_words(source, config, family, dtype, attn_implementation, streaming)
        add_class_layer(model, family, len(head.classes))
        new = (family.mask_head[-1].name,)
        draw_head(model, new, head.seed)
        return model, new
    auto: Any = AutoModelForTokenClassification if head.reads == "tokens" else AutoModelForSequenceClassification
    model, report = read_folder(auto, source, config, dtype, attn_implementation, streaming)
    layers = tuple(part.name for part in head.layers(family))
    absent = {layer for layer in layers if any(_is_of_any((layer,), key) for key in _absent(report))}
    absent |= set() if is_its_own else {layers[-1]}
    _check_beside(layers, source, family, report)
    linears = tuple(part.name for part in head.layers(family) if part.is_linear)  # norms that are new begin as any norm
    draw_head(model, tuple(layer for layer in linears if layer in absent), head.seed)
    return model, new_layers(family, head, absent)


def _read_with_words(
    source: ModelSource,
    config: PreTrainedConfig,
    family: Family,
    dtype: torch.dtype,
    attn_implementation: str | None,
    streaming: Streaming | None,
) -> PreTrainedModel:
    """The model with its head over words, for classes read off masks. Raises RecipeError if its files lack that head."""
    model, lacking = _read_masked(source, config, family, dtype, attn_implementation, streaming)
    if lacking:
        raise RecipeError(
            f"{source.name} was saved without its head over words, which the method reads classes off: it lacks {lacking}.",
            "Choose the encoder as it was pretrained, with its head for masked words; or set method.kind to prompt-tuning.",
            field="model",
        )
    return model


def read_mask_weights(
    source: ModelSource,
    config: PreTrainedConfig,
    family: Family,
    head: WordsHead,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    streaming: Streaming | None = None,
) -> PreTrainedModel:
    """An encoder with its head over words. Raises as `sources.read_weights`, and RecipeError if its files lack that head."""
    model, lacking = _read_masked(source, config, family, dtype, attn_implementation, streaming)
    if lacking and head.is_read:
        raise RecipeError(
            f"{source.name} was saved without its head over words, which fills masks: it lacks {lacking}.",
            "Choose the encoder as it was pretrained, with its head for masked words.",
            field="model",
        )
    return model


def _read_masked(
    source: ModelSource,
    config: PreTrainedConfig,
    family: Family,
    dtype: torch.dtype,
    attn_implementation: str | None,
    streaming: Streaming | None,
) -> tuple[PreTrainedModel, str]:
    """An encoder with its head over words, and what its files lack of that head, in words; empty where it is whole."""
    check_fixed(config.to_dict(), family.mask_fixed)
    model, report = read_folder(AutoModelForMaskedLM, source, config, dtype, attn_implementation, streaming)
    whole = _words_head(model, family)
    lacking = sorted(_name(key) for key in _absent(report) if _is_of_any(whole, key))
    _check_beside(whole, source, family, report)
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    return model, f"{', '.join(lacking[:3])}{more}"


def _words_head(model: PreTrainedModel, family: Family) -> tuple[str, ...]:
    """Where a model keeps the layers of its head over words: the first components of their names."""
    words = next(name for name, module in model.named_modules() if module is words_layer(model))
    names = (*(part.name for part in family.mask_head[:-1]), words)
    return tuple(dict.fromkeys(name.partition(".")[0] for name in names))


def add_class_layer(model: PreTrainedModel, family: Family, num_classes: int) -> None:
    """Give a head over words its last layer for classes, beside the one for words; its numbers are yet to be drawn."""
    words = words_layer(model)
    assert isinstance(words, nn.Linear)
    layer = nn.Linear(words.in_features, num_classes, device="meta", dtype=words.weight.dtype)
    layer.weight = nn.Parameter(torch.empty(num_classes, words.in_features, dtype=words.weight.dtype))
    layer.bias = nn.Parameter(torch.empty(num_classes, dtype=words.weight.dtype))
    replace_module(model, family.mask_head[-1].name, layer)


def new_layers(family: Family, head: ClassHead, absent: set[str]) -> tuple[str, ...]:
    """The linear layers of a head that train, given those that are new: with these, all beside them outside of the trunk."""
    outside = {name.partition(".")[0] for name in absent} - {family.trunk.partition(".")[0]}
    names = (part.name for part in head.layers(family) if part.is_linear)
    return tuple(name for name in names if name in absent or name.partition(".")[0] in outside)


def _check_beside(layers: tuple[str, ...], source: ModelSource, family: Family, report: dict[str, Any]) -> None:
    """Raise DataError if what is not of these layers of the head does not fit, but for the heads of other tasks."""
    rest = {kind: [key for key in keys if not _is_of_any(layers, key)] for kind, keys in report.items()}
    # what is no part of the layers belongs to the heads of other tasks
    rest["unexpected_keys"] = [key for key in rest.get("unexpected_keys", ()) if f"{family.layers}." in key]
    check_complete(source.folder, rest)


def _absent(report: dict[str, Any]) -> list[Any]:
    """What the model has and the files do not, or in another shape."""
    return [*report.get("missing_keys", ()), *report.get("mismatched_keys", ())]


def _name(key: Any) -> str:
    """The parameter that an entry of a loading report is about."""
    return str(key[0] if isinstance(key, tuple) else key)


def _is_of_any(layers: tuple[str, ...], key: Any) -> bool:
    """Whether an entry of a loading report is about a parameter of one of these layers."""
    return _name(key).startswith(tuple(layer + "." for layer in layers))


@torch.no_grad()
def draw_head(model: PreTrainedModel, names: tuple[str, ...], seed: int) -> None:
    """Give linear layers of the head their random start, each by its name."""
    std = float(model.config.to_dict().get("initializer_range") or _STD)
    for name in names:
        generator = torch.Generator().manual_seed((salt_of(name) ^ seed) & (2**63 - 1))
        for key, tensor in model.get_submodule(name).named_parameters():
            draw = torch.randn(tensor.shape, generator=generator) * std
            tensor.copy_(draw if key == "weight" else torch.zeros_like(draw))


class RestingPooler(nn.Module):
    """A pooler that keeps its layers and computes nothing within the trunk: the head runs them, at the pooled tokens."""

    def __init__(self, pooler: nn.Module) -> None:
        super().__init__()
        for name, layer in pooler.named_children():
            self.add_module(name, layer)

    def forward(self, hidden_BTD: Tensor) -> Any:
        """Nothing."""
        return None


def rest_pooler(model: PreTrainedModel, family: Family) -> None:
    """Let the pooler of a trunk that has one rest."""
    name = f"{family.trunk}.{family.pooler}"
    if family.pooler is not None and name in dict(model.named_modules()):
        replace_module(model, name, RestingPooler(model.get_submodule(name)))
