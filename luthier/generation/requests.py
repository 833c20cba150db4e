"""What is asked of generation, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from luthier.generation.settings import Sampling

FinishReason = Literal["stop", "length", "stop_string", "cancelled"]
_NUMBER_SHIFT = 32  # bits for the number of a token under that of its answer


@dataclass(frozen=True)
class Request:
    """A prompt in tokens, how to go on from it, and the adapter to use (None: the base model).

    stop_ids: tokens that end the answer beside the model's own, such as a chat template's end of turn.
    causal: whether a decoder reads the prompt left to right; else each of its tokens sees all of it.
    shown_ids: special tokens that the answer's text keeps.
    num_answers: how many answers are drawn; the prompt is computed once for all of them.
    top_logprobs: None tells no log-probabilities; a number tells those of the answer's tokens, and of so many of the
    likeliest tokens at each place. tempers_logprobs: whether they are of the probabilities that the temperature makes.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: str | None = None
    stop_ids: frozenset[int] = frozenset()
    causal: bool = True
    shown_ids: frozenset[int] = frozenset()
    num_answers: int = 1
    top_logprobs: int | None = None
    tempers_logprobs: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of an answer's token, and the likeliest tokens in its place with theirs, likeliest first.

    They are the model's own, in nats: before temperature (but for a request that tempers them), limits, penalties, biases and
    constraints.
    """

    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completed:
    """An answer.

    tokens: all new tokens; the stop token is among them, and so are those that made a stop text.
    text: the answer without special tokens but those to be shown, cut before the stop text.
    finish_reason: a stop token, a stop text, the length limit (`max_new_tokens` or the end of the context), or that it
    was cancelled.
    logprobs: one for each token, where the request asks for them.
    """

    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None)


def reading_of(request: Request) -> tuple[str, bool]:
    """What requests of a padded batch must have in common: the adapter, and how a prompt is read."""
    return request.adapter or "", request.causal


def draw_index(number: int, num_tokens: int) -> int:
    """The address of a draw within its request: which answer, and which token of it."""
    return (number << _NUMBER_SHIFT) | num_tokens


def likeliest_of(ids: Sequence[int], logprobs: Sequence[float]) -> tuple[tuple[int, float], ...]:
    """Tokens with their log-probabilities."""
    return tuple(zip(ids, logprobs, strict=True))
