"""What tiny models answer, with a cache and without."""

from __future__ import annotations

import numpy as np
from models.tiny import VOCABULARY

from luthier.data.packing import collate
from luthier.data.placeholders import with_placeholders
from luthier.generation.engine import Request, generate
from luthier.generation.settings import Sampling
from luthier.models.language_model import LanguageModel
from luthier.types import Example, Origin, Part


def answers(
    model: LanguageModel, prompts: list[tuple[int, ...]], adapter: str | None, count: int
) -> list[tuple[int, ...]]:
    """The greedy new tokens after each prompt."""
    sampling = Sampling(max_new_tokens=count)
    return [done.tokens for done in generate(model, [Request(prompt, sampling, adapter) for prompt in prompts])]


def uncached_answers(
    model: LanguageModel, prompts: list[tuple[int, ...]], adapter: str | None, counts: list[int]
) -> list[tuple[int, ...]]:
    """The greedy new tokens after each prompt, each with all before it computed anew, and as many as counts says."""
    answers: list[tuple[int, ...]] = [()] * len(prompts)
    for _ in range(max(counts)):
        unended = [row for row, count in enumerate(counts) if len(answers[row]) < count]
        begun = [(prompts[row], answers[row]) for row in unended]
        for row, token in zip(unended, _next_tokens(model, begun, adapter), strict=True):
            answers[row] += (token,)
    return answers


def _next_tokens(
    model: LanguageModel, begun: list[tuple[tuple[int, ...], tuple[int, ...]]], adapter: str | None
) -> list[int]:
    """The greedy token after each prompt and the answer begun to it."""
    if model.answer_start is None:
        return [tokens[0] for tokens in answers(model, [prompt + answer for prompt, answer in begun], adapter, 1)]
    virtual = model.num_virtual(adapter), model.num_virtual_answer(adapter)
    placed = [
        with_placeholders(_asking(prompt, (model.answer_start, *answer), document), *virtual)
        for document, (prompt, answer) in enumerate(begun)
    ]
    logprob_N = model.forward(collate(placed, model.layout, 0), adapter).logprob_N
    best: list[int] = logprob_N.view(len(begun), VOCABULARY).argmax(-1).tolist()
    return best


def _asking(prompt: tuple[int, ...], answer: tuple[int, ...], document: int) -> Example:
    """A row that asks for the log-probability of every word after an answer begun."""
    return Example(
        parts=(Part(np.array(answer)),),
        source_N=np.full(VOCABULARY, len(answer) - 1),
        token_N=np.arange(VOCABULARY),
        weight_N=np.ones(VOCABULARY, dtype=np.float32),
        sample_N=np.zeros(VOCABULARY, dtype=np.int64),
        document=document,
        origin=Origin("prompt", 1 + document),
        source_S=np.array(prompt),
    )
