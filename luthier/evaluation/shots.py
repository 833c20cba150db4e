"""Examples shown before a question: what a base model can do when it is told how, without any training.

In a chat they are earlier turns, behind the row's own system message; in plain text they stand before the prompt, a blank line
after each. Only the row's own answer counts for the loss. Brown et al. 2020, https://arxiv.org/abs/2005.14165.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from luthier.data.rendering import Renderer
from luthier.errors import UsageError
from luthier.evaluation.contamination import text_of
from luthier.types import Completion, Conversation, Message, Record

_TRIED = 20
"""Of how many rows a shot is looked for, for each that is wanted."""


def choose_shots(
    records: Sequence[Record], num: int, seed: int, measured: Collection[str | None]
) -> tuple[Record, ...]:
    """So many rows that ask something and answer it, drawn from the training rows; none that is measured itself.

    Raises: UsageError, if there are too few.
    """
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(len(records), generator=generator)[: _TRIED * num].tolist()
    chosen: list[Record] = []
    for place in places:
        record = records[place]
        if len(chosen) < num and _is_shot(record) and text_of(record) not in measured:
            chosen.append(record)
    if len(chosen) < num:
        raise UsageError(
            f"The training rows give {len(chosen)} examples to show, and {num} are wanted.",
            "Lower --shots; rows of plain text, and those that are measured themselves, are not shown.",
        )
    return tuple(chosen)


def with_shots(record: Record, shots: Sequence[Record], renderer: Renderer) -> Record:
    """The record behind the shots; plain text stays as it is."""
    conversation = renderer.as_conversation(record)
    if conversation is not None:
        turns = tuple(
            replace(message, learn=False)
            for shot in shots
            for message in _turns(shot, renderer)
            if message.role != "system"
        )
        own = conversation.messages
        lead = 1 if own and own[0].role == "system" else 0
        return replace(conversation, messages=(*own[:lead], *turns, *own[lead:]))
    if isinstance(record, Completion):
        before = "".join(f"{shot.prompt}{shot.completion}\n\n" for shot in shots if isinstance(shot, Completion))
        return replace(record, prompt=before + record.prompt)
    return record


def _is_shot(record: Record) -> bool:
    if isinstance(record, Completion):
        return bool(record.completion.strip())
    return isinstance(record, Conversation) and record.messages[-1].role == "assistant"


def _turns(shot: Record, renderer: Renderer) -> tuple[Message, ...]:
    conversation = renderer.as_conversation(shot)
    return () if conversation is None else conversation.messages
