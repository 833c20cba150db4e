"""Training objectives: one file each, and their list."""

from luthier.objectives.contract import Objective
from luthier.objectives.sft import SFT

OBJECTIVES: tuple[type[Objective], ...] = (SFT,)

AnyObjective = SFT

__all__ = ["OBJECTIVES", "SFT", "AnyObjective", "Objective"]
