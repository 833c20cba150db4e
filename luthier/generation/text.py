"""From tokens, one at a time, to text that is safe to show.

A piece of text is given out only when no later token can change it: never half a character, and never the beginning of
what may turn out to be a stop text.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what decoding gives for bytes that are not (or not yet) a character


def decode_text(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], shown_ids: frozenset[int] = frozenset()
) -> str:
    """The tokens as text, special tokens left out but for those to be shown, spaces as they are."""
    hidden = set(tokenizer.all_special_ids) - shown_ids if shown_ids else ()
    kept = [token for token in tokens if token not in hidden]
    text = tokenizer.decode(kept, skip_special_tokens=not shown_ids, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of the text may be the beginning of a stop text."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


class TextStream:
    """The text of one answer as its tokens arrive, up to the first stop text.

    Tokens are decoded in a short window: the ones already given out last (for tokenizers whose spaces depend on what
    goes before) and those not yet given out.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], shown_ids: frozenset[int] = frozenset()
    ) -> None:
        self.text = ""
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._stops = stops
        self._shown_ids = shown_ids
        self._given = 0  # characters of `text` that were given out
        self._window: list[int] = []
        self._num_settled = 0  # tokens of the window whose text is in `text`

    def add(self, token: int) -> str:
        """The text that the token settles; empty while it may still change."""
        self._window.append(token)
        settled, whole = self._decode(self._num_settled), self._decode(None)
        if whole.endswith(BROKEN):
            return ""
        if len(whole) > len(settled):  # tokens without text (special ones) would lend the next no space before it
            self._window = self._window[self._num_settled :]
        self._num_settled = len(self._window)
        return self._extend(whole[len(settled) :])

    def end(self) -> str:
        """The text that was held back, now that no token follows."""
        if self.is_stopped:
            return ""
        piece = self._extend(self._decode(None)[len(self._decode(self._num_settled)) :])
        return piece + self._give(len(self.text))

    def _decode(self, stop: int | None) -> str:
        return decode_text(self._tokenizer, self._window[:stop], self._shown_ids)

    def _extend(self, piece: str) -> str:
        """Append to the text; give out what can no longer become a stop text."""
        longest = max((len(stop) for stop in self._stops), default=0)
        search_from = max(0, len(self.text) - longest)
        self.text += piece
        found = [at for stop in self._stops if (at := self.text.find(stop, search_from)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.is_stopped = True
            return self._give(len(self.text))
        return self._give(len(self.text) - held_back(self.text, self._stops))

    def _give(self, end: int) -> str:
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece
