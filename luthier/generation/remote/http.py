"""JSON over HTTP with a limit for everything: how long a request takes, and how often it is sent again."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from luthier.errors import NetworkError, NotFound, RecipeError

_BUSY = frozenset({429, 502, 503, 504})
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_SHOWN = 300


@dataclass(frozen=True)
class Reply:
    """What a server answered: the status, and the body as text."""

    status: int
    text: str

    @property
    def is_good(self) -> bool:
        """Whether it did what was asked."""
        return 200 <= self.status < 300

    def json(self, asked: str) -> Any:
        """The body as JSON. asked: where it comes from, for the error. Raises: NetworkError, if it is none."""
        try:
            return json.loads(self.text)
        except ValueError as error:
            raise NetworkError(
                f"What {asked} answered is no JSON: {self.text[:_SHOWN]!r}.",
                "See that the address is that of 'vllm serve' itself.",
            ) from error

    @property
    def complaint(self) -> str:
        """What the server says is wrong, in its own words."""
        try:
            value = json.loads(self.text)
        except ValueError:
            value = self.text
        for key in ("error", "message", "detail"):
            if isinstance(value, dict) and key in value:
                value = value[key]
        return (value if isinstance(value, str) else json.dumps(value))[:_SHOWN].strip()


class JSONClient:
    """Asks one server; several threads may. `close` breaks off what is under way.

    Args:
        url: without a slash at its end.
        key: sent as a bearer token.
        timeout_seconds: most seconds that one try waits for the server to say something.
        retries: how often a request is sent again that met no server, a broken connection, or a server that was busy (429, 502,
            503, 504); the pause before it doubles.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        timeout_seconds: float,
        retries: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url
        self._parts = urlsplit(url)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._sleep = sleep
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def get(self, path: str) -> Reply:
        """What GET gives. Raises: NetworkError, as `post`."""
        return self._asked("GET", path, None)

    def post(self, path: str, body: Any) -> Reply:
        """What POST gives for a body, sent as JSON.

        Raises: NetworkError, if no server answered in any try, or it was busy in all of them.
        """
        return self._asked("POST", path, json.dumps(body).encode())

    def close(self) -> None:
        """Break off what is under way, in other threads too; nothing is asked afterwards."""
        with self._lock:
            self._is_closed = True
            connections = list(self._open)
        for connection in connections:
            sock = connection.sock
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(2)

    def _asked(self, method: str, path: str, body: bytes | None) -> Reply:
        pause = _FIRST_PAUSE_SECONDS
        for number in range(self._retries + 1):
            if number:
                self._sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            try:
                reply = self._tried(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                fault = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            else:
                if reply.status not in _BUSY:
                    return reply
                fault = f"status {reply.status}: {reply.complaint}"
            if self._is_closed:
                break
        tries = "one try" if self._retries == 0 else f"{self._retries + 1} tries"
        raise NetworkError(
            f"{self.url}{path} gave no answer in {tries} ({fault}).",
            "See that 'vllm serve' runs there and is not overloaded; then 'luthier resume' goes on where the run stood.",
            field="objective.generation.url",
        )

    def _tried(self, method: str, path: str, body: bytes | None) -> Reply:
        with self._connection() as connection:
            connection.request(method, self._parts.path + path, body, self._headers)
            response = connection.getresponse()
            return Reply(response.status, response.read().decode("utf-8", "replace"))

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        make = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = make(self._parts.hostname or "", self._parts.port, timeout=self._timeout_seconds)
        with self._lock:
            if self._is_closed:
                raise ConnectionAbortedError("the client is closed")
            self._open.add(connection)
        try:
            yield connection
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def key_in(file: Path, field: str) -> str:
    """The key that a file holds. field: the one that names the file. Raises: NotFound, if it cannot be read; RecipeError for no key."""
    try:
        key = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(
            f"The file with the server's key cannot be read: {error}.",
            f"Set {field} to a file that holds the key alone.",
            file=str(file),
            field=field,
        ) from error
    if not key or len(key.split()) > 1 or not key.isascii() or not key.isprintable():
        raise RecipeError(
            "The file with the server's key does not hold one word.",
            "Write the key into it, and nothing else.",
            file=str(file),
            field=field,
        )
    return key


def tell_open_key(url: str, key: str | None, announce: Callable[[str], None]) -> None:
    """Say so before a key is sent to an address on whose way others could read it."""
    parts = urlsplit(url)
    if key is not None and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        announce(f"The key goes to {parts.hostname} without encryption: its address begins with http.")
