"""One small setting of every method, for the tests that hold for all of them. A new method adds its entry here."""

from __future__ import annotations

from luthier.methods import (
    AdaMix,
    AttentionFusion,
    Compacter,
    Full,
    Houlsby,
    Ladder,
    LoRA,
    Method,
    Parallel,
    Pfeiffer,
)
from luthier.methods.adamix import AdapterHost

EXAMPLES: tuple[Method, ...] = (
    LoRA(rank=3, alpha=5),
    Full(),
    AdaMix(host=AdapterHost(width=6), experts=3),
    Compacter(width=8, rank=2),
    Houlsby(width=6, scale=1.5),
    Parallel(width=7),
    Pfeiffer(width=5),
    AttentionFusion(),
    Ladder(reduction=2),
)

FAMILIES = ("llama", "gemma2", "gpt2", "gpt_neox", "opt", "phi3", "falcon-new")

REFUSED: dict[tuple[str, str], str] = {}
"""(kind, family) → what the refusal says, where a family has no place for a method."""
