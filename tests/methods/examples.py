"""One small setting of every method, for the tests that hold for all of them. A new method adds its entry here."""

from __future__ import annotations

from luthier.methods import (
    IPT,
    WARP,
    AttentionFusion,
    Full,
    Ladder,
    LoRA,
    Method,
    PrefixTuning,
    PromptTuning,
    PTuning,
)

EXAMPLES: tuple[Method, ...] = (
    LoRA(rank=3, alpha=5),
    Full(),
    AttentionFusion(),
    Ladder(reduction=2),
    IPT(num_virtual_tokens=3, intrinsic=4, inner=8),
    PTuning(num_virtual_tokens=3, hidden=8),
    PrefixTuning(num_virtual_tokens=3),
    PromptTuning(num_virtual_tokens=3),
    WARP(num_virtual_tokens=3, classes=("w5", "w9")),
)

FAMILIES = ("llama", "gemma2", "gpt2", "gpt_neox", "opt", "phi3", "falcon-new")

REFUSED: dict[tuple[str, str], str] = {("prefix-tuning", "falcon-new"): "takes no learned prefix"}
"""(kind, family) → what the refusal says, where a family has no place for a method."""
