"""Layers that keep their inputs alone, and are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from luthier.models.anatomy import Anatomy
from luthier.models.call import calling, current_call


def recompute_layers(hf: PreTrainedModel, anatomy: Anatomy) -> None:
    """From now on, recompute every layer in the backward pass rather than keep what is inside it."""
    for layer in anatomy.layers:
        module = hf.get_submodule(layer.name)
        module.forward = _recomputed(module.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of its inputs, computed again in the backward pass, within the same call."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        call = current_call().again()
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,  # draws are keyed by token: there is no generator to restore
            context_fn=lambda: (calling(call), calling(call)),
            **kwargs,
        )

    return wrapped
