"""The log-probabilities that the engine gives for what it writes are those that training gives for the same tokens."""

from __future__ import annotations

import numpy as np
import torch

from luthier.generation.engine import generate
from luthier.generation.requests import Completed, Request
from luthier.generation.settings import Sampling
from luthier.studies.selftest.findings import Found, Lacking, Measured, apart
from luthier.studies.selftest.subject import Subject, batch_of, logprobs
from luthier.types import Example, Origin, Part

_SAMPLING = Sampling(max_new_tokens=6, temperature=1.0)
_PROMPTS = 4


def measure(subject: Subject) -> Found:
    """A few answers of drawn tokens, by the engine's cache one token at a time, and by one pass over each as a whole."""
    model, adapter = subject.model, subject.attachment.adapter
    if model.anatomy.family.kind == "encoder":
        return Lacking("an encoder does not write")
    prompts = [_read(row) for row in subject.rows[:_PROMPTS]]
    requests = [
        Request(prompt, _SAMPLING.model_copy(update={"seed": number}), adapter, top_logprobs=0)
        for number, prompt in enumerate(prompts)
    ]
    answers = generate(model, requests)
    told = torch.tensor([each.logprob for answer in answers for each in answer.logprobs or ()])
    rows = tuple(
        _row(prompt, answer, model.answer_start, number)
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    )
    learned = logprobs(model, batch_of(model, rows), adapter).cpu()
    return [Measured(f"log-probabilities of {len(learned)} tokens", apart(told, learned), subject.tolerance)]


def _read(row: Example) -> tuple[int, ...]:
    tokens_T = row.parts[0].tokens_T if row.source_S is None else row.source_S
    return tuple(tokens_T.tolist())


def _row(prompt: tuple[int, ...], answer: Completed, answer_start: int | None, number: int) -> Example:
    """The answer as something to learn after its prompt."""
    said_N = np.asarray(answer.tokens, dtype=np.int64)
    prompt_S = np.asarray(prompt, dtype=np.int64)
    if answer_start is None:
        tokens_T, source_N, source_S = (
            np.concatenate([prompt_S, said_N]),
            len(prompt) - 1 + np.arange(len(said_N)),
            None,
        )
    else:
        tokens_T, source_N, source_S = np.concatenate([[answer_start], said_N[:-1]]), np.arange(len(said_N)), prompt_S
    return Example(
        parts=(Part(tokens_T),),
        source_N=source_N,
        token_N=said_N,
        weight_N=np.ones(len(said_N), dtype=np.float32),
        sample_N=np.zeros(len(said_N), dtype=np.int64),
        document=number,
        origin=Origin("self-test", number + 1),
        source_S=source_S,
    )
