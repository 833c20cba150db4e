"""A cache that is bounded in bytes never holds more, gives the same answers, and says what would be enough."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from models.tiny import tiny_model
from tiny_model import write_tiny_model

from luthier.api import load_any_text
from luthier.errors import ResourceError
from luthier.generation.engine import Engine, Request, generate, stream
from luthier.generation.room import COPIES, PAGE_SIZE, token_bytes
from luthier.generation.settings import Sampling

PAGED, IN_BATCHES = ("llama", "gemma2", "gpt2"), ("falcon", "bloom", "t5", "bart")


def requests(count: int) -> list[Request]:
    """Prompts of different lengths, two answers to each."""
    return [
        Request(tuple(range(3, 4 + length)), Sampling(temperature=1.0, max_new_tokens=8, seed=length), num_answers=2)
        for length in range(count)
    ]


@pytest.mark.parametrize("name", [*PAGED, *IN_BATCHES])
def test_no_step_holds_more_than_the_bytes_that_were_given(name: str) -> None:
    model = tiny_model(name)
    each = token_bytes(model)
    limit = 5 * PAGE_SIZE * each if name in PAGED else 3 * COPIES * (PAGE_SIZE + 32) * each
    engine = Engine(model, cache_bytes=limit)
    asked = [engine.submit(request) for request in requests(16)]
    held = []
    while not engine.is_idle:
        engine.step()
        held.append(engine.cache_bytes)
    assert 0 < max(held) <= limit
    plenty = generate(model, requests(16))
    assert [answer.tokens for each in asked for answer in each.completed] == [answer.tokens for answer in plenty]


def test_a_token_takes_its_keys_and_values_in_every_layer() -> None:
    config = tiny_model("llama").hf.config
    head_width = config.hidden_size // config.num_attention_heads
    assert (
        token_bytes(tiny_model("llama")) == 2 * config.num_hidden_layers * config.num_key_value_heads * head_width * 4
    )


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_what_has_no_room_even_alone_is_refused_with_a_size_that_has(name: str) -> None:
    model = tiny_model(name)
    request = Request((5,) * 30, Sampling(max_new_tokens=30))
    for ask in (generate, lambda model, asked, cache_bytes: list(stream(model, asked[0], cache_bytes))):
        with pytest.raises(ResourceError, match="cache_gb") as refused:
            ask(model, [request], cache_bytes=40 * token_bytes(model))
        enough = re.search(r"\(cache_gb\): ([\d.]+) GB would do", refused.value.mend)
        assert enough is not None
        ask(model, [request], cache_bytes=int(float(enough[1]) * 1e9))


def test_a_chat_keeps_to_its_bytes_and_is_over_when_it_has_outgrown_them(tmp_path: Path) -> None:
    model = load_any_text(str(write_tiny_model(tmp_path / "model")))
    pages = 3 * PAGE_SIZE * token_bytes(model.language_model)
    chat = model.chat(cache_gb=pages / 1e9, max_new_tokens=8)
    held = []

    def talk() -> None:
        for turn in range(40):
            chat.say(f"This is turn {turn}.")
            assert chat._engine is not None
            held.append(chat._engine.cache_bytes)

    with pytest.raises(ResourceError, match="cache_gb"):
        talk()
    said = len(held)
    assert said >= 2
    assert max(held) <= pages
    assert len(chat.messages) == 2 * said  # what could not be answered is forgotten


def test_prompts_that_are_completed_together_keep_to_their_bytes(tmp_path: Path) -> None:
    model = load_any_text(str(write_tiny_model(tmp_path / "model")))
    sampling = Sampling(max_new_tokens=8)
    asked = [f"What is {number} and {number}?" for number in range(6)]
    limit = 2 * PAGE_SIZE * token_bytes(model.language_model) / 1e9
    assert model.complete(asked, sampling, cache_gb=limit) == model.complete(asked, sampling)
    with pytest.raises(ResourceError, match="cache_gb"):
        model.complete(asked, sampling, cache_gb=limit / 4)
