"""A judge behind an endpoint that speaks OpenAI's chat completions, as many servers do: `POST URL/chat/completions`.

Time-outs, broken connections, 408, 429 and 5xx are tried again, each time after twice as long or as long as the server asks for, and so
often and no more. Anything else is an error at once. Redirects are not followed: the key would go along. Whether anybody is there, and takes
the key, can be found before: `GET URL/models`.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from luthier.errors import LuthierError, NetworkError, NotAllowed, UsageError
from luthier.evaluation.judged.verdicts import Reply
from luthier.types import Message

_CHATS = "/chat/completions"
_NO_ACCESS = {401, 403}
_AGAIN = {408, 409, 429, 500, 502, 503, 504}
_MOST_BYTES = 16 * 2**20
_LONGEST_WAIT_SECONDS = 60.0
_OPTIONAL = {"temperature": None, "seed": None, "max_tokens": "max_completion_tokens"}
"""What some models do not take, and under which name instead, where there is one."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked, how patiently, and how it draws. key: sent as a bearer token, and never written anywhere.

    model: its name there; empty, where whoever asks is to name one each time (`asking.py`).
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 120.0
    retries: int = 4
    parallel: int = 4
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    @property
    def address(self) -> str:
        """Where requests go."""
        return self.url if self.url.endswith(_CHATS) else f"{self.url.rstrip('/')}{_CHATS}"

    @property
    def list_address(self) -> str:
        """Where the server tells which models it has."""
        return f"{self.url.removesuffix(_CHATS).rstrip('/')}/models"


def check_endpoint(endpoint: Endpoint) -> None:
    """Raise UsageError for what is no address to ask, or no key to send."""
    try:
        parts = urllib.parse.urlsplit(endpoint.url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_whole = False
    if not is_whole or endpoint.url.split() != [endpoint.url]:
        raise UsageError(f"{endpoint.url!r} is no address of a server.", "Write it as in https://HOST/v1.")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            "The judge's address holds a name, a password, a query or a fragment.",
            "Give the address alone, and the key in an environment variable (--judge-key-env NAME).",
        )
    if endpoint.key is not None and not (endpoint.key and endpoint.key.isascii() and endpoint.key.isprintable()):
        raise UsageError("The judge's key is empty, or holds signs that no header may hold.", "Check the variable.")


class EndpointModel:
    """Asks an endpoint, as `luthier.evaluation.judged.verdicts.AskJudge`. sleep: waits so many seconds; unset, until it is given up."""

    def __init__(self, endpoint: Endpoint, sleep: Callable[[float], object] | None = None) -> None:
        self._endpoint = endpoint
        self._given_up = threading.Event()
        self._sleep = self._given_up.wait if sleep is None else sleep
        self._renamed: dict[str, str | None] = {}
        self._opener = urllib.request.build_opener(_NoRedirect)

    def check(self) -> None:
        """Find before any work what would end the first request: ask once, and try nothing again.

        The server is asked for its models, which costs nothing. A key may be good for answers and not for that list: where the list is
        refused, one token of an answer is asked for. Whatever else comes (there is no list, the server is busy) is left to what is asked later.

        Raises: NetworkError where no connection comes about; NotAllowed for a key that is refused.
        """
        if self._refusal(self._request(self._endpoint.list_address)) is None:
            return
        asked = {**self._body((Message("user", "Hello"),)), "max_tokens": 1}
        refusal = self._refusal(self._request(self._endpoint.address, asked))
        if refusal is not None:
            raise refusal

    def _refusal(self, request: urllib.request.Request) -> LuthierError | None:
        """What the server says where it refuses the key. Raises: NetworkError where no connection comes about."""
        try:
            self._opener.open(request, timeout=self._endpoint.timeout_seconds).close()
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in _NO_ACCESS:
                    return None
                return _refused(error.code, _said_with(error), self._endpoint, 1)
        except urllib.error.URLError as error:  # name, connection, TLS: what fails behind them is raised as it is
            raise _silent(error, self._endpoint, 1) from error
        except (OSError, http.client.HTTPException):
            return None
        return None

    def __call__(self, chats: Sequence[tuple[Message, ...]]) -> Iterator[tuple[int, Reply]]:
        """The replies as they come, several chats being asked side by side. Raises: NetworkError, NotAllowed; what came before stands."""
        failure: LuthierError | None = None
        with ThreadPoolExecutor(self._endpoint.parallel) as pool:
            places = {pool.submit(self.reply, chat): place for place, chat in enumerate(chats)}
            told: set[Future[Reply]] = set()
            try:
                for done in as_completed(places):
                    told.add(done)
                    yield places[done], done.result()
            except LuthierError as error:
                failure = error
                self._give_up(pool)
            except BaseException:
                self._give_up(pool)
                raise
        for done, place in places.items():  # what ran beside the one that failed
            if done not in told and not done.cancelled() and done.exception() is None:
                yield place, done.result()
        if failure is not None:
            raise failure

    def _give_up(self, pool: ThreadPoolExecutor) -> None:
        """Ask nothing more, and try nothing again."""
        self._given_up.set()
        pool.shutdown(wait=False, cancel_futures=True)

    def reply(self, chat: Sequence[Message]) -> Reply:
        """The model's answer to one chat. Raises: NetworkError, NotAllowed."""
        return _reply_in(self._asked(chat), self._endpoint)

    def _asked(self, chat: Sequence[Message]) -> bytes:
        tries = 0
        while True:
            try:
                return self._once(chat)
            except urllib.error.HTTPError as error:
                body = _said_with(error)
                if error.code == 400 and self._gives_way(body):
                    continue
                tries += 1
                if error.code not in _AGAIN or self._is_enough(tries):
                    raise _refused(error.code, body, self._endpoint, tries) from None
                self._wait(tries, error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:  # what urllib raises for a connection is an OSError
                tries += 1
                if self._is_enough(tries):
                    raise _silent(error, self._endpoint, tries) from error
                self._wait(tries, None)

    def _is_enough(self, tries: int) -> bool:
        return tries > self._endpoint.retries or self._given_up.is_set()

    def _once(self, chat: Sequence[Message]) -> bytes:
        """One request's answer. Raises: OSError and its kin, TimeoutError after the endpoint's time-out over all."""
        request = self._request(self._endpoint.address, self._body(chat))
        ends_at = time.monotonic() + self._endpoint.timeout_seconds
        pieces, size = [], 0
        with self._opener.open(request, timeout=self._endpoint.timeout_seconds) as response:
            while piece := response.read1(65536):
                pieces.append(piece)
                size += len(piece)
                if size > _MOST_BYTES:
                    raise NetworkError(
                        f"{self._endpoint.address} answered more than {_MOST_BYTES:,} bytes.", "Check the address."
                    )
                if time.monotonic() > ends_at:
                    raise TimeoutError("timed out")
            if response.length:
                raise ConnectionError(f"the answer ended {response.length:,} bytes early")
        return b"".join(pieces)

    def _request(self, address: str, body: Mapping[str, Any] | None = None) -> urllib.request.Request:
        """A request with the key; without a body it only reads."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "luthier"}
        if self._endpoint.key is not None:
            headers["Authorization"] = f"Bearer {self._endpoint.key}"
        return urllib.request.Request(address, None if body is None else json.dumps(body).encode(), headers)

    def _body(self, chat: Sequence[Message]) -> dict[str, Any]:
        endpoint = self._endpoint
        body: dict[str, Any] = {
            "model": endpoint.model,
            "messages": [{"role": each.role, "content": each.content} for each in chat],
            "temperature": endpoint.temperature,
            "seed": endpoint.seed,
            "max_tokens": endpoint.max_tokens,
        }
        if endpoint.top_p < 1:
            body["top_p"] = endpoint.top_p
        for name, instead in dict(self._renamed).items():
            value = body.pop(name)
            if instead is not None:
                body[instead] = value
        return body

    def _gives_way(self, body: bytes) -> bool:
        """Whether the server said of a setting that it does not take it, which is then left out or named otherwise."""
        name = _fault_in(body).get("param")
        if name not in _OPTIONAL or name in self._renamed:
            return False
        self._renamed[name] = _OPTIONAL[name]
        return True

    def _wait(self, tries: int, asked: str | None) -> None:
        try:
            seconds = float(asked or "")
        except ValueError:
            seconds = 2.0 ** (tries - 1)
        self._sleep(min(max(seconds, 0.0), _LONGEST_WAIT_SECONDS))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect as the answer that it is."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """See the base class."""


# ── what comes back ─────────────────────────────────────────────────────────────────────────────────────────────────


def _reply_in(body: bytes, endpoint: Endpoint) -> Reply:
    try:
        choice = json.loads(body)["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        was_filtered = choice.get("finish_reason") == "content_filter"
    except (ValueError, LookupError, TypeError, AttributeError):
        raise NetworkError(
            f"{endpoint.address} answered what is no chat completion: {_shown(body, endpoint)}.",
            "Give the address of a server that speaks OpenAI's chat completions, as in https://HOST/v1.",
        ) from None
    if refusal or was_filtered:
        return Reply(str(refusal or content or ""), refused=True)
    return Reply(content if isinstance(content, str) else "")


def _said_with(error: urllib.error.HTTPError) -> bytes:
    """What a server says beside the number of an error; nothing where the connection breaks off."""
    try:
        return error.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException):
        return b""


def _refused(code: int, body: bytes, endpoint: Endpoint, tries: int) -> LuthierError:
    told = _fault_in(body).get("message")
    said = _shown(told.encode() if isinstance(told, str) else body, endpoint)
    found = f"{endpoint.address} answered {code} for the model {endpoint.model!r}: {said}."
    if code in _NO_ACCESS:
        return NotAllowed(found, "Name the variable that holds a key of this server with --judge-key-env.")
    if code in _AGAIN:
        return NetworkError(f"{found[:-1]}, {tries} times.", "Ask later, or more slowly (--judge-parallel 1).")
    return NetworkError(found, "Check --judge-url and --judge-model.")


def _silent(error: Exception, endpoint: Endpoint, tries: int) -> NetworkError:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    times = "" if tries == 1 else f", {tries} times"
    if isinstance(reason, TimeoutError):
        said = f"gave no answer within {endpoint.timeout_seconds:g} s"
        return NetworkError(
            f"{endpoint.address} {said}{times}.", "Check the server, or give it longer with --judge-timeout."
        )
    return NetworkError(
        f"{endpoint.address} cannot be reached ({reason}){times}.", "Check --judge-url, and whether the server runs."
    )


def _fault_in(body: bytes) -> Mapping[str, Any]:
    """The `error` of an answer that is one; empty where there is none."""
    try:
        fault = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):
        return {}
    return fault if isinstance(fault, dict) else {"message": str(fault)}


def _shown(body: bytes, endpoint: Endpoint) -> str:
    """The beginning of what came, on one line, without the key."""
    text = " ".join(body[:2000].decode("utf-8", "replace").split())
    if endpoint.key:
        text = text.replace(endpoint.key, "…")
    return repr(text[:200])
