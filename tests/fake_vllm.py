"""A server that speaks the protocol of `vllm serve` as its documentation has it, over a tiny model and the engine of this process.

It takes the very fields that are documented and refuses others, so that a request that `vllm serve` would misread fails here.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from luthier.generation.engine import generate
from luthier.generation.requests import Completed, Request
from luthier.generation.settings import Sampling
from luthier.methods import LoRA
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings

_FIELDS = {
    "model", "prompt", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty",
    "presence_penalty", "seed", "stop", "ignore_eos", "stop_token_ids", "logprobs", "return_tokens_as_token_ids", "stream",
    "logit_bias", "structured_outputs",
}  # fmt: skip


@dataclass
class FakeVLLM:
    """What the server is started with, and what it was asked.

    busy: how many requests it turns away first. dead_after: completions that it answers before it hangs up on every request.
    """

    model: LanguageModel
    name: str = "tiny"
    max_model_len: int = 1024
    key: str | None = None
    takes_adapters: bool = True
    takes_weights: bool = False
    max_lora_rank: int = 16
    tells_logprobs: bool = True
    version: str = "0.14.0"
    busy: int = 0
    hangs_seconds: float = 0.0
    dead_after: int | None = None
    url: str = ""
    adapters: dict[str, str] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    weight_version: str | None = None
    num_answered: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    # ── what is asked ───────────────────────────────────────────────────────────────────────────────────────────────

    def answer(self, path: str, body: Any, key: str | None) -> tuple[int, Any]:
        """The status and the body for a request."""
        with self.lock:
            self.asked.append((path, body))
            if self.hangs_seconds:
                time.sleep(self.hangs_seconds)
            if self.busy > 0:
                self.busy -= 1
                return 503, {"error": {"message": "The server is overloaded."}}
            if self.key is not None and path.startswith("/v1") and key != f"Bearer {self.key}":
                return 401, {"error": "Unauthorized"}
            if path == "/v1/models":
                return 200, self._models()
            if path == "/version":
                return 200, {"version": self.version}
            if path == "/v1/completions":
                return self._completions(body)
            if path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter") and self.takes_adapters:
                return self._load(body) if "unload" not in path else self._unload(body)
            if self.takes_weights and path.partition("?")[0] in _WEIGHTS:
                return self._weights(path.partition("?")[0], body)
            return 404, {"detail": "Not Found"}

    def _models(self) -> Any:
        base = {
            "id": self.name,
            "object": "model",
            "root": self.name,
            "parent": None,
            "max_model_len": self.max_model_len,
        }
        others = [
            {"id": name, "object": "model", "root": path, "parent": self.name} for name, path in self.adapters.items()
        ]
        return {"object": "list", "data": [base, *others]}

    def _completions(self, body: dict[str, Any]) -> tuple[int, Any]:
        if strange := sorted(set(body) - _FIELDS):
            return 400, _error(f"unknown fields: {strange}")
        if body["model"] != self.name and body["model"] not in self.adapters:
            return 404, _error(f"The model `{body['model']}` does not exist.")
        if len(body["prompt"]) + body["max_tokens"] > self.max_model_len:
            return 400, _error(
                f"This model's maximum context length is {self.max_model_len} tokens. However, your request has "
                f"{len(body['prompt'])} input tokens plus {body['max_tokens']} 'max_tokens'."
            )
        answers = generate(self.model, [self._request(body)])
        self.num_answered += 1
        choices = [self._choice(index, answer, body) for index, answer in enumerate(answers)]
        return 200, {"object": "text_completion", "model": body["model"], "choices": choices}

    def _request(self, body: dict[str, Any]) -> Request:
        assert body["ignore_eos"]
        same = (
            "temperature", "top_p", "min_p", "stop", "seed", "repetition_penalty", "frequency_penalty", "presence_penalty",
        )  # fmt: skip
        sampling = Sampling(
            **{name: body[name] for name in same},
            top_k=None if body["top_k"] == -1 else body["top_k"],
            max_new_tokens=body["max_tokens"],
            logit_bias=body.get("logit_bias", {}),
        )
        adapter = None if body["model"] == self.name else body["model"]
        stops = frozenset(body["stop_token_ids"])
        return Request(
            tuple(body["prompt"]), sampling, adapter, stops, num_answers=body["n"], top_logprobs=body["logprobs"]
        )

    def _choice(self, index: int, answer: Completed, body: dict[str, Any]) -> dict[str, Any]:
        assert answer.logprobs is not None
        name = (lambda token: f"token_id:{token}") if body["return_tokens_as_token_ids"] else str
        told = {
            "text_offset": [0] * len(answer.tokens),
            "tokens": [name(token) for token in answer.tokens],
            "token_logprobs": [each.logprob for each in answer.logprobs],
            "top_logprobs": [
                {name(token): each.logprob} | {name(other): value for other, value in each.likeliest}
                for token, each in zip(answer.tokens, answer.logprobs, strict=True)
            ],
        }
        return {
            "index": index,
            "text": answer.text,
            "logprobs": told if self.tells_logprobs else None,
            "finish_reason": "length" if answer.finish_reason == "length" else "stop",
            "stop_reason": None,
        }

    # ── the policy ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            return 400, _error(f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").is_file():
            return 404, _error(f"Loading lora {name} failed: No adapter found for {folder}")
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if rank > self.max_lora_rank:
            return 500, _error(f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}.")
        LoRA().continued(folder).attach(self.model, name, seed=0)
        self.adapters[name] = str(folder)
        self.loaded.append(name)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["lora_name"] not in self.adapters:
            return 404, _error(f"The lora adapter '{body['lora_name']}' cannot be found.")
        del self.adapters[body["lora_name"]]
        return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."

    def _weights(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/update_weights":
            folder = Path(body["update_info"]["path"])
            assert folder.is_absolute()
            new = load_model(ModelSettings(name=str(folder), dtype="fp32"), lambda text: None)
            with torch.no_grad():
                for own, other in zip(self.model.hf.parameters(), new.hf.parameters(), strict=True):
                    own.copy_(other)
        if path == "/finish_weight_update":
            self.weight_version = body["weight_version"]
            self.loaded.append(body["weight_version"])
        return 200, {"message": "done"}


_WEIGHTS = (
    "/init_weight_transfer_engine", "/pause", "/start_weight_update", "/update_weights", "/finish_weight_update", "/resume",
)  # fmt: skip


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "code": 400}}


@contextmanager
def serving(fake: FakeVLLM) -> Iterator[FakeVLLM]:
    """Within, the server runs at its `url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, body: Any) -> None:
            if fake.dead_after is not None and fake.num_answered >= fake.dead_after:
                self.close_connection = True
                return
            status, value = fake.answer(self.path, body, self.headers.get("Authorization"))
            data = (value if isinstance(value, str) else json.dumps(value)).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):  # whoever asked did not wait
                return

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
