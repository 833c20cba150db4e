"""A server on this machine that speaks OpenAI's chat completions, as a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any]
"""A status and a body: JSON values, or bytes as they are."""


def completion(text: str | None, **message: Any) -> Answer:
    """What a server answers that has answered."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    return 200, {"object": "chat.completion", "choices": [choice]}


@dataclass
class Asked:
    """The requests that came, in their order. url: the server's address, as a user gives it. num_lists: how often its models were asked for."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    num_lists: int = 0

    @property
    def texts(self) -> list[str]:
        """What was asked last in each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextmanager
def serving(
    answer: Callable[[dict[str, Any]], Answer], headers: dict[str, str] | None = None, models: Answer = (404, {})
) -> Iterator[Asked]:
    """Within: such a server; `answer` gets each request's body, and may take its time. headers: more of them, of every answer.

    models: what is answered to who asks for the list of models; unset, there is none.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions"
            asked.bodies.append(body)
            asked.headers.append(dict(self.headers))
            self.send(*answer(body))

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            asked.num_lists += 1
            self.send(*models)

        def send(self, status: int, value: Any) -> None:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, address: Any) -> None:
            """A client that left without its answer is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    asked = Asked(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
