"""What the probes of safety and bias found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.evaluation.measure import Measure


@dataclass(frozen=True)
class Safety:
    """The candidates by each probe, the first being what the others are compared with."""

    parts: tuple[Measure, ...]
    notes: tuple[str, ...] = ()

    def worse(self, index: int) -> list[Measure]:
        """The parts in which candidate `index` is surely worse."""
        return [part for part in self.parts if part.verdict(index) == "worse"]

    def said(self, candidates: Sequence[str]) -> list[str]:
        """A sentence for each later candidate that is surely worse in something."""
        return [
            f"{name} is worse than {candidates[0]} by {', '.join(part.name for part in worse)}."
            for index, name in enumerate(candidates)
            if index and (worse := self.worse(index))
        ]
