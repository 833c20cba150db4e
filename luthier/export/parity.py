"""How far what files say is from what the trained model says, token by token, and how far it may be.

Both models read the same texts, teacher-forced, and are compared at every position by their logits, by the divergence
KL(trained ‖ written) = Σ_v p(v) (log p(v) − log q(v)) in nats, and by whether the likeliest token is the same.
Shapes: N positions, V vocabulary (or classes).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.errors import ExportMismatch

_TIES = 1e-4
"""Nats below which models differ so little that another likeliest token means only that two were all but equally likely."""


@dataclass(frozen=True)
class Limits:
    """What is allowed; None is not judged.

    difference: the largest logit difference by the largest logit. kl: nats, the mean over positions. agreement: the share of
    positions with the same likeliest token, at least.
    """

    difference: float | None
    kl: float | None
    agreement: float | None


EXACT = Limits(1e-4, 1e-5, 0.995)
"""For whole numbers, of which only the order of sums and one more rounding of each merged weight differ: on a model of 30 layers
that came to 3e-6 of the largest logit, and it grows with depth."""

_FROM_FINE_TO_COARSE = {
    "fp32": EXACT,
    "fp16": Limits(2e-2, 1e-3, 0.98),
    "bf16": Limits(1e-1, 1e-2, 0.95),
    "q8_0": Limits(1e-1, 1e-2, 0.95),
    "int8": Limits(None, 1e-1, None),
    "q4_0": Limits(None, 0.5, None),
    "nf4": Limits(None, 0.5, None),
    "fp4": Limits(None, 0.5, None),
}
OF_LLAMA_CPP = Limits(1e-2, 1e-3, 0.995)
"""For whole numbers in llama.cpp, which looks activations up in tables of fp16."""


@dataclass(frozen=True)
class Parity:
    """How two models compare over `num_tokens` positions: see `Limits`."""

    num_tokens: int
    difference: float
    kl: float
    agreement: float

    def within(self, limits: Limits) -> bool:
        """Whether it is all that is allowed, or less; what is not a number is not."""
        return (
            (limits.difference is None or self.difference <= limits.difference)
            and (limits.kl is None or self.kl <= limits.kl)
            and (limits.agreement is None or self.agreement >= limits.agreement or self.kl <= _TIES)
        )


def limits_of(*formats: str) -> Limits:
    """What is allowed where numbers went through these formats: what the coarsest of them costs."""
    order = list(_FROM_FINE_TO_COARSE)
    return _FROM_FINE_TO_COARSE[max(formats, key=order.index)]


def coarser(one: Limits, other: Limits) -> Limits:
    """What either of two allows."""
    return one if _slack(one) >= _slack(other) else other


def _slack(limits: Limits) -> float:
    return float("inf") if limits.kl is None else limits.kl


def compare(pairs: Iterable[tuple[Tensor, Tensor]]) -> Parity:
    """The parity of what a trained and a written model say, given text by text, each (N, V)."""
    count, same, kl, off, largest = 0, 0, 0.0, 0.0, 0.0
    for trained_NV, written_NV in pairs:
        p_NV, q_NV = trained_NV.double(), written_NV.double()
        if p_NV.shape != q_NV.shape:
            raise ExportMismatch(
                f"The written model gives {q_NV.shape[1]:,} logits for {q_NV.shape[0]:,} tokens, the run's "
                f"{p_NV.shape[1]:,} for {p_NV.shape[0]:,}.",
                "Use --to merged.",
            )
        log_p_NV, log_q_NV = p_NV.log_softmax(-1), q_NV.log_softmax(-1)
        count += len(p_NV)
        same += int((p_NV.argmax(-1) == q_NV.argmax(-1)).sum())
        kl += float((log_p_NV.exp() * (log_p_NV - log_q_NV)).sum())
        off = _larger(off, float((p_NV - q_NV).abs().max()))
        largest = max(largest, float(p_NV.abs().max()))
    return Parity(count, off / largest if largest else off, kl / max(count, 1), same / max(count, 1))


def _larger(one: float, other: float) -> float:
    """The larger of two numbers; NaN if either is."""
    return float(torch.tensor([one, other]).max())


def check(parity: Parity, limits: Limits, what: str, mend: str) -> None:
    """Raise ExportMismatch, saying by how much, if more differs than may. what: what was compared, over what, by whom."""
    if parity.within(limits):
        return
    told = [
        f"the largest logit difference is {parity.difference:.2g} of the largest logit{_at_most(limits.difference)}",
        f"KL is {parity.kl:.2g} nats a token{_at_most(limits.kl)}",
        f"the likeliest token agrees on {parity.agreement:.1%} of {parity.num_tokens:,} tokens"
        + ("" if limits.agreement is None else f" (at least {limits.agreement:.1%} wanted)"),
    ]
    raise ExportMismatch(f"{what} does not say what the run's model says: {'; '.join(told)}.", mend)


def _at_most(limit: float | None) -> str:
    return "" if limit is None else f" (at most {limit:g} allowed)"
