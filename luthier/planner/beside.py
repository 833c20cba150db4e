"""The models beside a recipe's own, as its plan sees them: built without their numbers, asked of the batch that is planned for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from luthier.data.batches import evaluation_batches
from luthier.data.packing import collate
from luthier.methods import ADAPTER, Method
from luthier.methods.contract import Reference
from luthier.models.heads import Head
from luthier.models.language_model import FastModel, LanguageModel
from luthier.models.loading import Wishes
from luthier.models.outputs import KnownLogprobs, Outputs
from luthier.objectives.contract import Kept
from luthier.ops.imitation import KnownWords, likeliest_words
from luthier.planner.packed import PackedBase
from luthier.planner.skeleton import skeleton
from luthier.planner.tracker import Tracker, all_tensors
from luthier.training.companions import Companions, Speaker, Voice, by_document, kept_row_bytes
from luthier.types import Batch, Example

OTHERS = "other models"


@dataclass(frozen=True)
class Other:
    """A model beside the one that trains. method: of the adapter that it speaks under, if there is one. head: in place of words."""

    role: str
    config: PreTrainedConfig
    dtype: torch.dtype
    fast: FastModel
    quantization: PackedBase | None
    method: Method | None
    kept: Kept | None
    head: Head | None = None

    def speaker(self, device: torch.device) -> Speaker:
        """The model without its numbers, its adapter at work."""
        method = self.method
        wishes = Wishes() if method is None else Wishes(method.keeps_full, method.prepare_weights)
        model = skeleton(
            self.config,
            self.dtype,
            self.fast,
            head=self.head,
            quantization=self.quantization,
            wishes=wishes,
            device=device,
        )
        if method is not None:
            method.attach(model, ADAPTER, 0)
        return Speaker(model, None if method is None else ADAPTER)

    def disk_bytes(self, rows: Sequence[Example]) -> int:
        """What is kept of what it says of rows."""
        return 0 if self.kept is None else kept_row_bytes(self.kept) * sum(row.num_learned for row in rows)


@dataclass(frozen=True)
class _Speaks(Voice):
    """A model that is asked of one batch, which is laid out for it."""

    speaker: Speaker
    batch: Batch

    def say(self, batch: Batch) -> Outputs:
        """What it says of that batch."""
        return self.speaker.of_batch(self.batch)


@dataclass(frozen=True)
class _Said(Voice):
    """Words that were kept, of any numbers."""

    kept: Kept
    num_words: int

    def say(self, batch: Batch) -> KnownWords:
        """Words as many as are kept."""
        count, device = len(batch.targets.token_N), batch.tokens_BT.device
        words_NK = torch.arange(self.kept.count, device=device).expand(count, -1)
        even = -torch.tensor(float(self.kept.count + 1)).log()
        return KnownWords(words_NK, even.to(device).expand(count, self.kept.count + 1), self.num_words)


@dataclass(frozen=True)
class _SaidBefore(Voice):
    """Log-probabilities that were kept, of any numbers."""

    def say(self, batch: Batch) -> KnownLogprobs:
        """One for each target."""
        return KnownLogprobs(-torch.ones(len(batch.targets.token_N), device=batch.tokens_BT.device))


def reference_of(reference: Reference | None, model: LanguageModel, rows: Sequence[Example], batch: Batch) -> Voice:
    """What the recipe's own model said of a batch as it began: asked under its reference, or kept."""
    if reference is None:
        return _SaidBefore()
    return _Speaks(speaker := Speaker(model, reference.adapter), _laid_out(speaker, rows, batch))


def _laid_out(speaker: Speaker, rows: Sequence[Example], batch: Batch) -> Batch:
    found = by_document(rows)
    return collate([speaker.placed(found[row]) for row in batch.rows], speaker.model.layout, 0)


def at_hand(others: Sequence[Other], device: torch.device) -> dict[str, Speaker]:
    """Those that stay in memory while the recipe's own model trains, by their roles."""
    return {other.role: other.speaker(device) for other in others if other.kept is None}


def voices_of(
    others: Sequence[Other],
    speakers: Mapping[str, Speaker],
    model: LanguageModel,
    rows: Sequence[Example],
    batch: Batch,
) -> Companions:
    """What all of them say of a batch of these rows."""
    voices = dict[str, Voice]()
    for other in others:
        if other.kept is not None:
            num_words = min(int(other.config.vocab_size), int(model.hf.config.vocab_size))
            voices[other.role] = _Said(other.kept, num_words)
            continue
        voices[other.role] = _Speaks(speakers[other.role], _laid_out(speakers[other.role], rows, batch))
    return Companions(voices)


def heaviest(speaker: Speaker, rows: Sequence[Example], budget: int) -> Batch:
    """The largest batch in which a model is asked once for all rows."""
    placed = [speaker.placed(row) for row in rows if row.num_learned]
    budget = max([budget, *(row.num_tokens for row in placed)])
    return max(evaluation_batches(placed, budget, 1, speaker.model.layout, 0), key=lambda batch: batch.cost)


@torch.no_grad()
def ask(speaker: Speaker, kept: Kept, batch: Batch, tracker: Tracker) -> None:
    """Have a model say what is kept of a batch, counted as that phase."""
    tracker.note(all_tensors(speaker.model.hf), OTHERS)
    tracker.begin_anew()
    with tracker.doing("passes of other models, before step 1", "other"):
        outputs = speaker.of_batch(batch)
        likeliest_words(
            outputs.hidden_ND,
            outputs.head.logits,
            kept.count,
            int(speaker.model.hf.config.vocab_size),
            kept.temperature,
        )
