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


def uncached_answer(model: LanguageModel, prompt: tuple[int, ...], adapter: str | None, count: int) -> tuple[int, ...]:
    """The greedy new tokens after a prompt, each with all before it computed anew."""
    answer: tuple[int, ...] = ()
    for _ in range(count):
        answer += _next_token(model, prompt, answer, adapter)
    return answer


def _next_token(
    model: LanguageModel, prompt: tuple[int, ...], begun: tuple[int, ...], adapter: str | None
) -> tuple[int, ...]:
    """The greedy token after an answer begun."""
    if model.answer_start is None:
        return answers(model, [prompt + begun], adapter, 1)[0]
    tokens = np.array([model.answer_start, *begun])
    example = Example(
        parts=(Part(tokens),),
        source_N=np.full(VOCABULARY, len(begun)),
        token_N=np.arange(VOCABULARY),
        weight_N=np.ones(VOCABULARY, dtype=np.float32),
        sample_N=np.zeros(VOCABULARY, dtype=np.int64),
        document=0,
        origin=Origin("prompt", 1),
        source_S=np.array(prompt),
    )
    placed = with_placeholders(example, model.num_virtual(adapter), model.num_virtual_answer(adapter))
    return (int(model.forward(collate([placed], model.layout, 0), adapter).logprob_N.argmax()),)
