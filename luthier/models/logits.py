"""From a model's final states to logits, with what its family does on the way.

Shapes: N tokens, D width, V vocabulary, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.models.anatomy import Anatomy, config_number
from luthier.models.families import HeadPart
from luthier.models.heads import ACTIVATIONS


def logits(hf: PreTrainedModel, anatomy: Anatomy, hidden_ND: Tensor) -> Tensor:
    """The head's logits: of words, shape (N, V), or of classes, shape (N, C)."""
    if anatomy.purpose == "classes":
        return _through(hf, anatomy.head_parts, hidden_ND)
    logits_NV: Tensor = hf.get_submodule(anatomy.head)(read_by_words(hf, anatomy, hidden_ND))
    bias_V, cap = logit_bias(hf, anatomy), softcap(hf, anatomy)
    logits_NV = logits_NV if bias_V is None else logits_NV + bias_V
    return logits_NV if cap is None else torch.tanh(logits_NV / cap) * cap


def read_by_words(hf: PreTrainedModel, anatomy: Anatomy, hidden_ND: Tensor) -> Tensor:
    """What the last layer of the head over words reads."""
    return scaled(hf, anatomy, _through(hf, anatomy.head_parts[:-1], hidden_ND))


def _through(hf: PreTrainedModel, parts: tuple[HeadPart, ...], hidden_ND: Tensor) -> Tensor:
    """What layers of a head make of the states."""
    for part in parts:
        hidden_ND = hf.get_submodule(part.name)(hidden_ND)
        hidden_ND = hidden_ND if part.activation is None else ACTIVATIONS[part.activation](hidden_ND)
    return hidden_ND


def scaled(hf: PreTrainedModel, anatomy: Anatomy, hidden_ND: Tensor) -> Tensor:
    """States by the divisor that the family has before its head."""
    divisor = config_number(hf.config, anatomy.family.logit_divisor_key)
    if config_number(hf.config, anatomy.family.scaled_head_key):
        divisor = hidden_ND.shape[1] ** 0.5
    return hidden_ND if divisor is None else hidden_ND / divisor


def logit_bias(hf: PreTrainedModel, anatomy: Anatomy) -> Tensor | None:
    """What the family adds to the logits beside the head's own bias, shape (V,)."""
    name = anatomy.family.logit_bias
    return None if name is None else hf.get_buffer(name).reshape(-1)


def softcap(hf: PreTrainedModel, anatomy: Anatomy) -> float | None:
    """The cap on the logits, where the family has one."""
    return config_number(hf.config, anatomy.family.softcap_key)
