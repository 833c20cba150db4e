"""Which rows are held out for validation: decided by a hash of the prompt, by nothing else.

No seed, no order: the same rows in another order, another epoch or another process are split in the same way, and rows
that ask the same are never on both sides, so a held-out prompt is one that training has not seen answered.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence

from luthier.types import (
    Choice,
    Completion,
    Conversation,
    Labelled,
    PlainText,
    Preference,
    Record,
    Scored,
    Similar,
    Tagged,
    Verdict,
)

FEWEST_HELD_OUT = 16
MOST_HELD_OUT = 500
LARGEST_SHARE = 5
"""Never more than one row in so many is held out."""


def prompt_key(record: Record) -> str:
    """The SHA-256, in hex, of all that comes before a record's last answer; of a text without one, of the text."""
    # default=str: a Parquet file may hold dates and bytes in a tool's schema
    return hashlib.sha256(json.dumps(_prompt(record), sort_keys=True, default=str).encode()).hexdigest()


def _prompt(record: Record) -> object:
    match record:
        case Conversation(messages, tools):
            answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
            before = messages[: answers[-1]] if answers else messages
            return [[message.as_dict() for message in before], tools]
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


def num_held_out(num_rows: int, fraction: float) -> int:
    """The most rows to hold out: the fraction, but at least 16 and at most 500, and never more than a fifth of all."""
    wished = min(max(round(fraction * num_rows), FEWEST_HELD_OUT), MOST_HELD_OUT)
    return min(wished, num_rows // LARGEST_SHARE)


def split_rows(records: Sequence[Record], fraction: float) -> tuple[list[int], list[int]]:
    """The indices of the rows to train on and of those held out, each ascending.

    Prompts are taken in the order of their hashes, each with all its rows; one with more rows than there is room left
    for is passed over. So where no prompt occurs twice, exactly `num_held_out` rows are held out; else at most so many.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        rows_of[prompt_key(record)].append(index)
    room = num_held_out(len(records), fraction)
    held_out: set[int] = set()
    for key in sorted(rows_of):
        if len(held_out) + len(rows_of[key]) <= room:
            held_out.update(rows_of[key])
    return [index for index in range(len(records)) if index not in held_out], sorted(held_out)
