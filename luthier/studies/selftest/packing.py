"""Rows computed together say what each says alone, and rows behind a beginning that they share what each says with its own."""

from __future__ import annotations

import numpy as np
import torch

from luthier.studies.selftest.findings import Found, Measured, apart
from luthier.studies.selftest.subject import Subject, batch_of, logprobs, make_rows, row_of, said
from luthier.types import Example

_SHARED = 9


def measure(subject: Subject) -> Found:
    """All rows in one batch against each in a batch of its own; the same with a beginning that all rows share."""
    model, adapter = subject.model, subject.attachment.adapter
    alone = [said(model, subject.attachment, batch_of(model, (row,))) for row in subject.rows]
    together = said(model, subject.attachment, subject.batch)
    summed = {name: torch.stack([row.gradient[name] for row in alone]).sum(0) for name in alone[0].gradient}
    found = [
        Measured(
            "log-probabilities",
            apart(together.logprob_N, torch.cat([row.logprob_N for row in alone])),
            subject.tolerance,
        ),
        Measured("gradient", apart(together.gradient, summed), subject.tolerance),
    ]
    if model.layout == "packed" and model.shares_tokens(adapter):
        rows = _with_one_beginning(subject)
        once = logprobs(model, batch_of(model, rows, shares_prefix=True), adapter)
        each = logprobs(model, batch_of(model, rows), adapter)
        found.append(Measured("a beginning that rows share", apart(once, each), subject.tolerance))
    return found


def _with_one_beginning(subject: Subject) -> tuple[Example, ...]:
    rows = make_rows(subject.model)
    beginning = rows[0].parts[0].tokens_T[:_SHARED]
    return tuple(
        row_of(subject.model, np.concatenate([beginning, row.parts[0].tokens_T]), number, _SHARED + 1)
        for number, row in enumerate(rows)
    )
