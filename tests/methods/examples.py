"""One small setting of every method, for the tests that hold for all of them. A new method adds its entry here."""

from __future__ import annotations

from luthier.methods import AttentionFusion, BitFit, Full, Ladder, LNTuning, LoRA, Method, Rows, TopLayers

EXAMPLES: tuple[Method, ...] = (
    LoRA(rank=3, alpha=5),
    Full(),
    BitFit(),
    LNTuning(),
    Rows(tokens=tuple(range(40, 20, -1)), linear_rows=0.2),
    TopLayers(),
    AttentionFusion(),
    Ladder(reduction=2),
)

FAMILIES = ("llama", "gemma2", "gpt2", "gpt_neox", "opt", "phi3", "falcon-new")

REFUSED: dict[tuple[str, str], str] = {
    ("bitfit", "gemma2"): "no bias",
    ("bitfit", "phi3"): "no bias",
}
"""(kind, family) → what the refusal says, where a family has no place for a method."""
