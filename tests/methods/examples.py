"""One small setting of every method, for the tests that hold for all of them. A new method adds its entry here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.quantized import quantized_for
from models.tiny import CLASSES, ENCODER_DECODERS, Purpose, purpose_of, tiny_model
from models.tuned import quiet, randomize

from luthier.methods import (
    BOFT,
    IA3,
    IPT,
    MAM,
    OFT,
    WARP,
    AdaLoRA,
    AdaMix,
    AdapterFusion,
    AttentionFusion,
    BitFit,
    Compacter,
    DoRA,
    Full,
    Houlsby,
    KronA,
    KronAB,
    Ladder,
    LeTS,
    LNTuning,
    LoftQ,
    LoHa,
    LoKr,
    LoRA,
    LoReFT,
    Method,
    Parallel,
    Pfeiffer,
    PiSSA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    Rows,
    Stack,
    TopLayers,
    UniPELT,
    VeRA,
)
from luthier.methods.adamix import AdapterHost
from luthier.models.heads import ClassHead
from luthier.models.language_model import LanguageModel

EXAMPLES: tuple[Method, ...] = (
    LoRA(rank=3, alpha=5),
    Full(),
    BitFit(),
    LNTuning(),
    Rows(tokens=tuple(range(40, 20, -1)), linear_rows=0.2),
    TopLayers(),
    AdaMix(host=AdapterHost(width=6), experts=3),
    AdapterFusion(adapters=("one", "two")),
    Compacter(width=8, rank=2),
    Houlsby(width=6, scale=1.5),
    Parallel(width=7),
    Pfeiffer(width=5),
    AttentionFusion(),
    Ladder(reduction=2),
    LeTS(width=6, density=0.1, choices=("reuse", "compute"), prune_steps=2),
    AdaLoRA(init_rank=4, target_rank=4, alpha=32),  # no cuts: a layer that lost all ranks would not have moved
    DoRA(rank=3, alpha=5),
    PiSSA(rank=3, alpha=5),
    LoftQ(rank=3, alpha=5),
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
    LoReFT(rank=3, first=1, last=0),  # the one token that stays where it is as a prompt grows by what was answered
    MAM(prefix=PrefixTuning(num_virtual_tokens=3), adapter=Parallel(width=7)),
    UniPELT(
        lora=LoRA(rank=3, alpha=5, targets=("role:query", "role:value")),
        prefix=PrefixTuning(num_virtual_tokens=3),
        adapter=Pfeiffer(width=5),
    ),
    Stack(
        parts=(
            LoRA(rank=3, alpha=5, targets=("role:query", "role:value")),
            PromptTuning(num_virtual_tokens=2),
            Houlsby(width=6, sublayers=("feedforward",)),
            LoReFT(rank=2, first=1, last=0),
        )
    ),
)

FAMILIES = ("llama", "gemma2", "gpt2", "gpt_neox", "opt", "phi3", "falcon-new")
ENCODERS = ("bert", "roberta")
"""Families that read whole texts: their head is over classes, and its last layer is new."""

_ONE_OF_EACH_GROUP = ("lora", "full", "ln-tuning", "pfeiffer", "ladder", "ia3", "prompt-tuning")
_ONE_OF_EACH_OVER_EXPERTS = ("lora", "full", "ln-tuning", "parallel", "attention-fusion", "ia3", "prompt-tuning")

TRIED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("mistral", "qwen2", "qwen3", "gemma", "phi"), _ONE_OF_EACH_GROUP),
    **dict.fromkeys(("mixtral", "qwen3_moe"), _ONE_OF_EACH_OVER_EXPERTS),
    "bloom": (
        "lora", "full", "bitfit", "top-layers", "pfeiffer", "ladder", "lets", "ia3", "prompt-tuning", "loreft",
    ),
    "distilbert": ("lora", "full", "bitfit", "houlsby", "ladder", "lets", "prefix-tuning", "warp"),
    "deberta": ("lora", "full", "ln-tuning", "parallel", "attention-fusion", "ladder", "oft", "ia3", "p-tuning", "stack"),
    "modernbert-mean": (
        "lora", "full", "ln-tuning", "rows", "parallel", "ladder", "dora", "prompt-tuning", "unipelt", "warp", "loreft",
    ),
    "qwen2_moe": (
        "lora", "full", "ln-tuning", "rows", "adapter-fusion", "houlsby", "parallel", "dora", "loftq", "vera", "boft", "ia3", "krona", "lokr", "oft", "adalora", "prefix-tuning", "loreft", "unipelt", "attention-fusion",
    ),
}  # fmt: skip
"""Family → the methods that it is tried with: some of each kind, and those that meet what is its own.

Its own are, of BLOOM, fused projections in groups, a residual that the attention adds itself, and a norm behind the embedding;
of DistilBERT names of its own in the config and in the head; of DeBERTa the table of distances, which projections and a
norm read; of ModernBERT fused projections in blocks, a window, a first layer without a norm, and a mean in the head's place; of
Qwen2-MoE experts, routers, and a shared expert beside them.
"""

REFUSED: dict[tuple[str, str], str] = {
    ("bitfit", "gemma2"): "no bias",
    ("bitfit", "phi3"): "no bias",
    ("bitfit", "t5"): "no bias",
    ("bitfit", "t5-gated"): "no bias",
    ("bitfit", "qwen2_moe"): "no bias",
    ("ladder", "qwen2_moe"): "mixtures of experts",
    ("krona-b", "qwen2_moe"): "mixtures of experts",
    ("prefix-tuning", "falcon-new"): "takes no learned prefix",
    ("mam", "falcon-new"): "takes no learned prefix",
    ("unipelt", "falcon-new"): "takes no learned prefix",
    **{
        (kind, name): "takes no learned prefix"
        for kind in ("prefix-tuning", "mam", "unipelt")
        for name in ("bloom", "deberta")
    },
    ("bitfit", "modernbert"): "no bias",
    ("lets", "modernbert"): "positions of its own",
    ("lets", "deberta"): "positions of its own",
}
"""(kind, family) → what the refusal says, where a family has no place for a method."""


def ready(method: Method, family: str, new_folder: Callable[[], Path], purpose: Purpose | None = None) -> Method:
    """The example as it fits a family and what its head is over: with the adapters that it names made in a new folder, without words it does not need."""
    if isinstance(method, LeTS):
        return fitting(method, family)
    if isinstance(method, WARP) and (purpose or purpose_of(family)) != "words":
        return method.model_copy(update={"classes": None})
    if not isinstance(method, AdapterFusion):
        return method
    folder = new_folder()
    for seed, (adapter, part) in enumerate(zip(method.adapters, (Houlsby(width=4), Pfeiffer(width=3)), strict=True)):
        attachment = part.attach(tiny_model(family), "default", seed)
        randomize(attachment, 0.2)
        (folder / adapter).mkdir()
        attachment.write(folder / adapter, quiet)
    return method.with_paths(lambda path: str(folder / path))


def fitting(method: LeTS, family: str) -> LeTS:
    """The same choices again and again, for as many layers as there are to choose for in the tiny model of a family."""
    count = 3 if family in ENCODER_DECODERS else 2
    choices = None if method.choices is None else (method.choices * count)[:count]
    return method.model_copy(update={"choices": choices})


def model_for(method: Method, family: str) -> LanguageModel:
    """A tiny model of a family with the head that a recipe with this method has it loaded with."""
    reads_mask = purpose_of(family) == "classes" and method.class_head(ClassHead(CLASSES)).reads_mask
    model = tiny_model(family, purpose="mask" if reads_mask else None)
    return quantized_for(method, model) if method.needs_quantization else model
