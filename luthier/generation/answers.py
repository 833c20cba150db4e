"""Answers on their way: what each has got so far, whether it has ended, and what its settings ask of the next scores."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from luthier.generation.constraints import Matcher
from luthier.generation.penalties import Seen
from luthier.generation.requests import Completed, FinishReason, Request, TokenLogprob
from luthier.generation.text import TextStream, decode_text


@dataclass
class Asked:
    """A request that was taken in: its answers as they end, and the pieces of text that nobody has read yet.

    pieces: (number of the answer, text), kept where `watched`. prompt: with placeholders for virtual tokens before it.
    """

    request: Request
    prompt: tuple[int, ...]
    budget: int
    watched: bool = False
    answers: list[Completed | None] = field(default_factory=list)
    pieces: deque[tuple[int, str]] = field(default_factory=deque)
    is_cancelled: bool = False

    @property
    def is_done(self) -> bool:
        """Whether all answers have ended."""
        return all(answer is not None for answer in self.answers)

    @property
    def completed(self) -> list[Completed]:
        """All answers, once they have ended."""
        return [answer for answer in self.answers if answer is not None]


class Answer:
    """One answer of a request."""

    def __init__(
        self, asked: Asked, number: int, model_stops: frozenset[int], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.asked = asked
        self.number = number
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.seen: Seen | None = None  # where penalties ask for it
        self.matcher: Matcher | None = None  # where a constraint does
        self.finish_reason: FinishReason | None = None
        self._stop_ids = model_stops | asked.request.stop_ids
        self._tokenizer = tokenizer
        stops, shown_ids = asked.request.sampling.stop, asked.request.shown_ids
        self._text = TextStream(tokenizer, stops, shown_ids) if asked.watched or stops else None

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end it."""
        return self._stop_ids

    def add(self, token: int) -> None:
        """Take the next token; may end the answer."""
        self.tokens.append(token)
        if token in self._stop_ids:
            self.finish_reason = "stop"
        elif len(self.tokens) == self.asked.budget:
            self.finish_reason = "length"
        if self._text is None:
            return
        fresh = "" if self.finish_reason == "stop" else self._text.add(token)
        if self.finish_reason is not None:
            fresh += self._text.end()
        if self._text.is_stopped:
            self.finish_reason = "stop_string"
        self._tell(fresh)

    def cancel(self) -> None:
        """End it here."""
        self.finish_reason = "cancelled"
        if self._text is not None:
            self._tell(self._text.end())

    def _tell(self, text: str) -> None:
        if text and self.asked.watched:
            self.asked.pieces.append((self.number, text))

    def completed(self) -> Completed:
        """The answer, once it has ended."""
        assert self.finish_reason is not None
        spoken = self.tokens[:-1] if self.finish_reason == "stop" else self.tokens
        shown_ids = self.asked.request.shown_ids
        text = decode_text(self._tokenizer, spoken, shown_ids) if self._text is None else self._text.text
        told = self.asked.request.top_logprobs is not None
        return Completed(tuple(self.tokens), text, self.finish_reason, tuple(self.logprobs) if told else None)
