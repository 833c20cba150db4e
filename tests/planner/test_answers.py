"""Keys and values are planned as the engine comes to hold them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.tiny import tiny_model
from tiny_runs import recipe_values
from transformers import AutoConfig

from luthier.generation import engine
from luthier.generation.engine import CACHE_TOKENS, Engine, Request, generate
from luthier.generation.held import keys_bytes
from luthier.generation.room import PAGE_SIZE, room_of, token_bytes
from luthier.generation.settings import Sampling
from luthier.planner.alone import trace_all
from luthier.planner.answers import HELD_OUT, KEYS, num_asked
from luthier.planner.request import imagined_rows, work_of
from luthier.planner.trace import Trace
from luthier.recipe import make_recipe

NEW = 40


def asked(count: int, num_answers: int) -> list[Request]:
    """Prompts of different lengths."""
    sampling = Sampling(max_new_tokens=NEW)
    return [
        Request(tuple(range(3, 4 + length)), sampling, stop_ids=frozenset(), num_answers=num_answers)
        for length in range(count)
    ]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What every engine says that it holds, step by step."""
    found: list[int] = []

    class Watched(Engine):
        def _stepped(self) -> list[object]:  # type: ignore[override]
            ended = super()._stepped()
            found.append(self.cache_bytes)
            return ended  # type: ignore[return-value]

    monkeypatch.setattr(engine, "Engine", Watched)
    return found


@pytest.mark.parametrize("limit", [None, 12 * PAGE_SIZE], ids=["all", "bounded"])
@pytest.mark.parametrize("num_answers", [1, 3])
def test_pages_are_those_that_the_engine_asks_for(num_answers: int, limit: int | None, held: list[int]) -> None:
    model = tiny_model("llama")
    requests = asked(9, num_answers)
    cache_bytes = None if limit is None else limit * token_bytes(model)
    generate(model, requests, max_rows=8, cache_bytes=cache_bytes)
    lengths = [(len(request.prompt), NEW, num_answers) for request in requests]
    assert keys_bytes(model, None, lengths, 8, room_of(model, CACHE_TOKENS, cache_bytes)) == max(held)


@pytest.mark.parametrize("name", ["falcon", "t5"])
def test_padded_batches_stay_below_what_is_planned_and_near_half_of_it(name: str, held: list[int]) -> None:
    model = tiny_model(name)
    requests = asked(9, 1)
    generate(model, requests, max_rows=8)
    lengths = [(len(request.prompt), NEW, 1) for request in requests]
    planned = keys_bytes(model, None, lengths, 8, room_of(model, CACHE_TOKENS, None))
    assert planned / 5 < max(held) <= planned  # one batch, where as much again may be held for a moment


def test_answers_to_held_out_rows_are_planned_in_a_phase_of_their_own() -> None:
    values = recipe_values(
        Path("model"),
        Path(__file__),
        data={"validation": "auto"},
        training={"evaluate_generated": {"rows": 5, "max_new_tokens": 30}},
    )
    recipe = make_recipe(values)
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300,
    )  # fmt: skip
    rows = imagined_rows(recipe, config)
    (found,) = trace_all([work_of(recipe, config, rows, torch.device("cpu"))])
    assert isinstance(found, Trace)
    assert num_asked(rows.held_out[0]) == 192 - 192 // 2
    pages = -(-(96 + 30) // PAGE_SIZE) + 1
    assert found.peaks[HELD_OUT].parts[KEYS] == 5 * pages * PAGE_SIZE * 2 * 2 * 16 * 4
