"""Prompt tuning: learn the embeddings of a few virtual tokens before the input, and nothing else.

Lester, Al-Rfou & Constant 2021, https://arxiv.org/abs/2104.08691:  the model reads [P; E] in place of the embeddings E of
the document, with P (V, D) the only thing that trains. The prompt is at positions 0 to V − 1; the document goes on at V.

It begins as random tokens of the vocabulary by default: rows far from the norm of real embeddings learn slowly, and in
peft's published runs (Llama-3.2-3B) this start gave 34 % on GSM8K where random rows gave 23 %. The paper's samples from the
5,000 most frequent tokens; ours, as peft's, from all. `random` is the paper's uniform ±0.5.

Merges: no. Deep backward: yes, to the input. Over 4 bits: yes. Identity at the start: no.
Trainable numbers: V · D.
Shapes: V virtual tokens, D width of the embedding.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from luthier.methods.contract import Kin, Traits
from luthier.methods.prompt_files import PromptForm
from luthier.methods.soft_prompts import RowSource, WordPromptMethod
from luthier.models.language_model import LanguageModel

PROMPT_FORM = PromptForm(title="prompt tuning", peft_type="PROMPT_TUNING", also_read=("P_TUNING",))


class PromptTuning(WordPromptMethod):
    """Embeddings of virtual tokens. `from` also takes what p-tuning came to, and trains its rows as they are."""

    family: ClassVar[Kin] = "soft-prompt"
    paper: ClassVar[str] = "Lester et al. 2021, https://arxiv.org/abs/2104.08691"
    count: ClassVar[str] = "V · D"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=False)
    default_lr: ClassVar[float] = 1e-2
    form: ClassVar[PromptForm] = PROMPT_FORM

    kind: Literal["prompt-tuning"] = "prompt-tuning"

    def source(self, model: LanguageModel, generator: torch.Generator) -> RowSource:
        """The rows themselves."""
        return RowSource(self.first_rows(model, generator))
