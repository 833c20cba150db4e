"""What training has for tokens that were generated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from luthier.data.packing import collate
from luthier.data.placeholders import with_placeholders
from luthier.models.language_model import LanguageModel
from luthier.types import Example, Origin, Part


@torch.no_grad()
def trainer_logprobs(model: LanguageModel, prompt: Sequence[int], answer: Sequence[int], adapter: str | None) -> Tensor:
    """log p of each token of an answer, as training's own forward pass has it."""
    tokens_T = np.array([*prompt, *answer])
    learned = np.arange(len(prompt), len(tokens_T))
    example = Example(
        parts=(Part(tokens_T),),
        source_N=learned - 1,
        token_N=tokens_T[learned],
        weight_N=np.ones(len(learned), dtype=np.float32),
        sample_N=np.zeros(len(learned), dtype=np.int64),
        document=0,
        origin=Origin("prompt", 1),
    )
    placed = with_placeholders(example, model.num_virtual(adapter), 0)
    return model.forward(collate([placed], model.layout, 0), adapter).logprob_N
