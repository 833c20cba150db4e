"""Answers of encoder-decoders: those of transformers' own loop, whatever is answered beside them."""

from __future__ import annotations

import random

import pytest
import torch
from models.tiny import ENCODER_DECODERS, plain_model, tiny_model
from models.tuned import randomize
from transformers import PreTrainedModel

from luthier.errors import DataError
from luthier.generation.engine import Request, generate, stream
from luthier.generation.settings import Sampling
from luthier.methods import LoRA, PrefixTuning, PromptTuning

GREEDY = Sampling(max_new_tokens=12)
DRAWN = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=12)


def prompts(number: int) -> list[tuple[int, ...]]:
    """Random prompts of different lengths."""
    draw = random.Random(3)
    return [tuple(draw.randrange(3, 61) for _ in range(length)) for length in draw.sample(range(1, 20), number)]


def _heed_sources(hf: PreTrainedModel) -> None:
    """Make what comes from the source weigh more, so that answers differ."""
    for name, parameter in hf.named_parameters():
        if "encoder_attn.out_proj.weight" in name or "EncDecAttention.o.weight" in name:
            parameter.mul_(8)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_greedy_answers_in_a_padded_batch_are_those_of_transformers(name: str) -> None:
    plain, model = plain_model(name), tiny_model(name)
    for hf in (plain, model.hf):
        _heed_sources(hf)
    answers = generate(model, [Request(prompt, GREEDY) for prompt in prompts(6)])
    for prompt, answer in zip(prompts(6), answers, strict=True):
        prompt_1S = torch.tensor([prompt])
        said_1T = plain.generate(
            prompt_1S,
            attention_mask=torch.ones_like(prompt_1S),
            max_new_tokens=12,
            do_sample=False,
            use_cache=False,  # theirs has as many layers as the encoder
        )
        assert answer.tokens == tuple(said_1T[0, 1:].tolist())
    assert len({answer.tokens for answer in answers}) > 1


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_a_drawn_answer_is_the_same_alone_in_a_batch_and_as_a_stream(name: str) -> None:
    model = tiny_model(name)
    requests = [Request(prompt, DRAWN.model_copy(update={"seed": i})) for i, prompt in enumerate(prompts(6))]
    together = generate(model, requests)
    assert [generate(model, [request])[0] for request in requests] == together
    assert "".join(stream(model, requests[0])) == together[0].text


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_requests_with_different_adapters_get_what_each_gets_alone(name: str) -> None:
    model = tiny_model(name)
    for adapter, method in (
        ("lora", LoRA(rank=2)),
        ("prompt", PromptTuning(num_virtual_tokens=3)),
        ("prefix", PrefixTuning(num_virtual_tokens=2)),
    ):
        randomize(method.attach(model, adapter, seed=0), 0.3)
    names = ("lora", None, "prompt", "prefix", "prompt", "prefix")
    requests = [Request(prompt, GREEDY, adapter) for prompt, adapter in zip(prompts(6), names, strict=True)]
    assert generate(model, requests) == [generate(model, [request])[0] for request in requests]


def test_source_and_answer_have_room_of_their_own_in_the_context() -> None:
    model = tiny_model("bart")
    fits = Request(tuple([7] * 64), Sampling(max_new_tokens=100))
    (answer,) = generate(model, [fits])
    assert answer.finish_reason == "stop" or len(answer.tokens) == 63
    with pytest.raises(DataError, match="65 tokens") as caught:
        generate(model, [Request(tuple([7] * 65), GREEDY)])
    assert "at least 1 token" in caught.value.mend
    (long,) = generate(tiny_model("t5"), [Request(tuple([7] * 700), GREEDY)])
    assert long.tokens
