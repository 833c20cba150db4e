"""From the scores of the next tokens of all live answers to these tokens, as each request's settings want them.

Shapes: B answers, V vocabulary, C likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.generation.answers import Answer
from luthier.generation.requests import Request, TokenLogprob, draw_index, likeliest_of
from luthier.generation.rows import Decoder
from luthier.generation.sampling import sample, uniforms


class Chooser:
    """Chooses tokens for the answers of one model."""

    def __init__(self, model: Decoder) -> None:
        self._model = model

    def check(self, request: Request) -> None:
        """Raise what is wrong with a request's settings for this model."""

    @torch.no_grad()
    def choose(self, logits_BV: Tensor, answers: Sequence[Answer]) -> list[int]:
        """The next token of each answer. Raises: NotFinite, if the model gave NaN."""
        samplings = [answer.asked.request.sampling for answer in answers]
        indices = [draw_index(answer.number, len(answer.tokens)) for answer in answers]
        uniform_B = uniforms([sampling.seed for sampling in samplings], indices)
        token_B = sample(logits_BV, samplings, uniform_B)
        _tell_logprobs(logits_BV, token_B, answers)
        return token_B.tolist()


def _tell_logprobs(logits_BV: Tensor, token_B: Tensor, answers: Sequence[Answer]) -> None:
    """Note the log-probabilities of the chosen tokens where they are asked for."""
    asking = [row for row, answer in enumerate(answers) if answer.asked.request.top_logprobs is not None]
    if not asking:
        return
    if len(asking) < len(answers):
        rows = torch.tensor(asking, device=logits_BV.device)
        logits_BV, token_B = logits_BV[rows], token_B[rows]
    lse_B = torch.logsumexp(logits_BV, dim=-1)
    chosen_B = (logits_BV.gather(-1, token_B[:, None])[:, 0] - lse_B).tolist()
    most = max(answers[row].asked.request.top_logprobs or 0 for row in asking)
    score_BC, token_BC = logits_BV.topk(min(most, logits_BV.shape[-1]), dim=-1)
    ids, logprobs = token_BC.tolist(), (score_BC - lse_B[:, None]).tolist()
    for place, row in enumerate(asking):
        count = answers[row].asked.request.top_logprobs or 0
        told = TokenLogprob(chosen_B[place], likeliest_of(ids[place][:count], logprobs[place][:count]))
        answers[row].logprobs.append(told)
