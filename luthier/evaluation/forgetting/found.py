"""What the forgetting probe found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.evaluation.measure import Measure


@dataclass(frozen=True)
class Forgetting:
    """What candidates know beyond the rows, the first being what the others are compared with.

    parts: how well each predicts general text and general answers (nats a token), and how many questions it answers.
    """

    parts: tuple[Measure, ...]
    notes: tuple[str, ...] = ()

    def lost(self, index: int) -> list[Measure]:
        """The parts in which candidate `index` is surely worse by more than the margin."""
        return [part for part in self.parts if part.is_lost(index)]

    def said(self, index: int) -> str:
        """Whether candidate `index` kept what it knew, in words; for one that lost nothing for sure."""
        open_ones = [part.name for part in self.parts if not part.is_kept(index)]
        if not open_ones:
            return "what it knew is kept"
        return f"whether it kept what it knew is unclear from {', '.join(open_ones)}"

    def verdict(self, index: int) -> str:
        """forgot, kept or unclear."""
        if self.lost(index):
            return "forgot"
        return "kept" if all(part.is_kept(index) for part in self.parts) else "unclear"

    def verdicts(self, candidates: Sequence[str]) -> dict[str, str]:
        """The same for each later candidate."""
        return {name: self.verdict(index) for index, name in enumerate(candidates) if index}
