"""Which rows are held out for validation: decided by a hash of the prompt, by nothing else.

No seed, no order: the same rows in another order, another epoch or another process are split in the same way, and rows
that ask the same are never on both sides, so a held-out prompt is one that training has not seen answered. Pieces of one
text are on one side too, unless it is so long that it could never be held out as a whole: then each counts for itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.types import (
    INPUT,
    Choice,
    Completion,
    Conversation,
    Labelled,
    Message,
    PlainText,
    Preference,
    Prompt,
    Ranking,
    Record,
    Scored,
    Similar,
    Tagged,
    Verdict,
)

Keys = NDArray[np.bytes_]

FEWEST_HELD_OUT = 16
MOST_HELD_OUT = 500
LARGEST_SHARE = 5
"""Never more than one row in so many is held out."""


def prompt_key(record: Record) -> str:
    """The SHA-256, in hex, of all that comes before a record's last answer; of a text without one, of the text.

    Of a piece, of the text that it is of.
    """
    if isinstance(record, PlainText) and record.part_of:
        return record.part_of
    # default=str: a Parquet file may hold dates and bytes in a tool's schema
    return hashlib.sha256(json.dumps(_prompt(record), sort_keys=True, default=str).encode()).hexdigest()


def _prompt(record: Record) -> object:
    match record:
        case Conversation(messages, tools):
            answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
            before = messages[: answers[-1]] if answers else messages
            return [_turns(before), tools]
        case Completion(prompt):
            return prompt
        case Labelled(text, pair) | Scored(text, pair):
            return [text, pair]
        case PlainText(text):
            return text
        case Tagged(words):
            return words
        case Choice(question, options):
            return [question, options]
        case Similar(anchor):
            return anchor
        case Preference(chosen):
            return _prompt(chosen)
        case Verdict(answered):
            return _prompt(answered)
        case Ranking(answers):
            return _prompt(answers[0])
        case Prompt(Conversation(messages, tools)):
            return [_turns(messages), tools]
        case Prompt(asked):
            return asked


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with all that tells them apart; an input is in their contents."""
    return [{key: value for key, value in message.as_dict().items() if key != INPUT} for message in messages]


def text_key(text: str) -> str:
    """The `prompt_key` of a plain text."""
    return prompt_key(PlainText(text))


def num_held_out(num_rows: int, fraction: float) -> int:
    """The most rows to hold out: the fraction, but at least 16 and at most 500, and never more than a fifth of all."""
    wished = min(max(round(fraction * num_rows), FEWEST_HELD_OUT), MOST_HELD_OUT)
    return min(wished, num_rows // LARGEST_SHARE)


def split_rows(records: Sequence[Record], fraction: float) -> tuple[list[int], list[int]]:
    """`split_keys` of the records' prompts."""
    keys_R = np.array([prompt_key(record).encode() for record in records], dtype="S64")
    return split_keys(keys_R, fraction, (len(records),))


def split_keys(keys_R: Keys, fraction: float, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """The indices of the rows to train on and of those held out, each ascending, given the hashes of their prompts, shape (R,).

    Prompts are taken in the order of their hashes, each with all its rows; one with more rows than there is room left
    for is passed over. So where no prompt occurs twice, exactly `num_held_out` rows are held out; else at most so many.
    sizes: of the sources that the rows are of, one after another; each is split for itself, and a prompt that is held out of one
    is held out of all.
    """
    held_out: set[bytes] = set()
    start = 0
    for size in sizes:
        held_out |= _held_out(keys_R[start : start + size], num_held_out(size, fraction))
        start += size
    is_held_R = np.isin(keys_R, np.array(sorted(held_out), dtype=keys_R.dtype))
    return np.flatnonzero(~is_held_R).tolist(), np.flatnonzero(is_held_R).tolist()


def pieces_apart(
    keys_R: Keys, is_piece_R: NDArray[np.bool_], fraction: float, sizes: Sequence[int]
) -> tuple[Keys, int]:
    """The keys, where pieces of a text with more of them than are held out of its source have each its own, shape (R,); and
    how many such texts there are.

    is_piece_R: whether a row is a piece of a text; those of one text are neighbours. sizes: as `split_keys` has them.
    """
    apart_R, num_texts, start = keys_R.copy(), 0, 0
    for size in sizes:
        stop, room = start + size, num_held_out(size, fraction)
        texts, first, counts = np.unique(keys_R[start:stop], return_index=True, return_counts=True)
        for key, at, count in zip(texts.tolist(), first.tolist(), counts.tolist(), strict=True):
            if count <= room or not is_piece_R[start + at]:
                continue
            num_texts += 1
            rows = start + np.flatnonzero(keys_R[start:stop] == key)
            apart_R[rows] = [_key_of_piece(key, index) for index in range(count)]
        start = stop
    return apart_R, num_texts


def _key_of_piece(text: bytes, index: int) -> bytes:
    return hashlib.sha256(b"%s %d" % (text, index)).hexdigest().encode()


def _held_out(keys_R: Keys, room: int) -> set[bytes]:
    chosen: set[bytes] = set()
    keys, counts = np.unique(keys_R, return_counts=True)
    for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
        if room == 0:
            break
        if count <= room:
            chosen.add(key)
            room -= count
    return chosen
