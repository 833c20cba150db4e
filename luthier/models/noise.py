"""Noise on the embeddings while a model trains (NEFTune).

Jain et al. 2023, https://arxiv.org/abs/2310.05914: to each embedding of a document of L tokens, u α / √(L D) is added, u
uniform in (−1, 1) for each of the D numbers. As the draws are keyed by step, document and place, any cut of a step into
micro-batches, and a layer that is computed again, has the same noise.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.models.anatomy import Anatomy
from luthier.models.call import current_call
from luthier.ops.draws import salt_of, signed_uniforms

_SALT = salt_of("embedding noise")


def noise_embeddings(hf: PreTrainedModel, anatomy: Anatomy) -> None:
    """From now on, add the noise that a call asks for to what its tokens' embedding gives."""
    for place in anatomy.embedding_places:
        module = hf.get_submodule(place)
        if _add_noise not in module._forward_hooks.values():
            module.register_forward_hook(_add_noise)


def _add_noise(module: nn.Module, inputs: Any, embedded_BTD: Tensor) -> Tensor | None:
    call = current_call()
    if call.noise_N is None or call.keys_N is None:
        return None
    width = embedded_BTD.shape[-1]
    noise_ND = signed_uniforms(call.keys_N, _SALT, width) * (call.noise_N / width**0.5)[:, None]
    noisy_BTD: Tensor = embedded_BTD + noise_ND.view_as(embedded_BTD).to(embedded_BTD.dtype)
    return noisy_BTD
