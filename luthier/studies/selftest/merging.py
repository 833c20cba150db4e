"""A model with the adapter in its weights says what it says with the adapter beside them."""

from __future__ import annotations

from luthier.studies.selftest.findings import Found, Measured, apart
from luthier.studies.selftest.subject import Subject, logprobs


def measure(subject: Subject) -> Found:
    """Before and after merging; the adapter is used up. It must change more than merging does, or nothing is shown."""
    model, attachment = subject.model, subject.attachment
    plain, beside = (logprobs(model, subject.batch, adapter) for adapter in (None, attachment.adapter))
    attachment.merge()
    off = apart(logprobs(model, subject.batch, None), beside)
    if off >= apart(plain, beside):
        fault = "log-probabilities: no nearer to those with the adapter than those without it"
        return [Measured("log-probabilities", None, subject.tolerance, fault)]
    return [Measured("log-probabilities", off, subject.tolerance)]
