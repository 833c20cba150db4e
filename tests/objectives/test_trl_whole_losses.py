"""The whole losses of CPO and ORPO, their plain parts too, as TRL's trainers compute them from tokens: values and gradients.

TRL's plain part is the mean over all tokens of a batch, ours over pairs of each one's mean, as both papers have it. So theirs are
asked for one pair at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from bigrams import Bigram
from near import assert_near
from torch import Tensor

from luthier.data.packing import collate
from luthier.models.outputs import Outputs
from luthier.objectives import CPO, ORPO
from luthier.objectives.preference import PreferenceObjective
from luthier.types import Origin, Rendered

pytestmark = pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
NUM_WORDS = 24
ROWS = [([5, 6, 7, 8], [9, 10, 11], [12, 13]), ([20, 21], [22], [2, 23, 4, 15]), ([3, 1, 2], [23, 4], [5])]
"""Prompts, the better answers, and the worse ones."""


def answer(prompt: list[int], words: list[int]) -> Rendered:
    tokens_T = np.array([*prompt, *words], dtype=np.int64)
    return Rendered(tokens_T, (np.arange(len(tokens_T)) >= len(prompt)).astype(np.float32))


def ours(objective: PreferenceObjective, model: Bigram) -> Tensor:
    """The mean over all pairs."""
    rows = [
        objective.example(replace(answer(prompt, better), beside=(answer(prompt, worse),)), number, Origin("rows", 1))
        for number, (prompt, better, worse) in enumerate(ROWS)
    ]
    outputs = model.says(collate(rows, "packed", 0))
    return objective.loss_sum(cast(Outputs, outputs)) / len(ROWS)


def batch_of(prompt: list[int], better: list[int], worse: list[int]) -> dict[str, Tensor]:
    """A pair as TRL's collator gives it."""
    batch = {}
    for side, words in (("chosen", better), ("rejected", worse)):
        batch[f"{side}_input_ids"] = torch.tensor([[*prompt, *words]])
        batch[f"{side}_attention_mask"] = torch.ones(1, len(prompt) + len(words), dtype=torch.long)
        batch[f"{side}_labels"] = torch.tensor([[*[-100] * len(prompt), *words]])
    return batch


def theirs(trainer_class: Any, model: Bigram, **settings: Any) -> Tensor:
    """The mean of TRL's losses of each pair alone."""
    trainer = trainer_class.__new__(trainer_class)
    accelerator = SimpleNamespace(device="cpu", gather_for_metrics=lambda each: each)
    vars(trainer).update(accelerator=accelerator, is_encoder_decoder=False, aux_loss_enabled=False, **settings)
    losses: Sequence[Tensor] = [trainer.get_batch_loss_metrics(model, batch_of(*row))[0] for row in ROWS]
    return torch.stack(list(losses)).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_cpo_with_its_plain_part_is_trls(alpha: float, smoothing: float) -> None:
    from trl.experimental.cpo import CPOTrainer

    model = Bigram(NUM_WORDS, seed=1)
    found = ours(CPO(beta=0.2, alpha=alpha, label_smoothing=smoothing), model)
    expected = theirs(
        CPOTrainer, model, pad_token_id=0, loss_type="sigmoid", beta=0.2, alpha=0.0, cpo_alpha=alpha,
        label_smoothing=smoothing,
    )  # fmt: skip
    assert_near(found, expected)
    assert_near(model.slope(found), model.slope(expected))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpo_with_its_plain_part_over_prompt_and_answer_is_trls(beta: float) -> None:
    from trl.experimental.orpo import ORPOTrainer

    model = Bigram(NUM_WORDS, seed=2)
    found = ours(ORPO(beta=beta), model)
    expected = theirs(ORPOTrainer, model, padding_value=0, beta=beta)
    assert_near(found, expected)
    assert_near(model.slope(found), model.slope(expected))
