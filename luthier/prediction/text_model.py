"""A model that answers in text."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from luthier.data.rendering import Renderer
from luthier.errors import UsageError
from luthier.faults import setting_fault
from luthier.generation.engine import Completed, Engine, Request, generate, num_tokens, stream
from luthier.generation.engine_settings import bytes_in
from luthier.generation.room import Room, room_of
from luthier.generation.settings import Sampling
from luthier.models.language_model import LanguageModel
from luthier.objectives.asking import AS_WRITTEN, Asking
from luthier.prediction.contract import check_whole
from luthier.types import Completion, Message

Prompt = str | Sequence[Message | Mapping[str, str]]


def make_sampling(values: Mapping[str, Any]) -> Sampling:
    """Sampling settings from plain values. Raises UsageError, naming the setting, for one that is wrong."""
    try:
        return Sampling(**values)
    except ValidationError as error:
        raise setting_fault(error, "Sampling", Sampling) from error


@dataclass(frozen=True)
class TextModel:
    """A model that answers: its weights, how prompts become tokens, and the adapter to use (None: the bare weights).

    asking: how its prompts are read and its answers shown, where it learned from plain texts.
    """

    language_model: LanguageModel
    renderer: Renderer
    adapter: str | None
    asking: Asking = AS_WRITTEN

    def generate(self, prompt: Prompt, **sampling: Any) -> str:
        """The answer to a prompt, or to the messages of a chat. Greedy unless `sampling` says otherwise."""
        return self.complete([prompt], make_sampling(sampling))[0].text

    def stream(
        self, prompt: Prompt, *, cache_gb: float | None = None, **sampling: Any
    ) -> Generator[str, None, Completed]:
        """The same piece by piece. cache_gb: as `complete` has it."""
        return stream(self.language_model, self.request(prompt, make_sampling(sampling)), bytes_in(cache_gb))

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        num_answers: int = 1,
        top_logprobs: int | None = None,
        cache_gb: float | None = None,
    ) -> list[Completed]:
        """The answers to several prompts, computed together; several to one prompt stand side by side.

        top_logprobs: tell the log-probabilities of the answer's tokens, and of so many of the likeliest in each place.
        cache_gb: most gigabytes that keys and values take; ResourceError for a prompt that has no room in them.
        """
        requests = [self.request(prompt, sampling) for prompt in prompts]
        asked = [replace(each, num_answers=num_answers, top_logprobs=top_logprobs) for each in requests]
        return generate(self.language_model, asked, cache_bytes=bytes_in(cache_gb))

    def chat(self, system: str | None = None, *, cache_gb: float | None = None, **sampling: Any) -> Chat:
        """A conversation that remembers what was said; `system` is an instruction that stands before it.

        cache_gb: most gigabytes that keys and values take; ResourceError once it has no room in them.
        """
        opening = () if system is None else (Message("system", system),)
        return Chat(self, make_sampling(sampling), opening, list(opening), cache_gb)

    def request(self, prompt: Prompt, sampling: Sampling) -> Request:
        """A prompt as generation takes it."""
        stop_ids = self.renderer.stop_ids
        asking = self.asking
        return Request(tuple(self._tokens(prompt)), sampling, self.adapter, stop_ids, asking.causal, asking.shown_ids)

    def _tokens(self, prompt: Prompt) -> list[int]:
        """A prompt as training wrote it: text as a question in a chat, or plainly where the rows were plain."""
        if isinstance(prompt, str):
            check_whole(prompt)
            if self.asking.tokens is not None:
                return self.asking.tokens(prompt)
            tokens = self.renderer.record_prompt(Completion(prompt, ""))
            assert tokens is not None  # a completion has a prompt
            return tokens
        messages = [message_of(each) for each in prompt]
        for message in messages:
            check_whole(message.content)
        return self.renderer.prompt_tokens(messages)


def message_of(value: Message | Mapping[str, str]) -> Message:
    """A message, given as one or by role and content. Raises UsageError for one that lacks either."""
    if isinstance(value, Message):
        return value
    try:
        return Message(value["role"], value["content"])
    except KeyError as error:
        raise UsageError(f"A message has no {error}.", "Give each message a role and a content.") from error


@dataclass
class Chat:
    """A conversation with a model: `messages` holds what was said so far, the opening included.

    Its engine keeps what was computed for earlier turns, as long as the weights stay as they are.
    A model without a chat template goes on from what is said now alone, as plain text.
    """

    model: TextModel
    sampling: Sampling
    opening: tuple[Message, ...] = ()
    messages: list[Message] = field(default_factory=list)
    cache_gb: float | None = None
    _engine: Engine | None = field(default=None, init=False, repr=False, compare=False)
    _most_tokens: int = field(default=0, init=False, repr=False, compare=False)  # that the engine was made for
    _room: Room | None = field(default=None, init=False, repr=False, compare=False)  # measured once

    def say(self, text: str) -> str:
        """The model's answer to what the user says now."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """The same piece by piece; an answer that is broken off is forgotten together with its question."""
        messages = [*self.messages, Message("user", text)]
        is_plain = self.model.renderer.chat is None and not self.opening
        answer = ""
        request = self.model.request(text if is_plain else messages, self.sampling)
        for piece in self._engine_for(request).stream(request):
            answer += piece
            yield piece
        self.messages = [*messages, Message("assistant", answer)]

    def _engine_for(self, request: Request) -> Engine:
        """The engine, or a larger one where the request has no room in it."""
        model, limit = self.model.language_model, bytes_in(self.cache_gb)
        if self._room is None and limit is not None:
            self._room = room_of(model, 0, limit)
        length = num_tokens(model, request)
        if self._engine is None or length > self._most_tokens:
            self._engine = None  # with its cache, before there is another
            self._most_tokens = 2 * length
            room = None if self._room is None else self._room.for_one(self._most_tokens)
            self._engine = Engine(model, max_rows=1, cache_tokens=self._most_tokens, room=room)
        return self._engine

    def reset(self) -> None:
        """Forget everything but the opening."""
        self.messages = list(self.opening)
