"""Continued pre-training: causal language modelling of plain text, every token learned.

loss = − Σ_n log p(y_n | what its document holds before it) / N over the N tokens of the optimizer step (Radford et al. 2018,
https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf, equation 1). Texts longer
than data.max_length are cut into pieces of near equal length. Many texts are computed as one row, each seeing itself
alone, with positions from 0: there is no padding, and nothing leaks from one text into another.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from luthier.objectives.sft import SFT
from luthier.types import ModelKind


class CLM(SFT):
    """Learn to write text as it stands."""

    kinds: ClassVar[tuple[ModelKind, ...]] = ("decoder",)
    splits: ClassVar[bool] = True
    learns_ends: ClassVar[bool] = False

    kind: Literal["clm"] = "clm"  # type: ignore[assignment]
