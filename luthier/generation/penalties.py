"""What a request's settings change in the scores before a token is drawn: biases, and penalties on tokens that were there.

Only the rows that ask for it are touched. Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.generation.settings import Sampling


class Seen:
    """How often each token was in an answer, and whether it was in the answer or its prompt."""

    def __init__(self, prompt: Sequence[int], vocabulary: int, device: torch.device) -> None:
        self.count_V = torch.zeros(vocabulary, dtype=torch.int32, device=device)
        self.is_there_V = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        known = [token for token in prompt if 0 <= token < vocabulary]  # virtual tokens are none
        self.is_there_V[torch.tensor(known, dtype=torch.long, device=device)] = True

    def add(self, token: int) -> None:
        """Note one token of the answer."""
        self.count_V[token] += 1
        self.is_there_V[token] = True


def penalised(logits_BV: Tensor, samplings: Sequence[Sampling], seen: Sequence[Seen]) -> Tensor:
    """The scores with each row's penalties, shape (B, V).

    Repetition: Keskar et al. 2019, https://arxiv.org/abs/1909.05858, equation 2, with the sign of a score minded as in
    transformers: of tokens in prompt or answer, positive scores are divided by θ and negative ones multiplied by it.
    Frequency and presence, as in OpenAI's API: z − count · frequency − (count > 0) · presence, of tokens in the answer.
    """

    def each(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=logits_BV.dtype, device=logits_BV.device)[:, None]

    theta_B1 = each([sampling.repetition_penalty for sampling in samplings])
    is_there_BV = torch.stack([one.is_there_V for one in seen])
    count_BV = torch.stack([one.count_V for one in seen])
    repeated_BV = torch.where(logits_BV > 0, logits_BV / theta_B1, logits_BV * theta_B1)
    changed_BV = torch.where(is_there_BV, repeated_BV, logits_BV)
    changed_BV -= count_BV * each([sampling.frequency_penalty for sampling in samplings])
    return changed_BV.sub_((count_BV > 0) * each([sampling.presence_penalty for sampling in samplings]))


def add_biases(logits_BV: Tensor, samplings: Sequence[Sampling]) -> None:
    """Add each row's biases to its scores, in place."""
    found = [(row, token, bias) for row, s in enumerate(samplings) for token, bias in s.logit_bias]
    if found:
        rows, tokens, biases = zip(*found, strict=True)
        device = logits_BV.device
        at = (torch.tensor(rows, device=device), torch.tensor(tokens, device=device))
        logits_BV.index_put_(at, torch.tensor(biases, dtype=logits_BV.dtype, device=device), accumulate=True)
