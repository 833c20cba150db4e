"""How likely texts are behind others, and how texts go on, as lm-evaluation-harness asks for it; it itself is not needed here.

Texts become tokens as its own `hf` model has them: as the tokenizer does it (with a first token where it puts one), a context's
blanks at its end as part of what follows, and where there is no context, the tokenizer's first (or last) token in its place. What is
too long loses its beginning, which is counted.

Shapes: T tokens, N targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.errors import UsageError
from luthier.evaluation.candidates import Candidate
from luthier.generation.engine import Request, generate
from luthier.generation.settings import Sampling
from luthier.prediction.passes import Passes, likelihoods, said_of_each
from luthier.types import Example, Origin, Part

_MOST_NEW_TOKENS = 256
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class Likelihood:
    """log p of a text (nats, summed over its tokens), and whether each of them is the likeliest one."""

    logprob: float
    is_greedy: bool


class Scored:
    """A candidate as the harness asks it. stop_ids: tokens that end an answer beside the model's own.

    num_cut: how many requests lost their beginning so far.
    """

    def __init__(self, candidate: Candidate, stop_ids: frozenset[int], passes: Passes) -> None:
        self.num_cut = 0
        self._candidate = candidate
        self._stop_ids = stop_ids
        self._passes = passes
        self._tokenizer = candidate.model.tokenizer
        context = candidate.model.context_length
        self._room = None if context is None else context - candidate.model.num_virtual(candidate.adapter)

    @property
    def prefix(self) -> int:
        """The token that stands before a text without a context. Raises: UsageError where the tokenizer has none."""
        found = self._tokenizer.bos_token_id
        found = self._tokenizer.eos_token_id if found is None else found
        if found is None:
            raise UsageError(
                "The tokenizer has no token that begins or ends a text, and the task asks for texts without a context.",
                "Choose a task whose questions have a context.",
            )
        return int(found)

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Of each (context, text) how likely the text is behind it. Raises: NotFinite, UsageError."""
        return self._of_tokens([self._pair(context, text) for context, text in pairs])

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """log p (nats) of whole texts: those longer than the model holds in windows, each token once and with all the context there is."""
        windows = [self._windows(self._tokens(text)) for text in texts]
        found = iter(self._of_tokens([window for own in windows for window in own]))
        return [sum(next(found).logprob for _ in own) for own in windows]

    def continued(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """How each text goes on, by the settings beside it. Raises: UsageError for a setting that the engine does not have."""
        requests = [self._request(text, values) for text, values in asked]
        task = f"{self._candidate.name}: answers"
        completed = generate(
            self._candidate.model, requests, progress=lambda done, total: self._passes.progress(task, done, total)
        )
        return [each.text for each in completed]

    def _tokens(self, text: str) -> list[int]:
        first = self._tokenizer.bos_token
        has_first = first is not None and text.startswith(first)
        found = self._tokenizer.encode(text, add_special_tokens=False) if has_first else self._tokenizer.encode(text)
        return [int(token) for token in found]

    def _pair(self, context: str, text: str) -> tuple[list[int], list[int]]:
        if not context:
            tokens = [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]
            return (tokens[:1], tokens[1:]) if tokens[:1] == [self.prefix] else ([self.prefix], tokens)
        kept = context.rstrip()
        if not kept:
            kept, context = context, context
        text = context[len(kept) :] + text
        before = self._tokens(kept)
        return before, self._tokens(kept + text)[len(before) :]

    def _windows(self, tokens: list[int]) -> list[tuple[list[int], list[int]]]:
        """What stands before each window, and the window; together they are one more than the model holds."""
        size = self._room or len(tokens) or 1
        windows = []
        for start in range(0, len(tokens), size):
            end = min(start + size, len(tokens))
            before = tokens[max(0, end - size - 1) : start] if start else [self.prefix]
            windows.append((before, tokens[start:end]))
        return windows

    def _of_tokens(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Likelihood]:
        examples = [self._example(before, text, row) for row, (before, text) in enumerate(pairs)]
        asked = [example for example in examples if example is not None]
        task = f"{self._candidate.name}: likelihoods"
        said = iter(
            said_of_each(self._candidate.model, self._candidate.adapter, asked, likelihoods, self._passes, task)
        )
        found = []
        for example in examples:
            if example is None:  # no token: sure to come
                found.append(Likelihood(0.0, True))
            else:
                said_N2 = next(said)
                found.append(Likelihood(float(said_N2[:, 0].sum()), bool(said_N2[:, 1].all())))
        return found

    def _example(self, before: list[int], text: list[int], row: int) -> Example | None:
        """The last token is only predicted: the model does not read it."""
        if not text:
            return None
        tokens = [*before, *text]
        if self._room is not None and len(tokens) > self._room + 1:
            tokens = tokens[-(self._room + 1) :]
            self.num_cut += 1
        num_targets = min(len(text), len(tokens) - 1)
        source_N = np.arange(len(tokens) - 1 - num_targets, len(tokens) - 1, dtype=np.int64)
        tokens_T = np.array(tokens, dtype=np.int64)
        return Example(
            parts=(Part(tokens_T[:-1]),),
            source_N=source_N,
            token_N=tokens_T[source_N + 1],
            weight_N=np.ones(num_targets, dtype=np.float32),
            sample_N=np.zeros(num_targets, dtype=np.int64),
            document=row,
            origin=Origin("the task's requests", row + 1),
        )

    def _request(self, text: str, values: Mapping[str, Any]) -> Request:
        sampling = sampling_of(values)
        tokens = self._tokens(text) or [self.prefix]
        if self._room is not None:
            room = self._room - sampling.max_new_tokens
            if room < 1:
                raise UsageError(
                    f"The task asks for answers of {sampling.max_new_tokens} tokens, but the model holds {self._room}, the question included.",
                    "Set max_gen_toks under generation_kwargs in the task's file.",
                )
            self.num_cut += len(tokens) > room
            tokens = tokens[-room:]
        return Request(tuple(tokens), sampling, self._candidate.adapter, self._stop_ids)


def sampling_of(values: Mapping[str, Any]) -> Sampling:
    """A task's `generation_kwargs` as the engine takes them; greedily unless `do_sample` is set. Raises: UsageError."""
    left = dict(values)
    stop = left.pop("until", None) or ()
    lengths = [int(value) for name in _LENGTHS if (value := left.pop(name, None)) is not None]
    is_drawn = bool(left.pop("do_sample", False))
    drawing = {name: left.pop(name) for name in ("temperature", "top_k", "top_p", "min_p") if name in left}
    if left:
        raise UsageError(
            f"The task sets generation_kwargs.{next(iter(left))}, which this engine does not have.",
            "It has until, do_sample, temperature, top_k, top_p, min_p and max_gen_toks.",
        )
    drawing = {name: value for name, value in drawing.items() if value} if is_drawn else {}
    if is_drawn:
        drawing = {"temperature": 1.0, **drawing}
    return Sampling(
        stop=tuple(text for text in ((stop,) if isinstance(stop, str) else stop) if text),
        max_new_tokens=lengths[0] if lengths else _MOST_NEW_TOKENS,
        **drawing,
    )
