"""Answers that must match a regular expression or a JSON schema: at each place, the tokens that may still lead to one.

The grammar is llguidance's, an optional package (`pip install 'luthier[constraints]'`), imported where it is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from luthier.errors import ResourceError, UsageError
from luthier.generation.settings import Sampling


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allow(self, logits_V: Tensor) -> None:
        """Exclude the tokens that may not come next, in place. Raises: ResourceError, if the grammar gave up."""
        words = torch.zeros((len(logits_V) + 31) // 32, dtype=torch.int32)
        self._matcher.unsafe_compute_mask_ptr(words.data_ptr(), words.numel() * words.element_size())
        self._check()
        bits = (words[:, None] >> torch.arange(32, dtype=torch.int32)) & 1
        logits_V.masked_fill_((bits.view(-1)[: len(logits_V)] == 0).to(logits_V.device), -torch.inf)

    def add(self, token: int) -> None:
        """Take the next token of the answer."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ResourceError(
                f"The constraint on an answer could not be followed: {self._matcher.get_error()}",
                "Make the regular expression or schema simpler.",
            )


class Grammars:
    """Makes matchers for answers of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._read: dict[tuple[int, frozenset[int]], Any] = {}

    def check(self, sampling: Sampling) -> None:
        """Raise UsageError for a constraint that is no regular expression or schema, or if llguidance is not there."""
        if sampling.regex is None and sampling.json_schema is None:
            return
        matcher = _library().LLMatcher
        if not isinstance(self._tokenizer, PreTrainedTokenizerFast):
            raise UsageError(
                "Answers can be constrained for models with a fast tokenizer only.",
                "Leave the constraint out, or use another model.",
            )
        field = "regex" if sampling.json_schema is None else "json_schema"
        fault = matcher.validate_grammar(_grammar(matcher, sampling))
        if fault:
            raise UsageError(f"{field} cannot be used: {fault.strip()}", f"Mend {field}.", field=field)

    def matcher(self, sampling: Sampling, vocabulary: int, stop_ids: frozenset[int]) -> Matcher:
        """The start of an answer that ends with one of the stop tokens."""
        library = _library()
        key = (vocabulary, stop_ids)
        if key not in self._read:
            backend = self._tokenizer.backend_tokenizer.to_str()
            self._read[key] = library.LLTokenizer(backend, n_vocab=vocabulary, eos_token=sorted(stop_ids))
        return Matcher(library.LLMatcher(self._read[key], _grammar(library.LLMatcher, sampling)))


def _grammar(matcher: Any, sampling: Sampling) -> str:
    grammar: str
    if sampling.json_schema is None:
        grammar = matcher.grammar_from_regex(sampling.regex)
        return grammar
    try:
        grammar = matcher.grammar_from_json_schema(sampling.json_schema)
    except ValueError as error:
        raise UsageError(
            f"json_schema cannot be used: {error}", "Give a JSON object that is a schema.", field="json_schema"
        ) from error
    return grammar


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise UsageError(
            "An answer is to be constrained, and llguidance, which does it, is not installed.",
            "Run pip install 'luthier[constraints]', or leave the constraint out.",
        ) from error
    return llguidance
