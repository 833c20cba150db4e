"""A head that shares its weight with the embedding: what is merged into the head leaves the embedding as it was."""

from __future__ import annotations

from luthier.methods import LoRA
from luthier.studies.selftest.findings import Found, Lacking, Measured, apart, unlike
from luthier.studies.selftest.subject import Subject, attached, logprobs


def measure(subject: Subject) -> Found:
    """An adapter at the head alone, before and after merging, and the embedding bit for bit."""
    model = subject.model
    if not model.anatomy.is_head_tied:
        return Lacking("the head does not share its weight with the embedding")
    attachment = attached(model, "head", LoRA(rank=2, targets=(model.anatomy.head.rsplit(".", 1)[-1],)))
    embedding = model.hf.get_submodule(model.anatomy.embedding).get_parameter("weight")
    before, as_it_was = logprobs(model, subject.batch, "head"), embedding.detach().clone()
    attachment.merge()
    now = model.hf.get_submodule(model.anatomy.embedding).get_parameter("weight")
    return [
        Measured("log-probabilities", apart(logprobs(model, subject.batch, None), before), subject.tolerance),
        Measured("embedding", unlike(now, as_it_was), 0.0),
    ]
