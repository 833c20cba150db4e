"""A recipe's model, loaded: its device and number format chosen, its layers exchanged for fast ones, frozen."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from luthier.errors import RecipeError, ResourceError
from luthier.models.anatomy import Anatomy, find_targets
from luthier.models.attention import implementation_of, register_attention
from luthier.models.experts import split_experts
from luthier.models.families import Family, check_fixed, family_of
from luthier.models.fast_layers import use_fast_layers
from luthier.models.fitting import fit_family
from luthier.models.gguf_packed import GGUFBlocks
from luthier.models.heads import ClassHead, Head, WordsHead, is_read, read_class_weights, read_mask_weights
from luthier.models.language_model import FastModel, Identity, LanguageModel
from luthier.models.new_tokens import grow
from luthier.models.reading import read_anatomy
from luthier.models.settings import ModelSettings
from luthier.models.sources import (
    ModelSource,
    check_complete,
    fingerprint,
    locate,
    read_answer_start,
    read_config,
    read_tokenizer,
    read_weights,
    stored_form_of,
    weight_files,
)
from luthier.models.streaming import Prepare, Prepared, Streaming, only_packed
from luthier.quantization.formats import COMPUTE, quantize
from luthier.quantization.packed import QuantizedLinear
from luthier.quantization.settings import QuantizationSettings
from luthier.quantization.stored import StoredForm

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Wishes:
    """What a method asks of a quantized base: which layers stay as they are, and what becomes of the full weights of the others.

    needs_weights: the kind of a method that makes no sense without the full weights.
    """

    keeps_full: Callable[[Anatomy], tuple[str, ...]] = lambda anatomy: ()
    prepare_weights: Callable[[Anatomy], Prepare] = lambda anatomy: only_packed
    needs_weights: str | None = None


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
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ResourceError(
            f"{name} is not there: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0.",
            "Set model.device to auto, or to one that is there.",
            field="model.device",
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
    head: Head | None = None,
    quantization: QuantizationSettings | None = None,
    wishes: Wishes | None = None,
    seed: int = 0,
) -> LanguageModel:
    """The base model of a recipe, frozen, without dropout, ready on its device.

    head: what its head shall be for; None keeps the one that it writes with. quantization: in what form its linear
    layers are held. wishes: what a method asks of that. seed: decides the weights of a new model, and the rows of tokens that
    are added. Raises the errors of `sources`, and RecipeError for an unknown family or one that has no such head.
    """
    source = locate(settings, announce, seed=seed)
    config = read_config(source)
    family = family_of(config.model_type)
    asked, head = head, check_head(family, config.model_type, head)
    _check_readable(source, config, family)
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    fast = fast or FastModel()
    register_attention()
    implementation = implementation_of(family, fast.attention)
    new_head: tuple[str, ...] = ()
    wishes = wishes or Wishes()
    blocks = _blocks(source, quantization, head, wishes)
    streaming = _streaming(source, family, quantization, wishes, blocks)
    if blocks is not None and streaming is not None:
        hf, report = blocks.model(config, dtype, implementation, streaming)
        check_complete(blocks.file, report)
    elif head is None:
        hf = read_weights(source, config, dtype, implementation, streaming)
    elif isinstance(head, WordsHead):
        hf = read_mask_weights(source, config, family, head, dtype, implementation, streaming)
    else:
        hf, new_head = read_class_weights(source, config, family, head, dtype, implementation, streaming)
    if family.encoder is not None and hf.generation_config is not None:
        hf.generation_config.decoder_start_token_id = read_answer_start(source, config)
    split_experts(hf)
    fit_family(hf, family)
    tokenizer = read_tokenizer(source)
    new_tokens = () if source.added is None else grow(hf, tokenizer, source.added)
    anatomy = read_anatomy(hf, family)
    use_fast_layers(hf, anatomy, norm=fast.norm, gated_mlp=fast.gated_mlp, linear=fast.linear)
    hf.requires_grad_(False).train(False).to(device)
    drawn = f", drawn from seed {source.draw.seed}" if source.draw is not None else ""
    announce(f"Model {settings.name}: {_weights(hf, dtype)}{drawn}, on {device}.")
    if isinstance(head, ClassHead) and new_head:
        announce(f"Its head for {', '.join(head.classes)} is new, drawn from seed {head.seed}.")
    if source.added is not None:
        announce(f"New tokens: {', '.join(source.added.tokens)}. Their rows begin near the mean of the others.")
    first = {} if streaming is None else {name: each.first for name, each in streaming.prepared.items() if each.first}
    return LanguageModel(
        hf,
        tokenizer,
        anatomy,
        identify(settings, source),
        fast,
        new_head=new_head,
        new_tokens=new_tokens,
        is_head_read=is_read(asked),
        prepared=first,
    )


def _check_readable(source: ModelSource, config: PreTrainedConfig, family: Family) -> None:
    """Raise RecipeError for a config that the family's entry does not describe, and for a model that is not read."""
    check_fixed(config.to_dict(), family.fixed)
    if config.to_dict().get("use_bidirectional_attention"):
        raise RecipeError(
            f"{source.name} reads its text in both directions, so it cannot learn to write.",
            "Choose a model that was made for writing.",
            field="model",
        )
    if family.encoder is not None and source.gguf is not None:
        raise RecipeError(
            f"{source.name} is an encoder-decoder in a GGUF file, which Luthier does not read.",
            "Use the model's safetensors folder.",
            field="model",
        )


def _blocks(
    source: ModelSource, quantization: QuantizationSettings | None, head: Head | None, wishes: Wishes
) -> GGUFBlocks | None:
    """A GGUF file's blocks, where they are to be used as they are.

    Raises RecipeError for a form of the base that does not go with where it comes from.
    """
    if source.gguf is not None and wishes.needs_weights is not None:
        raise _without_weights(source, wishes.needs_weights, "set quantization.kind to gguf")
    asks = quantization is not None and quantization.kind == "gguf"
    if asks and (source.gguf is None or head is not None):
        what = "no .gguf file" if source.gguf is None else "to get a head over classes, for which it must be unpacked"
        raise RecipeError(
            f"{source.name} is {what}.",
            "Set quantization.kind to nf4, or leave quantization out."
            if source.gguf is None
            else "Leave quantization out.",
            field="quantization.kind",
        )
    if source.gguf is None or quantization is None:
        return None
    if not asks:
        raise RecipeError(
            f"{source.name} is a .gguf file, whose weights are in few bits already.",
            "Set quantization.kind to gguf to use them as they are, leave quantization out to unpack them, or name the "
            "model's safetensors folder.",
            field="quantization",
        )
    return GGUFBlocks(source.gguf, COMPUTE[quantization.compute])


def _streaming(
    source: ModelSource,
    family: Family,
    quantization: QuantizationSettings | None,
    wishes: Wishes,
    blocks: GGUFBlocks | None,
) -> Streaming | None:
    """How layers become packed while they are read: those that the settings choose, or those that come so; None if none does.

    Raises RecipeError if the layers that the settings choose come so already.
    """
    stored = stored_form_of(source)
    if stored is not None and wishes.needs_weights is not None:
        raise _without_weights(source, wishes.needs_weights, "leave quantization out")
    if stored is not None and quantization is not None:
        raise RecipeError(
            f"{source.name} comes quantized already.",
            "Leave quantization out, or name the unquantized model.",
            field="quantization",
        )
    if stored is not None:
        files = weight_files(source.folder, source.name)
        _check_experts(source, stored, files)
        return Streaming(
            nothing_chosen,
            lambda name, tensors: Prepared(stored.read(name, tensors)),
            stored.endings,
            are_stacked=stored.are_stacked,
            files=files,
        )
    if quantization is None:
        return None

    prepare: Prepare = only_packed

    def choose(model: PreTrainedModel) -> tuple[str, ...]:
        nonlocal prepare
        anatomy = anatomy_apart(model, family)
        kept, prepare = wishes.keeps_full(anatomy), wishes.prepare_weights(anatomy)
        chosen = tuple(name for name in layers_to_quantize(anatomy, quantization) if name not in kept)
        if not chosen:
            raise RecipeError(
                "No layer is quantized: the method trains all that could be.",
                "Leave quantization out, or let the method train fewer layers.",
                field="quantization",
            )
        return chosen

    def pack(name: str, tensors: Mapping[str, Tensor]) -> Prepared:
        return prepare(name, tensors["weight"], lambda weight_OI: quantize(name, weight_OI, quantization))

    if blocks is not None:
        return Streaming(choose, blocks.pack, are_blocks=True)
    return Streaming(choose, pack, files=weight_files(source.folder, source.name))


def _without_weights(source: ModelSource, kind: str, with_lora: str) -> RecipeError:
    """The error for a method that needs full weights. with_lora: what beside it makes LoRA train over the model as it is."""
    return RecipeError(
        f"{source.name} comes in few bits, but {kind} begins at what a base loses as it is quantized, for which it needs the full weights.",
        f"Name the unquantized model, as a folder of safetensors or on the hub; or set method.kind to lora and {with_lora}.",
        field="method.kind",
    )


def _check_experts(source: ModelSource, stored: StoredForm, files: Sequence[Path]) -> None:
    """Raise RecipeError for experts of which each came quantized: their tensors do not stack to those that the model has."""
    if stored.are_stacked:
        return
    packed = tuple(f".{ending}" for ending in stored.endings)
    for file in files:
        with safe_open(file, "pt") as opened:
            names = [name for name in opened.keys() if ".experts." in name and name.endswith(packed)]  # noqa: SIM118
        if names:
            raise RecipeError(
                f"{source.name} comes with its experts quantized one by one ({names[0]}), which Luthier does not read.",
                "Use the unquantized model and let Luthier quantize it (quantization: {kind: nf4}).",
                file=str(file),
                field="model",
            )


def anatomy_apart(model: PreTrainedModel, family: Family) -> Anatomy:
    """The anatomy of a model without weights as it will be once they are read: what is tied is one, experts are apart."""
    model = copy.deepcopy(model)
    # as `tie_weights` does, which while a model is read does nothing
    for name, other in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        place, _, own = name.rpartition(".")
        setattr(model.get_submodule(place), own, model.get_parameter_or_buffer(other))
    split_experts(model)
    return read_anatomy(model, family)


def nothing_chosen(model: PreTrainedModel) -> tuple[str, ...]:
    """No layer: those that come quantized are known by their tensors."""
    return ()


def layers_to_quantize(anatomy: Anatomy, quantization: QuantizationSettings) -> tuple[str, ...]:
    """The names of the layers that the settings choose.

    Raises RecipeError for names that no layer bears, for the embedding and the head, and where no layer is left.
    """
    chosen, skipped = (
        find_targets(anatomy, named, None, f"quantization.{field}") if named else ()
        for field, named in (("targets", quantization.targets), ("skip", quantization.skip))
    )
    if anatomy.embedding in chosen:
        raise _not_packed(f"{anatomy.embedding} is the embedding, which is looked up and not multiplied")
    if anatomy.head in chosen:
        tied = "tied to the embedding, which is looked up and not multiplied"
        raise _not_packed(
            f"{anatomy.head} is {tied if anatomy.is_head_tied else 'the head, whose weight is used whole'}"
        )
    left = tuple(name for name in chosen if name not in skipped)
    if not left:
        field = "quantization.skip" if chosen else "quantization.targets"
        raise RecipeError(
            f"No layer is quantized: {'quantization.skip leaves out all that quantization.targets names' if chosen else f'{field} names none'}.",
            f"Leave quantization out, or name {'fewer' if chosen else 'some'} layers in {field}.",
            field=field,
        )
    return left


def _not_packed(what: str) -> RecipeError:
    """The error for a module that may be named and is never packed."""
    return RecipeError(
        f"{what}: it cannot be quantized.", "Leave it out of quantization.targets.", field="quantization.targets"
    )


def _weights(hf: PreTrainedModel, dtype: torch.dtype) -> str:
    """How many weights a model has, and in which form."""
    packed = [module.packed for module in hf.modules() if isinstance(module, QuantizedLinear)]
    in_few_bits = sum(math.prod(weight.shape) for weight in packed)
    others = sum(parameter.numel() for parameter in hf.parameters())
    if not packed:
        return f"{others / 1e6:.1f} M weights, {name_of_format(dtype)}"
    bits = 8 * sum(weight.num_bytes for weight in packed) / in_few_bits
    return (
        f"{(in_few_bits + others) / 1e6:.1f} M weights, {in_few_bits / 1e6:.1f} M of them {packed[0].kind} "
        f"at {bits:.2f} bits each, the others {name_of_format(dtype)}"
    )


def check_head(family: Family, model_type: str, head: Head | None) -> Head | None:
    """The head as a family has it. Raises RecipeError if its models cannot have it.

    A head over words is an encoder's; what writes has one of its own, None.
    """
    if head is None and family.kind == "encoder":
        raise RecipeError(
            f"Models of type {model_type!r} read whole texts and cannot write.",
            "Set objective.kind to classification, or choose a model that writes.",
            field="objective.kind",
        )
    if isinstance(head, WordsHead):
        return head if family.kind == "encoder" else None
    if head is not None and head.reads_mask and not family.mask_head:
        raise RecipeError(
            f"Models of type {model_type!r} fill no masks, which the method reads classes at.",
            "Choose an encoder, such as bert or roberta; or set method.kind to prompt-tuning.",
            field="method.kind",
        )
    if head is not None and not head.layers(family):
        what = "tags tokens" if head.reads == "tokens" else "tells classes apart"
        raise RecipeError(
            f"Models of type {model_type!r} have no head that {what}.",
            "Choose a model of another family, such as bert, roberta or llama.",
            field="objective.kind",
        )
    return head


def identify(settings: ModelSettings, source: ModelSource) -> Identity:
    """The name and hash of a model's weights."""
    return Identity(settings.name, fingerprint(source))


def name_of_format(dtype: torch.dtype) -> str:
    """What recipes call a number format."""
    return next(name for name, value in DTYPES.items() if value == dtype)
