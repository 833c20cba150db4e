"""Requests as `/v1/completions` of `vllm serve` takes them, and what it gives as the engine of this process gives it.

Prompts go as tokens, and tokens come back: nothing is split into tokens again. What ends an answer is decided by the request
alone (`ignore_eos` with all stop tokens named), and every setting is sent, so that no default of the server or of the model's files
comes in. Text, stop texts and the reason of the end are found from the tokens as for answers of this process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from luthier.errors import NetworkError, RecipeError, ResourceError
from luthier.generation.answers import Answer, Asked
from luthier.generation.engine import Progress, token_budget
from luthier.generation.remote.server import Server
from luthier.generation.requests import Completed, Request, TokenLogprob
from luthier.generation.rows import Decoder

_TOKEN = "token_id:"
_LEAST_LOGPROB = -9999.0  # what the server writes for an impossible token
_MOST_BIAS = 100.0  # it cuts larger ones off

Names = Mapping[str | None, str]
"""What the server calls each adapter; None: the base model."""


class RemoteEngine:
    """Has requests answered by a server.

    Args:
        model: whose tokenizer, stop tokens and length count; its weights are not asked.
        num_parallel: most requests that are under way at once.
    """

    def __init__(self, server: Server, model: Decoder, num_parallel: int) -> None:
        self.server = server
        self._model = model
        self._num_parallel = num_parallel

    def check_fits(self, num_prompt: int, num_new: int) -> None:
        """Raise ResourceError if the server holds fewer tokens than a prompt with so many new ones."""
        most = self.server.base.max_length
        if most is not None and num_prompt + num_new > most:
            raise ResourceError(
                f"A prompt of {num_prompt} tokens with up to {num_new} new ones needs {num_prompt + num_new}, and the server at "
                f"{self.server.client.url} holds {most} (its max_model_len).",
                f"Start it with --max-model-len {num_prompt + num_new}, or lower max_new_tokens or the prompts' length.",
                field="objective.generation",
            )

    def generate(
        self, requests: Sequence[Request], names: Names | None = None, progress: Progress | None = None
    ) -> list[Completed]:
        """The answers to requests, in their order; several answers to one request side by side.

        names: what the server calls the requests' adapters; unset: none is asked for.

        Raises: DataError, if a prompt is empty or leaves no room in the model's context; ResourceError, if it leaves none in the
        server's; RecipeError for what the server cannot be asked for; NetworkError, NotAllowed and NotFound as `Server`.
        """
        if any(request.sampling.is_constrained for request in requests):
            self.server.check_constrains()
        served: Names = {None: self.server.base.name} if names is None else names
        jobs = [self._job(request, served) for request in requests]
        total = sum(request.num_answers for request in requests)
        lock, ended = threading.Lock(), 0

        def answered(job: tuple[Request, int, dict[str, Any]]) -> list[Completed]:
            nonlocal ended
            request, budget, body = job
            choices = self.server.completions(body)
            completed = [self._completed(request, budget, number, choice) for number, choice in enumerate(choices)]
            with lock:
                ended += len(completed)
                if progress is not None:
                    progress(ended, total)
            return completed

        return [answer for of_request in self._all(answered, jobs) for answer in of_request]

    def _all(self, answered: Callable[[Any], list[Completed]], jobs: Sequence[Any]) -> list[list[Completed]]:
        """What each job gives, so many at once. The first error ends what has not begun, and is raised."""
        pool = ThreadPoolExecutor(max(1, min(self._num_parallel, len(jobs))), thread_name_prefix="luthier-remote")
        futures: list[Future[list[Completed]]] = []
        try:
            futures = [pool.submit(answered, job) for job in jobs]
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done() and (error := future.exception()) is not None:
                    raise error
            return [future.result() for future in futures]
        except KeyboardInterrupt:
            self.server.client.close()  # else the process would wait for the server at its end
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _job(self, request: Request, names: Names) -> tuple[Request, int, dict[str, Any]]:
        _check_asked(request, self._model)
        budget = token_budget(self._model, request)
        self.check_fits(len(request.prompt), budget)
        return request, budget, body_of(request, names[request.adapter], budget, self._model.stop_ids)

    def _completed(self, request: Request, budget: int, number: int, choice: Mapping[str, Any]) -> Completed:
        """An answer as this process would have ended it."""
        answer = Answer(Asked(request, request.prompt, budget), number, self._model.stop_ids, self._model.tokenizer)
        for token, logprob in self._said(choice):
            answer.add(token)
            answer.logprobs.append(_told(logprob, request.top_logprobs or 0))
            if answer.finish_reason is not None:
                return answer.completed()
        raise NetworkError(
            f"The server at {self.server.client.url} ended an answer after {len(answer.tokens)} of {budget} tokens for a reason of "
            f"its own ({choice.get('finish_reason')!r}, {choice.get('stop_reason')!r}).",
            "See its log, and that nothing else pauses it or takes requests away.",
            field="objective.generation",
        )

    def _said(self, choice: Mapping[str, Any]) -> list[tuple[int, tuple[float, Mapping[str, float]]]]:
        """The tokens of an answer, each with its log-probability and those of the likeliest in its place.

        Raises: NetworkError, if the server tells none.
        """
        told = choice.get("logprobs")
        try:
            assert isinstance(told, Mapping)
            tokens = [int(text.removeprefix(_TOKEN)) for text in told["tokens"] if text.startswith(_TOKEN)]
            logprobs = [float(number) for number in told["token_logprobs"]]
            likeliest = [dict(each or {}) for each in told.get("top_logprobs") or [None] * len(tokens)]
            if not tokens or not len(told["tokens"]) == len(tokens) == len(logprobs) == len(likeliest):
                raise ValueError("as many tokens as numbers")
        except (AssertionError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise NetworkError(
                f"The server at {self.server.client.url} does not tell the tokens of an answer with their log-probabilities.",
                "Use a vLLM that has return_tokens_as_token_ids (0.6.3 or newer), and nothing between that leaves logprobs out.",
                field="objective.generation",
            ) from error
        return list(zip(tokens, zip(logprobs, likeliest, strict=True), strict=True))


def body_of(request: Request, name: str, budget: int, model_stops: frozenset[int]) -> dict[str, Any]:
    """A request as the server takes it. name: of the model or adapter. budget: most new tokens. model_stops: end every answer."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": name,
        "prompt": list(request.prompt),
        "n": request.num_answers,
        "max_tokens": budget,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": -1 if sampling.top_k is None else sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "seed": sampling.seed,
        "stop": list(sampling.stop),
        "ignore_eos": True,
        "stop_token_ids": sorted(model_stops | request.stop_ids),
        "logprobs": request.top_logprobs or 0,
        "return_tokens_as_token_ids": True,
        "stream": False,
    }
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.regex is not None:
        body["structured_outputs"] = {"regex": sampling.regex}
    if sampling.json_schema is not None:
        body["structured_outputs"] = {"json": sampling.json_schema}
    return body


def _told(said: tuple[float, Mapping[str, float]], count: int) -> TokenLogprob:
    """A token's log-probability, and the so many likeliest tokens in its place, likeliest first."""
    logprob, likeliest = said
    ordered = sorted(likeliest.items(), key=lambda item: -item[1])[:count]
    kept = tuple((int(text.removeprefix(_TOKEN)), _number(value)) for text, value in ordered)
    return TokenLogprob(_number(logprob), kept)


def _number(logprob: float) -> float:
    return -np.inf if logprob <= _LEAST_LOGPROB else float(logprob)


def _check_asked(request: Request, model: Decoder) -> None:
    """Raise RecipeError for what `vllm serve` cannot be asked for, or would do otherwise without saying so."""
    virtual = model.num_virtual(request.adapter)
    if model.answer_start is not None or virtual or not request.causal:
        raise RecipeError(
            "vLLM goes on from tokens read left to right, and this model or adapter wants something else before or of them.",
            "Let it be answered in this process (kind: own).",
            field="objective.generation",
        )
    beyond = [bias for _, bias in request.sampling.logit_bias if abs(bias) > _MOST_BIAS]
    if beyond:
        raise RecipeError(
            f"logit_bias holds {beyond[0]:g}, and vLLM cuts biases off at ±{_MOST_BIAS:g}.",
            f"Use at most {_MOST_BIAS:g}.",
            field="logit_bias",
        )
