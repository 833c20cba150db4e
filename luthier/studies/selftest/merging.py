"""A model with the adapter in its weights says what it says with the adapter beside them."""

from __future__ import annotations

from luthier.studies.selftest.findings import Found, Measured, apart
from luthier.studies.selftest.subject import Subject, logprobs


def measure(subject: Subject) -> Found:
    """Before and after merging; the adapter is used up. What the adapter changes is far more than the tolerance."""
    model, attachment = subject.model, subject.attachment
    beside = logprobs(model, subject.batch, attachment.adapter)
    attachment.merge()
    return [Measured("log-probabilities", apart(logprobs(model, subject.batch, None), beside), subject.tolerance)]
