"""How a model is asked that learned by an objective: its prompts are laid out as the objective lays out its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Asking:
    """How prompts are read and answers shown.

    causal: whether a decoder reads a prompt left to right; else each of its tokens sees all of it.
    tokens: a prompt's tokens; None: as rows are written. shown_ids: special tokens that an answer's text keeps, because they
    say which part of it is what.
    """

    causal: bool = True
    tokens: Callable[[str], list[int]] | None = None
    shown_ids: frozenset[int] = frozenset()


AS_WRITTEN = Asking()
"""As rows are written, left to right."""
