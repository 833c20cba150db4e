"""Rows as text in which what is learned is marked."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerBase

from luthier.data.whole_texts import Whole
from luthier.types import Choice, Example, IntArray, Labelled, Origin, Record, Scored, Similar, Tagged


@dataclass(frozen=True)
class MarkedRow:
    """A row as text: its pieces in order, each with whether it is learned."""

    origin: Origin
    pieces: tuple[tuple[str, bool], ...]
    num_tokens: int
    num_learned: int


def shown_row(
    record: Record, example: Example, tokenizer: PreTrainedTokenizerBase, *, ranks: bool, in_place: bool
) -> MarkedRow:
    """The row's text in pieces; of a text that is read as a whole, what is to be said of it is what is learned.

    ranks, in_place: as `Rules` has them.
    """
    if ranks:
        return ranked_row(example, tokenizer)
    if not isinstance(record, Whole):
        return marked_row(example, tokenizer, in_place=in_place)
    text = str(tokenizer.decode(example.parts[0].tokens_T.tolist(), clean_up_tokenization_spaces=False))
    pieces = ((f"{text} → ", False), (answer_of(record), True))
    return MarkedRow(example.origin, pieces, example.num_tokens, example.num_learned)


def answer_of(record: Whole) -> str:
    """What is to be said of a text that is read as a whole."""
    match record:
        case Labelled(_, _, label):
            return label
        case Scored(_, _, score):
            return f"{score:g}"
        case Tagged(_, tags):
            return " ".join(tags)
        case Choice(_, options, answer):
            return options[answer]
        case Similar(_, positive, _):
            return positive


def ranked_row(example: Example, tokenizer: PreTrainedTokenizerBase) -> MarkedRow:
    """Answers one after another, behind what they share, each with its place, or how often it is found the best."""
    pieces: list[tuple[str, bool]] = []
    ends, answer = np.cumsum([len(part.tokens_T) for part in example.parts]), 0
    for part, end in zip(example.parts, ends.tolist(), strict=True):
        text = str(tokenizer.decode(part.tokens_T.tolist(), clean_up_tokenization_spaces=False))
        if answer == example.num_learned or example.source_N[answer] >= end:
            pieces.append((text, False))
            continue
        share = float(example.weight_N[answer])
        told = f"{share:.2g} of votes" if 0 < share < 1 else f"place {int(example.token_N[answer]) + 1}"
        pieces += [(f"{text} → ", False), (told, True), ("\n", False)]
        answer += 1
    return MarkedRow(example.origin, tuple(pieces), example.num_tokens, example.num_learned)


def marked_row(example: Example, tokenizer: PreTrainedTokenizerBase, *, in_place: bool = False) -> MarkedRow:
    """The row's text in pieces that are learned or not, in turn; for an encoder-decoder the source first.

    in_place: what is learned in its own place is shown there, rather than what hides it.
    """
    tokens_P, learned_P = tokens_of(example), is_learned(example)
    if in_place:
        tokens_P[example.source_N], learned_P[:] = example.token_N, False
        learned_P[example.source_N] = True
    pieces: list[tuple[str, bool]] = []
    if example.source_S is not None:
        source = tokenizer.decode(example.source_S.tolist(), clean_up_tokenization_spaces=False)
        pieces.append((f"{source} → ", False))
    tokens: list[int] = tokens_P.tolist()
    end, written = 0, ""
    for learned, run in groupby(learned_P.tolist()):
        end += len(list(run))
        # The growing text, not each run on its own: a tokenizer may drop the space before a first word.
        text = str(tokenizer.decode(tokens[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        pieces.append((text[len(written) :], learned))
        written = text
    return MarkedRow(example.origin, tuple(pieces), example.num_tokens, example.num_learned)


def marked_text(row: MarkedRow) -> str:
    """The row as plain text, what is learned in ⟦…⟧."""
    return "".join(f"⟦{text}⟧" if learned else text for text, learned in row.pieces)


def tokens_of(example: Example) -> IntArray:
    """The tokens of the example's parts laid end to end, shape (P,)."""
    return np.concatenate([part.tokens_T for part in example.parts])


def is_learned(example: Example) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """For each token of the example's parts laid end to end, whether it is learned, shape (P,).

    A target is the token after its source; after a part's last token that is the first token of each part that follows it.
    """
    starts = np.cumsum([0, *(len(part.tokens_T) for part in example.parts)])
    tokens_P, learned_P = tokens_of(example), np.zeros(starts[-1], dtype=np.bool_)
    targets = set(zip(example.source_N.tolist(), example.token_N.tolist(), strict=True))
    for source, token in targets:
        part = int(np.searchsorted(starts, source, side="right")) - 1
        after = [source + 1]
        if source + 1 == starts[part + 1]:
            after = [int(starts[i]) for i, other in enumerate(example.parts) if other.parent == part]
        for place in after:
            learned_P[place] |= tokens_P[place] == token
    return learned_P
