"""One small setting of every method, for the tests that hold for all of them. A new method adds its entry here."""

from __future__ import annotations

from luthier.methods import (
    BOFT,
    IA3,
    IPT,
    OFT,
    WARP,
    AdaLoRA,
    AdaMix,
    AttentionFusion,
    BitFit,
    Compacter,
    DoRA,
    Full,
    Houlsby,
    KronA,
    KronAB,
    Ladder,
    LNTuning,
    LoHa,
    LoKr,
    LoRA,
    Method,
    Parallel,
    Pfeiffer,
    PiSSA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    Rows,
    TopLayers,
    VeRA,
)
from luthier.methods.adamix import AdapterHost

EXAMPLES: tuple[Method, ...] = (
    LoRA(rank=3, alpha=5),
    Full(),
    BitFit(),
    LNTuning(),
    Rows(tokens=tuple(range(40, 20, -1)), linear_rows=0.2),
    TopLayers(),
    AdaMix(host=AdapterHost(width=6), experts=3),
    Compacter(width=8, rank=2),
    Houlsby(width=6, scale=1.5),
    Parallel(width=7),
    Pfeiffer(width=5),
    AttentionFusion(),
    Ladder(reduction=2),
    AdaLoRA(init_rank=4, target_rank=4, alpha=32),  # no cuts: a layer that lost all ranks would not have moved
    DoRA(rank=3, alpha=5),
    PiSSA(rank=3, alpha=5),
    VeRA(rank=6),
    BOFT(block_size=4, factors=2),
    IA3(),
    KronA(scale=2.5),
    KronAB(scale=2.5, residual=True),
    LoHa(rank=3, alpha=5),
    LoKr(rank=2, alpha=5),
    OFT(block_size=8),
    IPT(num_virtual_tokens=3, intrinsic=4, inner=8),
    PTuning(num_virtual_tokens=3, hidden=8),
    PrefixTuning(num_virtual_tokens=3),
    PromptTuning(num_virtual_tokens=3),
    WARP(num_virtual_tokens=3, classes=("w5", "w9")),
)

FAMILIES = ("llama", "gemma2", "gpt2", "gpt_neox", "opt", "phi3", "falcon-new")
ENCODERS = ("bert", "roberta")
"""Families that read whole texts: their head is over classes, and its last layer is new."""

REFUSED: dict[tuple[str, str], str] = {
    ("bitfit", "gemma2"): "no bias",
    ("bitfit", "phi3"): "no bias",
    ("bitfit", "t5"): "no bias",
    ("bitfit", "t5-gated"): "no bias",
    ("prefix-tuning", "falcon-new"): "takes no learned prefix",
    ("warp", "bert"): "a head for classes takes the place of",
    ("warp", "roberta"): "a head for classes takes the place of",
}
"""(kind, family) → what the refusal says, where a family has no place for a method."""
