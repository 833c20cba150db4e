"""A run that was broken off and resumed from its files ends in the bits of one that was not."""

from __future__ import annotations

import torch

from luthier.methods import LoRA
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.studies.selftest.findings import Found, Measured, unlike
from luthier.studies.selftest.subject import Subject, attached
from luthier.studies.selftest.training import Trained, trained
from luthier.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

_STEPS, _BROKEN_AFTER, _ROWS = 4, 3, 3  # the break is within an epoch
_METHOD = LoRA(rank=4, alpha=8, dropout=0.1)


def measure(subject: Subject) -> Found:
    """Four steps with dropout, against the last of them taken from the checkpoint of the third as it is read back."""
    model, folder = subject.model, subject.folder

    def run(attachment: AdapterAttachment, resume_from: Checkpoint | None = None) -> Trained:
        budget = 2 * max(row.num_tokens for row in subject.rows)
        return trained(
            model, attachment, subject.rows, folder,
            steps=_STEPS, rows_per_step=_ROWS, budget=budget, resume_from=resume_from,
        )  # fmt: skip

    unbroken = run(attached(model, "unbroken", _METHOD))
    save_checkpoint(folder, next(each for each in unbroken.checkpoints if each.step == _BROKEN_AFTER))
    resumed = run(attached(model, "resumed", _METHOD, noise=1.0), load_checkpoint(folder))
    losses = [torch.tensor(each.steps[-1]["loss"], dtype=torch.float64) for each in (resumed, unbroken)]
    # on a GPU some sums have no fixed order
    tolerance = 0.0 if model.device.type == "cpu" else subject.tolerance
    return [
        Measured("trained numbers", unlike(resumed.tensors, unbroken.tensors), tolerance),
        Measured("loss of the last step", unlike(losses[0], losses[1]), tolerance),
    ]
