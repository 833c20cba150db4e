"""A recipe's model, loaded: its device and number format chosen, its layers exchanged for fast ones, frozen."""

from __future__ import annotations

from collections.abc import Callable

import torch

from luthier.errors import RecipeError, ResourceError
from luthier.models.anatomy import read_anatomy
from luthier.models.attention import FAST, REFERENCE, register_attention
from luthier.models.families import Family, family_of
from luthier.models.fast_layers import use_fast_layers
from luthier.models.heads import ClassHead, read_class_weights, rest_pooler
from luthier.models.language_model import FastModel, Identity, LanguageModel
from luthier.models.settings import ModelSettings
from luthier.models.sources import ModelSource, fingerprint, locate, read_config, read_tokenizer, read_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device that a recipe names; `auto` is the first GPU, else the CPU. Raises ResourceError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(
            f"{name!r} is not a device.", "Use auto, cpu, cuda or cuda:N.", field="model.device"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            "This machine has no CUDA device that torch can use.", "Set model.device to cpu.", field="model.device"
        )
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(
            f"Luthier does not run on {device.type!r}.", "Use auto, cpu, cuda or cuda:N.", field="model.device"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format that a recipe names; `auto` is bf16 on a GPU that computes in it, else fp32."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return DTYPES[name]


def load_model(
    settings: ModelSettings,
    announce: Callable[[str], None],
    *,
    fast: FastModel | None = None,
    head: ClassHead | None = None,
) -> LanguageModel:
    """The base model of a recipe, frozen, without dropout, ready on its device.

    head: the classes that its head shall tell apart; None keeps the head over words.
    Raises the errors of `sources`, and RecipeError for an unknown family or one that has no such head.
    """
    source = locate(settings, announce)
    config = read_config(source)
    family = family_of(config.model_type)
    check_head(family, config.model_type, head is not None)
    if config.to_dict().get("use_bidirectional_attention"):
        raise RecipeError(
            f"{settings.name} reads its text in both directions, so it cannot learn to write.",
            "Choose a model that was made for writing.",
            field="model",
        )
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    fast = fast or FastModel()
    register_attention()
    implementation = (FAST if fast.attention else REFERENCE) if family.attends_by_interface else "sdpa"
    new_head: tuple[str, ...] = ()
    if head is None:
        hf = read_weights(source, config, dtype, attn_implementation=implementation)
    else:
        hf, new_head = read_class_weights(source, config, family, head, dtype, attn_implementation=implementation)
    rest_pooler(hf, family)
    anatomy = read_anatomy(hf, family)
    use_fast_layers(hf, anatomy, norm=fast.norm, gated_mlp=fast.gated_mlp, linear=fast.linear)
    hf.requires_grad_(False).train(False).to(device)
    tokenizer = read_tokenizer(source)
    num_parameters = sum(p.numel() for p in hf.parameters())
    announce(f"Model {settings.name}: {num_parameters / 1e6:.1f} M weights, {_short(dtype)}, on {device}.")
    if head is not None and new_head:
        announce(f"Its head for {', '.join(head.classes)} is new, drawn from seed {head.seed}.")
    return LanguageModel(hf, tokenizer, anatomy, identify(settings, source), fast, new_head=new_head)


def check_head(family: Family, model_type: str, for_classes: bool) -> None:
    """Raise RecipeError if models of a family cannot have a head over classes, or one over words."""
    if not for_classes and family.kind == "encoder":
        raise RecipeError(
            f"Models of type {model_type!r} read whole texts and cannot write.",
            "Set objective.kind to classification, or choose a model that writes.",
            field="objective.kind",
        )
    if for_classes and not family.class_head:
        raise RecipeError(
            f"Models of type {model_type!r} have no head that tells classes apart.",
            "Choose a model of another family, such as bert, roberta or llama.",
            field="objective.kind",
        )


def identify(settings: ModelSettings, source: ModelSource) -> Identity:
    """The name and hash of a model's weights."""
    return Identity(settings.name, fingerprint(source))


def _short(dtype: torch.dtype) -> str:
    return next(name for name, value in DTYPES.items() if value == dtype)
