"""From the scores of the next tokens of all live answers to these tokens, as each request's settings want them.

Shapes: B answers, V vocabulary, C likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.errors import UsageError
from luthier.generation.answers import Answer
from luthier.generation.constraints import Grammars
from luthier.generation.penalties import Seen, add_biases, penalised
from luthier.generation.requests import Request, TokenLogprob, draw_index, likeliest_of
from luthier.generation.rows import Decoder
from luthier.generation.sampling import sample, uniforms
from luthier.ops.buffers import Buffers


class Chooser:
    """Chooses tokens for the answers of one model."""

    def __init__(self, model: Decoder) -> None:
        self._tokenizer = model.tokenizer
        self._grammars = Grammars(model.tokenizer)
        self._buffers = Buffers()

    def check(self, request: Request) -> None:
        """Raise UsageError for settings that this model cannot keep to."""
        sampling = request.sampling
        self._grammars.check(sampling)
        beyond = [token for token, _ in sampling.logit_bias if not 0 <= token < self._num_tokens]
        if beyond:
            raise UsageError(
                f"logit_bias names the token {beyond[0]}, but the tokenizer has those from 0 to {self._num_tokens - 1}.",
                "Name tokens by their ids.",
                field="logit_bias",
            )

    @property
    def _num_tokens(self) -> int:
        return len(self._tokenizer)

    @torch.no_grad()
    def choose(self, logits_BV: Tensor, answers: Sequence[Answer]) -> list[int]:
        """The next token of each answer. Raises: NotFinite, if the model gave NaN."""
        samplings = [answer.asked.request.sampling for answer in answers]
        indices = [draw_index(answer.number, len(answer.tokens)) for answer in answers]
        uniform_B = uniforms([sampling.seed for sampling in samplings], indices)
        token_B = sample(self._adjusted(logits_BV, answers), samplings, uniform_B, self._buffers)
        _tell_logprobs(logits_BV, token_B, answers, self._buffers)
        tokens: list[int] = token_B.tolist()
        for answer, token in zip(answers, tokens, strict=True):
            if answer.seen is not None:
                answer.seen.add(token)
            if answer.matcher is not None:
                answer.matcher.add(token)
        return tokens

    def _adjusted(self, logits_BV: Tensor, answers: Sequence[Answer]) -> Tensor:
        """The scores with the penalties, biases and constraints of the rows that have some; a copy, if any has."""
        rows = [row for row, answer in enumerate(answers) if not answer.asked.request.sampling.keeps_probabilities]
        if not rows:
            return logits_BV
        at = torch.tensor(rows, device=logits_BV.device)
        changed_KV = logits_BV[at]
        self._begin([answers[row] for row in rows], changed_KV)
        samplings = [answers[row].asked.request.sampling for row in rows]
        seen = [(place, answers[row].seen) for place, row in enumerate(rows)]
        places = [place for place, one in seen if one is not None]
        if places:
            of_places = torch.tensor(places, device=logits_BV.device)
            changed_KV[of_places] = penalised(
                changed_KV[of_places],
                [samplings[place] for place in places],
                [one for _, one in seen if one is not None],
            )
        add_biases(changed_KV, samplings)
        for place, row in enumerate(rows):
            matcher = answers[row].matcher
            if matcher is not None:
                matcher.allow(changed_KV[place])
        adjusted_BV = logits_BV.clone()
        adjusted_BV[at] = changed_KV
        return adjusted_BV

    def _begin(self, answers: Sequence[Answer], logits_KV: Tensor) -> None:
        """Give answers that get their first token what their settings need."""
        vocabulary = logits_KV.shape[-1]
        for answer in answers:
            if answer.tokens:
                continue
            request = answer.asked.request
            if request.sampling.is_penalised:
                answer.seen = Seen(request.prompt, vocabulary, logits_KV.device)
            if request.sampling.is_constrained:
                answer.matcher = self._grammars.matcher(request.sampling, vocabulary, answer.stop_ids)


def _heat(request: Request) -> float:
    """What the logits of a request are divided by before its log-probabilities are told."""
    return request.sampling.temperature if request.tempers_logprobs and not request.sampling.is_greedy else 1.0


def _logsumexp(logits_BV: Tensor, buffers: Buffers) -> Tensor:
    """log Σ exp over the vocabulary, shape (B,), by no fresh memory of its width."""
    most_B1 = logits_BV.amax(-1, keepdim=True)
    held_BV = buffers.take("exponentials", logits_BV.numel(), logits_BV.dtype, logits_BV.device).view_as(logits_BV)
    return torch.sub(logits_BV, most_B1, out=held_BV).exp_().sum(-1).log_().add_(most_B1[:, 0])


def _tell_logprobs(logits_BV: Tensor, token_B: Tensor, answers: Sequence[Answer], buffers: Buffers) -> None:
    """Note the log-probabilities of the chosen tokens where they are asked for."""
    asking = [row for row, answer in enumerate(answers) if answer.asked.request.top_logprobs is not None]
    if not asking:
        return
    if len(asking) < len(answers):
        rows = torch.tensor(asking, device=logits_BV.device)
        logits_BV, token_B = logits_BV[rows], token_B[rows]
    heat = [_heat(answers[row].asked.request) for row in asking]
    if any(each != 1 for each in heat):
        logits_BV = logits_BV / torch.tensor(heat, device=logits_BV.device)[:, None]
    lse_B = _logsumexp(logits_BV, buffers)
    chosen_B = (logits_BV.gather(-1, token_B[:, None])[:, 0] - lse_B).tolist()
    most = max(answers[row].asked.request.top_logprobs or 0 for row in asking)
    score_BC, token_BC = logits_BV.topk(min(most, logits_BV.shape[-1]), dim=-1)
    ids, logprobs = token_BC.tolist(), (score_BC - lse_B[:, None]).tolist()
    for place, row in enumerate(asking):
        count = answers[row].asked.request.top_logprobs or 0
        told = TokenLogprob(chosen_B[place], likeliest_of(ids[place][:count], logprobs[place][:count]))
        answers[row].logprobs.append(told)
