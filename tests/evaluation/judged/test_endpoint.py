"""A judge behind an endpoint: what is sent, how often, and what comes of everything that a server may answer."""

from __future__ import annotations

import email.message
import io
import threading
import urllib.error
from typing import Any

import pytest
from fake_endpoint import Answer, completion, serving

from luthier.errors import LuthierError, NetworkError, NotAllowed, UsageError
from luthier.evaluation.judged.endpoint import Endpoint, EndpointModel, check_endpoint
from luthier.evaluation.judged.verdicts import Reply
from luthier.types import Message

CHAT = (Message("user", "Which?"),)
KEY = "sk-secret-0123"


def model(url: str, waited: list[float] | None = None, **settings: Any) -> EndpointModel:
    endpoint = Endpoint(url, "gpt", **{"timeout_seconds": 5.0, "retries": 2, **settings})
    check_endpoint(endpoint)
    return EndpointModel(endpoint, (waited if waited is not None else list[float]()).append)


def test_a_chat_is_sent_with_the_key_and_asked_for_greedily() -> None:
    with serving(lambda body: completion("Because.\nA")) as asked:
        assert model(asked.url, key=KEY).reply(CHAT) == Reply("Because.\nA")
    assert asked.bodies == [
        {"model": "gpt", "messages": [{"role": "user", "content": "Which?"}], "temperature": 0, "seed": 0, "max_tokens": 512}
    ]  # fmt: skip
    assert asked.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(Endpoint(asked.url, "gpt", KEY))


def test_how_it_draws_is_sent_as_it_is_set() -> None:
    with serving(lambda body: completion("A")) as asked:
        model(asked.url, temperature=0.5, top_p=0.9, seed=3, max_tokens=7).reply(CHAT)
    drawn = {name: asked.bodies[0][name] for name in ("temperature", "top_p", "seed", "max_tokens")}
    assert drawn == {"temperature": 0.5, "top_p": 0.9, "seed": 3, "max_tokens": 7}


def test_settings_that_a_model_does_not_take_are_left_out_or_named_otherwise() -> None:
    def answer(body: dict[str, Any]) -> Answer:
        for name in ("max_tokens", "temperature"):
            if name in body:
                return 400, {"error": {"message": f"Unsupported parameter: {name}", "param": name}}
        return completion("B")

    with serving(answer) as asked:
        assert model(asked.url, retries=0).reply(CHAT) == Reply("B")
    assert asked.bodies[-1].keys() == {"model", "messages", "seed", "max_completion_tokens"}


def test_what_may_pass_is_tried_again_and_no_more_often_than_is_said() -> None:
    waited: list[float] = []
    answers = iter([(503, b"busy"), (429, {"error": "slow"}), completion("A")])
    with serving(lambda body: next(answers)) as asked:
        assert model(asked.url, waited).reply(CHAT) == Reply("A")
    assert waited == [1.0, 2.0]
    with serving(lambda body: (503, b"busy"), {"Retry-After": "7"}) as asked:
        with pytest.raises(NetworkError, match=r"503 .* 'busy', 3 times") as caught:
            model(asked.url, waited).reply(CHAT)
        assert len(asked.bodies) == 3
    assert waited[2:] == [7.0, 7.0]
    assert "--judge-parallel" in caught.value.mend


def test_a_judge_that_never_answers_is_given_up() -> None:
    held = threading.Event()

    def answer(body: dict[str, Any]) -> Answer:
        held.wait(10)
        return completion("A")

    with serving(answer) as asked:
        with pytest.raises(NetworkError, match=r"no answer within 0\.1 s, 2 times"):
            model(asked.url, timeout_seconds=0.1, retries=1).reply(CHAT)
        held.set()
    with pytest.raises(NetworkError, match="cannot be reached"):
        model(asked.url).reply(CHAT)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ((401, {"error": {"message": f"bad key {KEY}"}}), NotAllowed, "bad key …"),
        ((404, {"error": {"message": "no model gpt"}}), NetworkError, "404 for the model 'gpt': 'no model gpt'"),
        ((302, b""), NetworkError, "302"),
        ((200, b"<html>Welcome</html>"), NetworkError, "no chat completion: '<html>Welcome"),
        ((200, {"choices": []}), NetworkError, "no chat completion"),
        ((200, []), NetworkError, "no chat completion"),
    ],
)
def test_anything_else_is_an_error_at_once(answer: Answer, kind: type[LuthierError], said: str) -> None:
    with serving(lambda body: answer, {"Location": "http://127.0.0.1:9/"}) as asked:
        with pytest.raises(kind, match=said) as caught:
            model(asked.url, key=KEY).reply(CHAT)
        assert len(asked.bodies) == 1
    assert KEY not in str(caught.value)


def test_an_error_whose_words_break_off_is_told_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    class BreaksOff(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError

    def once(chat: object) -> bytes:
        raise urllib.error.HTTPError("http://host/v1", 404, "Not Found", email.message.Message(), BreaksOff())

    asking = model("http://host/v1")
    monkeypatch.setattr(asking, "_once", once)
    with pytest.raises(NetworkError, match="404"):
        asking.reply(CHAT)


def test_a_refusal_is_told_apart_from_an_answer() -> None:
    replies = iter([completion(None, refusal="I will not."), completion(None), completion("A")])
    with serving(lambda body: next(replies)) as asked:
        found = [model(asked.url).reply(CHAT) for _ in range(3)]
    assert found == [Reply("I will not.", refused=True), Reply(""), Reply("A")]


def test_what_came_before_a_failure_is_not_lost() -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return completion("A") if body["messages"][0]["content"] != "3" else (403, {"error": {"message": "no"}})

    chats = [(Message("user", str(number)),) for number in range(6)]
    came: list[int] = []
    with serving(answer) as asked, pytest.raises(NotAllowed):
        came.extend(place for place, _ in model(asked.url, parallel=1)(chats))
    assert set(came) >= {0, 1, 2}
    assert 3 not in came


@pytest.mark.parametrize(
    "models", [(200, {"data": []}), (200, b"<html>"), (404, b""), (405, b""), (500, b""), (302, b"")]
)
def test_a_server_that_is_there_is_asked_for_its_models_once_and_for_nothing_else(models: Answer) -> None:
    with serving(lambda body: completion("A"), {"Location": "http://127.0.0.1:9/"}, models) as asked:
        for url in (asked.url, f"{asked.url}/", f"{asked.url}/chat/completions"):
            model(url, key=KEY).check()
    assert (asked.num_lists, asked.bodies) == (3, [])


def test_a_key_is_refused_where_it_gives_neither_the_list_nor_an_answer() -> None:
    refused = (401, {"error": {"message": f"bad key {KEY}"}})
    with serving(lambda body: refused, models=refused) as asked, pytest.raises(NotAllowed) as caught:
        model(asked.url, key=KEY).check()
    assert caught.value.found == f"{asked.url}/chat/completions answered 401 for the model 'gpt': 'bad key …'."
    assert "--judge-key-env" in caught.value.mend
    assert [body["max_tokens"] for body in asked.bodies] == [1], "tried once, at the cost of a token"
    for answer in (completion("Hi"), (400, b""), (429, b"")):
        with serving(lambda body, answer=answer: answer, models=(403, b"")) as asked:  # type: ignore[misc]
            model(asked.url, key=KEY).check()
        assert len(asked.bodies) == 1, "a key may be good for answers alone"


def test_who_cannot_be_reached_is_found_at_once() -> None:
    waited: list[float] = []
    with serving(lambda body: completion("A")) as asked, pytest.raises(NetworkError, match=r"reached \(.*SSL.*\)\."):
        model(asked.url.replace("http:", "https:"), waited).check()
    with pytest.raises(NetworkError, match=rf"{asked.url}/chat/completions cannot be reached \(.*\)\.") as caught:
        model(asked.url, waited).check()
    assert "--judge-url" in caught.value.mend
    assert not waited


@pytest.mark.parametrize(
    ("url", "key", "said"),
    [
        ("ftp://host/v1", None, "no address"),
        ("host/v1", None, "no address"),
        ("http://host:99999/v1", None, "no address"),
        ("http://a b/v1", None, "no address"),
        ("https://me:word@host/v1", None, "password"),
        ("https://host/v1?key=1", None, "query"),
        ("https://host/v1", "", "key is empty"),
        ("https://host/v1", "a\nb", "no header"),
    ],
)
def test_what_is_no_address_or_key_is_refused(url: str, key: str | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_endpoint(Endpoint(url, "gpt", key))
