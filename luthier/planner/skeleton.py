"""A recipe's model without its weights: the modules and shapes that loading would make, of tensors that only pretend.

To be called where torch's fake tensors are made (`FakeTensorMode`): nothing is read, nothing is allocated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

from luthier.models.anatomy import replace_module, shape_of
from luthier.models.attention import implementation_of, register_attention
from luthier.models.experts import SplitExperts, split_experts
from luthier.models.families import Family, check_fixed, family_of
from luthier.models.fast_layers import use_fast_layers
from luthier.models.fitting import fit_family
from luthier.models.heads import ClassHead, Head, WordsHead, add_class_layer, is_read, name_classes, new_layers
from luthier.models.language_model import FastModel, Identity, LanguageModel
from luthier.models.loading import Wishes, check_head
from luthier.models.reading import read_anatomy
from luthier.models.streaming import Prepare
from luthier.planner.packed import PackedBase
from luthier.quantization.packed import PackedWeight, QuantizedLinear


def skeleton(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    fast: FastModel,
    *,
    head: Head | None,
    quantization: PackedBase | None,
    wishes: Wishes,
    tokenizer: PreTrainedTokenizerBase | None = None,
    num_new_tokens: int = 0,
    device: torch.device | None = None,
) -> LanguageModel:
    """The model as `load_model` would give it. Raises RecipeError as that does for layers that cannot be quantized.

    device: where real tensors are to be; None: where they are made, as all that only pretend are.
    """
    family = family_of(config.model_type)
    check_fixed(config.to_dict(), family.fixed)
    register_attention()
    implementation = implementation_of(family, fast.attention)
    hf, new_head = _bare(copy.deepcopy(config), family, head, dtype, implementation)
    fit_family(hf, family)
    split_experts(hf, EvenExperts)
    anatomy = read_anatomy(hf, family)
    first: dict[str, Mapping[str, Tensor]] = {}
    if quantization is not None:
        kept, prepare = wishes.keeps_full(anatomy), wishes.prepare_weights(anatomy)
        for name in quantization.chosen(anatomy):
            packed = None if name in kept else quantization.blank(name, shape_of(hf.get_submodule(name)), hf.device)
            if packed is not None:
                first[name] = _pack(hf, name, packed, prepare)
    use_fast_layers(hf, anatomy, norm=fast.norm, gated_mlp=fast.gated_mlp, linear=fast.linear)
    hf.requires_grad_(False).train(False)
    if device is not None and device != hf.device:
        plain: nn.Module = hf
        plain.to(device)
    words = tokenizer or _blank_tokenizer()
    new_tokens = tuple(range(num_new_tokens))  # which rows are new changes no size
    return LanguageModel(
        hf,
        words,
        anatomy,
        Identity("?", ""),
        fast,
        new_head=new_head,
        new_tokens=new_tokens,
        is_head_read=is_read(head),
        prepared=first,
    )


class EvenExperts(SplitExperts):
    """Experts of which each is sent as many tokens: what a router chooses is not known before it has numbers."""

    def routes(self, chosen_NK: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Every expert with its share of the choices."""
        tokens = min(-(-chosen_NK.numel() // self.count), len(chosen_NK))
        for index in range(self.count):
            yield index, torch.arange(tokens, device=chosen_NK.device) * chosen_NK.shape[1]


class _WithinBounds(TorchFunctionMode):
    """Answers no where a tensor that only pretends is asked whether any random number is to be drawn again."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.__bool__ and isinstance(args[0], FakeTensor):
            return False
        return function(*args, **(kwargs or {}))


def _blank_tokenizer() -> PreTrainedTokenizerBase:
    """One that knows no words: a step asks it for none."""
    words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    blank: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")  # type: ignore[no-untyped-call]
    return blank


def _bare(
    config: PreTrainedConfig, family: Family, head: Head | None, dtype: torch.dtype, implementation: str
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The transformers model, and which layers of its head are new."""
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    head = check_head(family, config.model_type, head)
    if isinstance(head, WordsHead):
        auto = AutoModelForMaskedLM
    elif head is not None:
        name_classes(config, head)
        auto = {
            "text": AutoModelForSequenceClassification,
            "tokens": AutoModelForTokenClassification,
            "mask": AutoModelForMaskedLM,
        }[head.reads]
    with _WithinBounds():
        hf: PreTrainedModel = auto.from_config(config, dtype=dtype, attn_implementation=implementation)
    if not isinstance(head, ClassHead):
        return hf, ()
    if head.reads_mask:
        add_class_layer(hf, family, len(head.classes))
        return hf, (family.mask_head[-1].name,)
    return hf, new_layers(family, head, {part.name for part in head.layers(family)})


def _pack(hf: PreTrainedModel, name: str, packed: PackedWeight, prepare: Prepare) -> Mapping[str, Tensor]:
    """Put a quantized layer without numbers in the place of a plain one; the first tensors of a method at it."""
    layer = hf.get_submodule(name)
    weight = layer.get_parameter("weight")
    weight_OI = weight.detach().t() if isinstance(layer, Conv1D) else weight.detach()
    made = prepare(name, weight_OI, lambda own_OI: packed)
    bias: nn.Parameter | None = dict(layer.named_parameters()).get("bias")
    replace_module(hf, name, QuantizedLinear(made.packed, bias, weight.dtype, isinstance(layer, Conv1D)))
    return made.first
