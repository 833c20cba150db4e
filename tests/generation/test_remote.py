"""Answers of a server are those of this process; what it cannot do or does not say is told with the mend."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import FakeVLLM, serving
from models.tiny import tiny_model
from models.tuned import randomize
from pydantic import ValidationError

from luthier.errors import LuthierError, NetworkError, NotAllowed, NotFound, RecipeError, ResourceError
from luthier.generation.engine import generate
from luthier.generation.engine_settings import VLLMEngine
from luthier.generation.remote.engine import RemoteEngine, body_of
from luthier.generation.remote.server import Server, connect
from luthier.generation.requests import Completed, Request
from luthier.generation.settings import Sampling
from luthier.methods import LoRA
from luthier.models.language_model import LanguageModel

PROMPTS = ((5, 9, 3), (7,), (11, 4, 30, 31, 8))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model("llama")


@pytest.fixture
def fake(model: LanguageModel) -> Iterator[FakeVLLM]:
    with serving(FakeVLLM(model, max_model_len=64)) as made:
        yield made


def connected(fake: FakeVLLM, sleep: Callable[[float], None] = lambda seconds: None, **settings: Any) -> Server:
    return connect(VLLMEngine(url=fake.url, **{"retries": 1, **settings}), sleep)


def engine_of(fake: FakeVLLM, **settings: Any) -> RemoteEngine:
    return RemoteEngine(connected(fake, **settings), fake.model, num_parallel=4)


def alone(model: LanguageModel, requests: Sequence[Request]) -> list[Completed]:
    """The answers of this process, each request computed by itself, so that even the last bits are the same."""
    return [answer for request in requests for answer in generate(model, [request])]


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3},
        {"temperature": 1.0, "frequency_penalty": 0.5, "presence_penalty": 0.2, "logit_bias": {5: 2.0}},
        {"temperature": 1.0, "stop": ("w9", "w3 w"), "seed": 5},
    ],
)
def test_a_server_answers_as_the_engine_of_this_process(fake: FakeVLLM, sampling: dict[str, Any]) -> None:
    asked = [
        Request(prompt, Sampling(max_new_tokens=12, **sampling), None, frozenset({13}), num_answers=3, top_logprobs=2)
        for prompt in PROMPTS
    ]
    told: list[tuple[int, int]] = []
    answers = engine_of(fake).generate(asked, progress=lambda done, total: told.append((done, total)))
    assert answers == alone(fake.model, asked)
    assert told[-1] == (9, 9)


def test_an_adapter_answers_under_its_name_until_it_is_unloaded(fake: FakeVLLM, tmp_path: Path) -> None:
    own = tiny_model("llama")
    attachment = LoRA(rank=2).attach(own, "mine", seed=0)
    randomize(attachment, 0.3)
    attachment.write(tmp_path, lambda text: None)
    server = connected(fake)
    server.load_adapter("first", tmp_path, rank=8)
    server.load_adapter("first", tmp_path, rank=8)  # a try whose answer was lost
    asked = [Request(prompt, Sampling(max_new_tokens=8), "mine", top_logprobs=0) for prompt in PROMPTS]
    answers = RemoteEngine(server, own, 4).generate(asked, {"mine": "first"})
    assert answers == alone(own, asked)
    assert answers != alone(own, [replace(each, adapter=None) for each in asked])
    server.unload_adapter("first")
    server.unload_adapter("first")
    assert fake.adapters == {}
    with pytest.raises(NotFound, match="first"):
        RemoteEngine(server, own, 4).generate(asked, {"mine": "first"})


def test_a_busy_server_is_asked_again_after_longer_and_longer_pauses(fake: FakeVLLM) -> None:
    pauses: list[float] = []
    fake.busy = 3
    server = connected(fake, pauses.append, retries=3)
    assert pauses == [0.5, 1.0, 2.0]
    fake.busy = 9
    with pytest.raises(NetworkError, match=r"4 tries \(status 503: The server is overloaded") as refused:
        server.models()
    assert "luthier resume" in refused.value.mend


def test_a_server_that_says_nothing_is_given_up(fake: FakeVLLM) -> None:
    engine = engine_of(fake, timeout_seconds=1.0, retries=0)
    fake.hangs_seconds = 1.5
    with pytest.raises(NetworkError, match=r"one try \(TimeoutError"):
        engine.generate([Request((5,), Sampling())])


def test_a_server_that_hangs_up_is_told(fake: FakeVLLM) -> None:
    engine = engine_of(fake)
    fake.dead_after = 1
    with pytest.raises(NetworkError, match="2 tries"):
        engine.generate([Request(prompt, Sampling(max_new_tokens=4)) for prompt in PROMPTS * 3])


def test_no_server_at_all_is_told_with_its_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(NetworkError, match="ConnectionRefusedError") as refused:
        connect(VLLMEngine(url=url, retries=0))
    assert url in refused.value.found
    assert refused.value.field == "objective.generation.url"


def ask(fake: FakeVLLM, tmp_path: Path) -> Any:
    return engine_of(fake).generate([Request((5, 9), Sampling(max_new_tokens=4))])


def load(fake: FakeVLLM, tmp_path: Path) -> None:
    LoRA(rank=4).attach(tiny_model("llama"), "mine", seed=0).write(tmp_path, lambda text: None)
    connected(fake).load_adapter("mine", tmp_path, rank=8)


def load_nothing(fake: FakeVLLM, tmp_path: Path) -> None:
    connected(fake).load_adapter("mine", tmp_path, rank=8)


def ask_by_name(fake: FakeVLLM, tmp_path: Path) -> None:
    connected(fake, model="big")


def ask_with_wrong_key(fake: FakeVLLM, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hush\n")
    connected(fake, key_file=str(tmp_path / "key"))


def ask_with_no_key_file(fake: FakeVLLM, tmp_path: Path) -> None:
    connected(fake, key_file=str(tmp_path / "key"))


def ask_for_too_much(fake: FakeVLLM, tmp_path: Path) -> None:
    engine_of(fake).generate([Request((5, 9, 7), Sampling(max_new_tokens=40))])


def ask_with_constraint(fake: FakeVLLM, tmp_path: Path) -> None:
    engine_of(fake).generate([Request((5,), Sampling(regex="a+"))])


def ask_with_bias(fake: FakeVLLM, tmp_path: Path) -> None:
    engine_of(fake).generate([Request((5,), Sampling(logit_bias={3: 200.0}))])


def begin_weights(fake: FakeVLLM, tmp_path: Path) -> None:
    connected(fake).begin_weights()


@pytest.mark.parametrize(
    ("changes", "act", "kind", "found", "mend"),
    [
        ({"key": "secret"}, ask, NotAllowed, "wants one", "key_file"),
        ({"key": "secret"}, ask_with_wrong_key, NotAllowed, "status 401", "--api-key"),
        ({}, ask_with_no_key_file, NotFound, "cannot be read", "key_file"),
        ({}, ask_by_name, NotFound, "no base model 'big'; it has tiny", "--served-model-name big"),
        ({"max_model_len": 30}, ask_for_too_much, ResourceError, "needs 43, and the server", "--max-model-len 43"),
        ({"tells_logprobs": False}, ask, NetworkError, "does not tell the tokens", "logprobs"),
        ({"takes_adapters": False}, load, NotAllowed, "lets nobody load", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"max_lora_rank": 2}, load, RecipeError, "greater than max_lora_rank 2", "--max-lora-rank 8"),
        ({}, load_nothing, RecipeError, "No adapter found", "shared_folder"),
        ({"version": "0.9.2"}, ask_with_constraint, RecipeError, "vLLM 0.9", "0.11"),
        ({}, ask_with_bias, RecipeError, "cuts biases off", "100"),
        ({}, begin_weights, NotAllowed, "does not take weights", "VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_what_goes_wrong_is_told_with_the_mend(
    changes: dict[str, Any],
    act: Callable[[FakeVLLM, Path], Any],
    kind: type[LuthierError],
    found: str,
    mend: str,
    fake: FakeVLLM,
    tmp_path: Path,
) -> None:
    for name, value in changes.items():
        setattr(fake, name, value)
    with pytest.raises(kind) as refused:
        act(fake, tmp_path)
    assert found in refused.value.found
    assert mend in refused.value.mend


def test_constraints_are_sent_as_structured_outputs() -> None:
    stops = frozenset({2})
    by_regex = body_of(Request((5,), Sampling(regex="a+")), "tiny", 4, stops)
    by_schema = body_of(Request((5,), Sampling(json_schema={"type": "object"})), "tiny", 4, stops)
    assert by_regex["structured_outputs"] == {"regex": "a+"}
    assert by_schema["structured_outputs"] == {"json": '{"type": "object"}'}


def test_an_answer_that_the_server_broke_off_is_no_answer(fake: FakeVLLM) -> None:
    engine = engine_of(fake)
    original = fake._completions

    def cut(body: dict[str, Any]) -> tuple[int, Any]:
        return original({**body, "max_tokens": 2})

    fake._completions = cut  # type: ignore[method-assign]
    with pytest.raises(NetworkError, match="after 2 of 6 tokens"):
        engine.generate([Request((5, 9), Sampling(max_new_tokens=6, logit_bias={2: -90.0}))])


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://a", "http://", "http://a?b=c", "http://me:key@a", "http://a:b"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        VLLMEngine(url=url)


def test_an_address_may_end_in_v1() -> None:
    assert VLLMEngine(url="http://host:8000/v1/").url == "http://host:8000"
