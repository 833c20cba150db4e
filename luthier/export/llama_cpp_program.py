"""A program that lets llama.cpp read a GGUF file and tells what it says: run as `python -m luthier.export.llama_cpp_program`.

A process of its own, because llama.cpp ends its process where it finds a file wrong. It takes one JSON object from standard
in, {"file", "adapter" or null, "rows": [[token, …], …], "texts": [text, …]}, and gives on standard out one line of JSON,
{"vocabulary": V, "tokens": [[token, …] for each text]}, then for each row its logits as float32, (T, V), and nothing else.

Two bindings serve: `llama_cpp` (llama-cpp-python), and the low-level interface of `llama` (llama-cpp-cffi).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

BINDINGS = {"llama_cpp": "llama-cpp-python", "llama": "llama-cpp-cffi"}
"""Modules that reach llama.cpp, and the packages that bring them."""

_CFFI = "_llama_cpp_cpu"


def binding() -> str | None:
    """The first module of `BINDINGS` that is there and loads."""
    for name, load in (("llama_cpp", _python), ("llama", _cffi)):
        try:
            load()
        except (ImportError, OSError):  # not there; or made for another system
            continue
        return name
    return None


def _python() -> Any:
    return importlib.import_module("llama_cpp")


def _cffi() -> Any:
    """The library alone, without the package around it, which wants much else."""
    package = importlib.util.find_spec("llama")
    places = [] if package is None else list(package.submodule_search_locations or ())
    files = [file for place in places for file in Path(place).glob(f"{_CFFI}.*so")]
    spec = importlib.util.spec_from_file_location(_CFFI, files[0]) if files else None
    if spec is None or spec.loader is None:
        raise ImportError(_CFFI)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Loaded(Protocol):
    """A model in llama.cpp."""

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text that may hold special ones, without those that begin and end a document."""

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """What is said after each token, shape (T, V)."""


class Python:
    """By llama-cpp-python."""

    def __init__(self, file: str, adapter: str | None, longest: int) -> None:
        self._model = _python().Llama(
            file, lora_path=adapter, n_ctx=longest, n_batch=longest, n_threads=_threads(), n_gpu_layers=0,
            logits_all=True, type_k=0, type_v=0, verbose=False,
        )  # fmt: skip

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text that may hold special ones, without those that begin and end a document."""
        found: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=True)
        return found

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """What is said after each token, shape (T, V)."""
        self._model.reset()
        self._model.eval(list(tokens))
        scores: NDArray[np.float32] = self._model.scores[: len(tokens)]
        return scores


class CFFI:
    """By llama-cpp-cffi's functions of llama.cpp itself."""

    def __init__(self, file: str, adapter: str | None, longest: int) -> None:
        module = _cffi()
        self._c, self._ffi = module.lib, module.ffi
        self._c.llama_backend_init()
        self._model = self._c.llama_model_load_from_file(file.encode(), self._c.llama_model_default_params())
        self._check(self._model != self._ffi.NULL, f"llama.cpp does not take {file}")
        settings = self._c.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = longest
        settings.n_threads = settings.n_threads_batch = _threads()
        settings.type_k = settings.type_v = 0
        self._context = self._c.llama_init_from_model(self._model, settings)
        self._check(self._context != self._ffi.NULL, f"llama.cpp makes no context for {file}")
        self._vocabulary = self._c.llama_model_get_vocab(self._model)
        if adapter is not None:
            lora = self._c.llama_adapter_lora_init(self._model, adapter.encode())
            self._check(lora != self._ffi.NULL, f"llama.cpp does not take {adapter}")
            self._c.llama_set_adapter_lora(self._context, lora, 1.0)

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text that may hold special ones, without those that begin and end a document."""
        raw = text.encode()
        room = len(raw) + 16
        found = self._ffi.new(f"llama_token[{room}]")
        count = self._c.llama_tokenize(self._vocabulary, raw, len(raw), found, room, False, True)
        return [int(found[index]) for index in range(count)]

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """What is said after each token, shape (T, V)."""
        self._c.llama_kv_self_clear(self._context)
        batch = self._c.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        self._check(self._c.llama_decode(self._context, batch) == 0, "llama.cpp does not compute the row")
        size = 4 * int(self._c.llama_vocab_n_tokens(self._vocabulary))
        rows = (self._c.llama_get_logits_ith(self._context, index) for index in range(len(tokens)))
        said = np.stack([np.frombuffer(self._ffi.buffer(row, size), np.float32).copy() for row in rows])
        self._c.llama_batch_free(batch)
        return said

    @staticmethod
    def _check(holds: bool, fault: str) -> None:
        if not holds:
            raise SystemExit(fault)


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def answers(asked: dict[str, Any]) -> Iterator[bytes]:
    """What goes to standard out."""
    longest = max(len(row) for row in asked["rows"])
    terms = (asked["file"], asked["adapter"], max(longest, 32))
    model: Loaded = Python(*terms) if binding() == "llama_cpp" else CFFI(*terms)
    tokens = [model.tokens(text) for text in asked["texts"]]
    for index, row in enumerate(asked["rows"]):
        said_TV = model.logits(row)
        if index == 0:
            yield json.dumps({"vocabulary": said_TV.shape[1], "tokens": tokens}).encode() + b"\n"
        yield said_TV.astype(np.float32).tobytes()


def main() -> None:
    """Answer; what llama.cpp itself prints goes to standard error. With `--which`, say only which binding there is."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    if sys.argv[1:] == ["--which"]:
        out.write((binding() or "").encode())
        return
    for piece in answers(json.load(sys.stdin)):
        out.write(piece)
        out.flush()


if __name__ == "__main__":
    main()
