"""What is to be traced of a recipe, and the batches that its rows come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from luthier.data.apart import laid_apart
from luthier.data.batches import StepBatches, cut_batches
from luthier.data.facts import facts_of, remade
from luthier.data.mixture import Mixture
from luthier.data.placeholders import with_placeholders
from luthier.methods import Attachment, Method
from luthier.models.heads import Head
from luthier.models.language_model import FastModel, LanguageModel
from luthier.models.trunk import DTYPES
from luthier.objectives import Objective
from luthier.planner.beside import Other
from luthier.planner.packed import PackedBase
from luthier.planner.scorers import Scorer
from luthier.rewarded import num_rollout_steps
from luthier.rlhf import RolloutObjective
from luthier.rlhf.pretraining import PRETRAINING, Texts
from luthier.training.settings import TrainingSettings
from luthier.training.trunk import keeps_trunk, kept_bytes
from luthier.types import Batch, Example

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Work:
    """What is to be traced: all that decides the bytes of a step.

    rows: those that train; where the model writes the answers itself, its prompts. held_out: the held-out ones. texts: of
    pre-training, which rollouts mix in. draws: whether rows are drawn anew in each epoch. is_divided: whether ranks share weights and
    gradients, so that each gradient goes to them as soon as it is there. device: where steps are taken for real.
    """

    config: PreTrainedConfig
    dtype: torch.dtype
    fast: FastModel
    method: Method
    objective: Objective
    training: TrainingSettings
    quantization: PackedBase | None
    head: Head | None
    rows: Sequence[Example]
    workers: int
    seed: int
    shares_prefix: bool = True
    autocast: torch.dtype | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    num_new_tokens: int = 0
    mixture: Mixture | None = None
    others: tuple[Other, ...] = ()
    scorers: tuple[Scorer, ...] = ()
    held_out: Sequence[Example] = ()
    texts: Texts | None = None
    draws: bool = False
    is_divided: bool = False
    device: torch.device = _CPU

    @property
    def prompts_per_step(self) -> int:
        """Prompts whose answers an optimizer step learns from, where the model writes the answers itself."""
        return self.training.rows_per_step or 8


@dataclass(frozen=True)
class Load:
    """The heaviest micro-batch of the run's first epoch, and what the whole run computes.

    rows: its examples are among these, without placeholders. texts: the heaviest micro-batch of texts that are learned besides.
    trunk_bytes: what is kept on the disk of what frozen lower layers give.
    """

    batch: Batch
    rows: Sequence[Example]
    num_steps: int
    run_tokens: int
    texts: Batch | None = None
    trunk_bytes: int = 0


def load_of(work: Work, model: LanguageModel, attachment: Attachment) -> Load:
    """What the rows of a work come to."""
    if isinstance(work.objective, RolloutObjective):
        return _of_rollouts(work, work.objective, model, attachment)
    settings, placed = work.training, _placed(work.rows, attachment)
    shares = (
        work.shares_prefix
        and model.shares_tokens(attachment.adapter)
        and not (attachment.draws or work.objective.embedding_noise)
    )

    def batches(epochs: float, steps: int | None) -> StepBatches:
        return StepBatches(
            placed,
            rows_per_step=None if settings.tokens_per_step else settings.rows_per_step or 8,
            tokens_per_step=settings.tokens_per_step,
            budget=settings.tokens_per_micro_batch,
            workers=work.workers,
            layout=model.layout,
            pad_id=0,
            seed=work.seed,
            shares_prefix=shares,
            epochs=epochs,
            steps=steps,
            mixture=work.mixture,
        )

    epoch = batches(1.0, None)
    num_steps = batches(settings.epochs, settings.steps).num_steps
    tokens = epoch.tokens_of_epoch * num_steps // epoch.num_steps
    return Load(epoch.heaviest(), work.rows, num_steps, tokens, trunk_bytes=_trunk_bytes(work, model, attachment))


def _placed(rows: Sequence[Example], attachment: Attachment) -> Sequence[Example]:
    """Rows behind the placeholders for the method's virtual tokens."""
    if not attachment.num_virtual:
        return rows
    virtual = attachment.num_virtual, attachment.num_virtual_answer
    return remade(lambda row: with_placeholders(row, *virtual), rows)


def _trunk_bytes(work: Work, model: LanguageModel, attachment: Attachment) -> int:
    """What the trunk cache takes, as `open_trunk_cache` decides it; 0 where there is none."""
    settings, taps = work.training, attachment.taps
    if work.draws or work.objective.embedding_noise or not keeps_trunk(settings, attachment, len(work.rows)):
        return 0
    rows = chain(_placed(work.rows, attachment), _placed(work.held_out, attachment))
    count = kept_bytes(rows, taps, int(model.hf.config.hidden_size), DTYPES[settings.trunk_cache_dtype])
    return count if count <= settings.trunk_cache_gb * 1e9 else 0


def _of_rollouts(work: Work, objective: RolloutObjective, model: LanguageModel, attachment: Attachment) -> Load:
    """Of a step whose prompts are the longest ones, and whose answers are all as long as they may be."""
    settings, count = work.training, work.prompts_per_step
    budget, virtual = settings.tokens_per_micro_batch, attachment.num_virtual
    prompts = [work.rows[index] for index in longest_first(work.rows)[:count].tolist()]
    examples: list[Example] = []
    for prompt in prompts:
        room = max(budget - virtual, prompt.num_part_tokens + objective.max_new_tokens)
        for example in objective.imagined_within(prompt, room):
            fitting = laid_apart(example) if model.layout == "bucketed" else example
            examples.append(replace(fitting, document=len(examples)))
    placed = _placed(tuple(examples), attachment)
    batch = max(cut_batches(placed, budget, work.workers, model.layout, 0, False), key=lambda each: each.cost)
    num_steps = num_rollout_steps(objective, len(work.rows), count, settings)
    tokens = sum(example.num_real_tokens for example in examples)
    texts = None if work.texts is None else _texts(work, work.texts, model, attachment, len(examples))
    if work.texts is not None:
        tokens += round(work.texts.per_step * float(facts_of(work.texts.examples)["tokens"].mean()))
    return Load(batch, tuple(examples), num_steps, tokens * num_steps, texts)


def longest_first(rows: Sequence[Example]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The indices of rows, the longest first, shape (R,)."""
    order: np.ndarray[tuple[int], np.dtype[np.int64]] = np.argsort(
        -facts_of(rows)["tokens"].astype(np.int64), kind="stable"
    )
    return order


def _texts(work: Work, texts: Texts, model: LanguageModel, attachment: Attachment, first_document: int) -> Batch:
    """The heaviest micro-batch of the texts of a step, of the longest ones."""
    rows = [texts.examples[index] for index in longest_first(texts.examples)[: texts.per_step].tolist()]
    marked = tuple(
        replace(row, given={PRETRAINING: np.ones(len(row.token_N), np.float32)}, document=first_document + number)
        for number, row in enumerate(rows)
    )
    placed, budget = _placed(marked, attachment), work.training.tokens_per_micro_batch
    return max(cut_batches(placed, budget, work.workers, model.layout, 0, False), key=lambda each: each.cost)
