"""An answer as rewards see it, and what it is worth to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.types import Conversation


@dataclass(frozen=True)
class Answer:
    """What is rewarded: the answer's text, the prompt's (of a chat, its last message), and the columns of the row.

    asked: the whole prompt; None: as `prompt` has it. tokens, prompt_tokens: as they were read and drawn; none where that is not
    known.
    """

    prompt: str
    text: str
    row: Mapping[str, Any]
    asked: Conversation | str | None = None
    prompt_tokens: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Worth:
    """reward: None where some part has none to give, and `fault` then says which and why. parts: each by its name, unweighted.

    spreads: of the parts that are ensembles, the standard deviation of their members' scores.
    """

    reward: float | None
    parts: Mapping[str, float | None]
    fault: str | None = None
    spreads: Mapping[str, float] = field(default_factory=dict)
