"""The engine over pages: whatever is computed beside it, a request gets what it gets alone."""

from __future__ import annotations

import random

import pytest
import torch
from generation.reread import trainer_logprobs
from models.tiny import tiny_model
from models.tuned import randomize

from luthier.errors import QueueFull, ResourceError
from luthier.generation.answers import Asked
from luthier.generation.engine import Engine, Request, generate
from luthier.generation.paged_lane import PAGE_SIZE
from luthier.generation.rows import PromptRows
from luthier.generation.settings import Sampling
from luthier.methods import IA3, LoRA, PrefixTuning, PromptTuning
from luthier.models.language_model import LanguageModel

GREEDY = Sampling(max_new_tokens=9)
DRAWN = Sampling(temperature=1.0, max_new_tokens=9)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    made = tiny_model("llama")
    made.hf.config.max_position_embeddings = 512  # positions are rotations, so that any number will do
    for name, method in (
        ("lora", LoRA(rank=2)),
        ("ia3", IA3()),
        ("prompt", PromptTuning(num_virtual_tokens=3)),
        ("prefix", PrefixTuning(num_virtual_tokens=2)),
    ):
        randomize(method.attach(made, name, seed=0), 0.3)
    return made


def prompts(number: int, longest: int = 20, seed: int = 0) -> list[tuple[int, ...]]:
    """Random prompts of different lengths."""
    draw = random.Random(seed)
    return [tuple(draw.randrange(3, 61) for _ in range(draw.randrange(1, longest))) for _ in range(number)]


def plain_answers(model: LanguageModel, prompt: tuple[int, ...], adapter: str | None, count: int) -> tuple[int, ...]:
    """The greedy answer over the plain cache."""
    rows = PromptRows(model, [prompt], adapter)
    token_B = rows.first_scores().argmax(-1)
    said = [int(token_B)]
    while len(said) < count and said[-1] not in model.stop_ids:
        token_B = rows.next_scores(token_B).argmax(-1)
        said.append(int(token_B))
    return tuple(said)


def widths_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Takes the number of tokens of each step from now on."""
    widths: list[int] = []
    read = LanguageModel.read

    def watched(self: LanguageModel, *args: torch.Tensor) -> torch.Tensor:
        widths.append(args[0].numel())
        return read(self, *args)

    monkeypatch.setattr(LanguageModel, "read", watched)
    return widths


def test_answers_over_pages_are_those_over_the_plain_cache(model: LanguageModel) -> None:
    for adapter in (None, "lora"):
        requests = [Request(prompt, GREEDY, adapter) for prompt in prompts(7)]
        for request, answer in zip(requests, generate(model, requests, max_rows=3), strict=True):
            assert answer.tokens == plain_answers(model, request.prompt, adapter, 9)


def test_adapters_are_mixed_in_one_batch_and_rows_replaced_at_once(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (None, "lora", "prompt", "ia3", "prefix", "lora", None, "prefix")
    requests = [
        Request(prompt, DRAWN.model_copy(update={"seed": row, "max_new_tokens": 3 + row}), name)
        for row, (prompt, name) in enumerate(zip(prompts(8), names, strict=True))
    ]
    apart = [generate(model, [request])[0] for request in requests]
    computed: list[set[str | None]] = []
    read = LanguageModel.read

    def watched(self: LanguageModel, *args: object) -> torch.Tensor:
        computed.append({run.adapter for run in args[2]})
        return read(self, *args)

    monkeypatch.setattr(LanguageModel, "read", watched)
    engine = Engine(model, max_rows=4, cache_tokens=2048)
    asked = [engine.submit(request) for request in requests]
    while not engine.is_idle:
        engine.step()
    assert [each.completed[0] for each in asked] == apart
    assert len(computed[0]) == 4
    assert len(computed) < sum(len(answer.tokens) for answer in apart) / 2


@pytest.mark.parametrize("max_rows", [2, 3, 8])
def test_several_answers_to_a_prompt_are_those_of_one_each_with_draws_of_its_own(
    model: LanguageModel, max_rows: int
) -> None:
    long = tuple(random.Random(1).randrange(3, 61) for _ in range(2 * PAGE_SIZE + 5))
    requests = [Request(prompt, DRAWN, num_answers=5) for prompt in ((5, 6, 7), long)]
    answers = generate(model, requests, max_rows=max_rows)
    assert len({answer.tokens for answer in answers[:5]}) > 2
    assert answers == generate(model, requests, max_rows=10)
    assert answers[0] == generate(model, [Request((5, 6, 7), DRAWN)])[0]
    greedy = generate(model, [Request(long, GREEDY, num_answers=4)], max_rows=max_rows)
    assert {answer.tokens for answer in greedy} == {plain_answers(model, long, None, 9)}


def test_a_prompt_is_computed_once_for_all_its_answers(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = widths_of_steps(monkeypatch)
    generate(model, [Request((5,) * 30, DRAWN, num_answers=6)], max_rows=3)
    assert widths[0] == 30
    assert max(widths[1:]) <= 3


def test_prompts_that_begin_alike_share_whole_pages(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tuple(random.Random(2).randrange(3, 61) for _ in range(PAGE_SIZE + 10))
    requests = [Request((*system, 7 + row), GREEDY) for row in range(3)]
    apart = [generate(model, [request])[0] for request in requests]
    widths = widths_of_steps(monkeypatch)
    engine = Engine(model, cache_tokens=1024)
    asked = [engine.submit(request) for request in requests]
    while not engine.is_idle:
        engine.step()
    assert [each.completed[0] for each in asked] == apart
    assert widths[0] == len(system) + 1 + 2 * 11
    later = engine.submit(requests[0])
    while not engine.is_idle:
        engine.step()
    assert later.completed == apart[:1]
    assert 11 in widths
    engine.forget()
    engine.submit(requests[0])
    engine.step()
    assert widths[-1] == len(system) + 1


@pytest.mark.parametrize("adapter", [None, "lora", "prompt", "prefix"])
def test_log_probabilities_are_those_of_the_trainer(model: LanguageModel, adapter: str | None) -> None:
    drawn = DRAWN.model_copy(update={"temperature": 0.7, "top_k": 20})
    requests = [Request(prompt, drawn, adapter, top_logprobs=2) for prompt in ((5, 9, 30), *prompts(4))]
    for request, answer in zip(requests, generate(model, requests), strict=True):
        assert answer.logprobs is not None
        found = torch.tensor([each.logprob for each in answer.logprobs])
        expected = trainer_logprobs(model, request.prompt, answer.tokens, adapter)
        assert float((found - expected).abs().max()) < 1e-5
        for each in answer.logprobs:
            assert each.likeliest[0][1] >= max(each.likeliest[1][1], each.logprob - 1e-6)
    assert generate(model, [Request((5, 9, 30), DRAWN, adapter)])[0].logprobs is None


def test_a_small_cache_makes_answers_wait_and_changes_none(model: LanguageModel) -> None:
    requests = [Request(prompt, DRAWN, num_answers=1 + row % 3) for row, prompt in enumerate(prompts(8, 90))]
    roomy = generate(model, requests)
    engine = Engine(model, cache_tokens=4 * PAGE_SIZE)
    asked = [engine.submit(request) for request in requests]
    while not engine.is_idle:
        engine.step()
    assert [answer for each in asked for answer in each.completed] == roomy
    layers = len(model.anatomy.layers)
    assert engine.cache_bytes == 4 * PAGE_SIZE * layers * 2 * 4 * _kv_width(model)


def test_the_cache_of_many_answers_has_the_prompts_once_and_room_for_all_of_them(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[Engine] = []
    original = Engine.submit

    def submitted(self: Engine, request: Request, **rest: bool) -> Asked:
        engines[:] = [self]
        return original(self, request, **rest)

    monkeypatch.setattr(Engine, "submit", submitted)
    widths = widths_of_steps(monkeypatch)
    long = tuple(range(3, 60)) * 4  # four pages
    never_ends = tuple((token, -100.0) for token in model.stop_ids)
    many = Sampling(temperature=1.0, max_new_tokens=30, logit_bias=never_ends)
    generate(model, [Request(prompt, many, num_answers=7) for prompt in (long, long[::-1])])
    assert widths[1] == 14  # all answers are computed together
    layers, pages = len(model.anatomy.layers), 2 * (4 + 1 + 7)
    assert engines[0].cache_bytes == pages * PAGE_SIZE * layers * 2 * 4 * _kv_width(model)


def _kv_width(model: LanguageModel) -> int:
    config = model.hf.config
    return int(config.num_key_value_heads * config.head_dim)


def test_a_request_that_can_never_fit_is_refused_with_the_mend(model: LanguageModel) -> None:
    engine = Engine(model, cache_tokens=PAGE_SIZE)
    with pytest.raises(ResourceError, match="needs 128 tokens of the cache, which holds 64") as caught:
        engine.submit(Request((5,) * 60, Sampling(max_new_tokens=30)))
    assert "max_new_tokens" in caught.value.mend


def test_a_full_queue_refuses_and_takes_again_later(model: LanguageModel) -> None:
    engine = Engine(model, max_rows=1, cache_tokens=512, max_waiting=2)
    engine.submit(Request((5,), GREEDY, num_answers=2))
    with pytest.raises(QueueFull):
        engine.submit(Request((6,), GREEDY))
    engine.step()
    asked = engine.submit(Request((6,), GREEDY))
    while not engine.is_idle:
        engine.step()
    assert asked.is_done


@pytest.mark.parametrize("adapter", [None, "prefix"])
def test_all_requests_of_one_call_are_answered_however_many_may_wait(
    adapter: str | None, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Engine.__init__.__kwdefaults__, "max_waiting", 3)
    answers = generate(model, [Request((5 + n,), GREEDY, adapter, num_answers=2) for n in range(4)], max_rows=2)
    assert len(answers) == 8
    assert all(answer.finish_reason in ("stop", "length") for answer in answers)


def test_a_cancelled_request_ends_as_it_is_and_gives_its_room_back(model: LanguageModel) -> None:
    engine = Engine(model, max_rows=2, cache_tokens=4 * PAGE_SIZE)
    long = Sampling(temperature=1.0, max_new_tokens=40)
    leaving = engine.submit(Request((5, 6), long, num_answers=3))
    staying = engine.submit(Request((7,), GREEDY))
    for _ in range(3):
        engine.step()
    engine.cancel(leaving)
    while not engine.is_idle:
        engine.step()
    assert {answer.finish_reason for answer in leaving.completed} <= {"cancelled", "stop"}
    assert "cancelled" in {answer.finish_reason for answer in leaving.completed}
    assert staying.completed == generate(model, [Request((7,), GREEDY)])
    refilled = engine.submit(Request((5,) * (3 * PAGE_SIZE), GREEDY))
    while not engine.is_idle:
        engine.step()
    assert refilled.is_done


def test_several_answers_are_streamed_side_by_side(model: LanguageModel) -> None:
    engine = Engine(model, cache_tokens=1024)
    asked = engine.submit(Request((5, 6), DRAWN, num_answers=3), watched=True)
    texts = ["", "", ""]
    for number, piece in engine.pieces(asked):
        texts[number] += piece
    assert texts == [answer.text for answer in asked.completed]
    engine.submit(Request((5, 6), DRAWN))
    for _ in engine.pieces(engine.submit(Request((7, 8), Sampling(max_new_tokens=30)), watched=True)):
        break  # whoever stops reading cancels
    while not engine.is_idle:
        engine.step()


def test_after_an_interruption_everything_is_cancelled_and_the_engine_goes_on(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, max_rows=2, cache_tokens=4 * PAGE_SIZE)
    lost = engine.submit(Request((5, 6), DRAWN, num_answers=3))
    engine.step()

    def interrupted(*args: object) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LanguageModel, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert engine.is_idle
    assert [answer.finish_reason for answer in lost.completed] == ["cancelled"] * 3
    asked = engine.submit(Request((7,), GREEDY))
    while not engine.is_idle:
        engine.step()
    assert asked.completed == generate(model, [Request((7,), GREEDY)])
