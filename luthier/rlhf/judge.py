"""The model that a reward's grader asks: behind an address that speaks OpenAI's chat completions, a service's or a server's of one's own.

rewards:
  - grader: {type: score_model, range: [1, 10], input: [{role: user, content: "Rate this: {{ sample.output_text }}"}]}
    judge: {url: http://localhost:8000/v1, model: NAME}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator

from luthier.errors import NetworkError, NotAllowed, UsageError
from luthier.evaluation.grading import Ask, JudgeSampling
from luthier.generation.remote.http import key_in, tell_open_key
from luthier.types import Message, Settings

_FIELD = "objective.rewards.judge"


class Judge(Settings):
    """Whom a grader by a model asks, and how patiently."""

    url: str = Field(description="Where the judge answers, as in https://HOST/v1.")
    model: str | None = Field(None, min_length=1, description="Its name there; unset: the one that each grader names.")
    key_file: str | None = Field(None, description="A file that holds the server's key.")
    timeout_seconds: float = Field(120.0, gt=0, allow_inf_nan=False, description="Most seconds that one request takes.")
    retries: int = Field(
        4, ge=0, le=20, description="How often a request is sent again that met no server, or one that was busy."
    )
    num_parallel: int = Field(4, ge=1, le=1024, description="Most requests that are under way at once.")
    max_new_tokens: int = Field(
        512, ge=1, description="Most tokens of what it says to a grader that sets no bound of its own."
    )

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        from luthier.evaluation.judged.endpoint import Endpoint, check_endpoint  # with models; recipes are read without

        try:
            check_endpoint(Endpoint(value, ""))
        except UsageError:
            raise ValueError(
                f"{value!r} is no bare address of a server; write it as in https://HOST/v1, and a key into key_file."
            ) from None
        return value

    def with_paths(self, found: Callable[[str], str]) -> Self:
        """The same with the file of the key where it is."""
        return self if self.key_file is None else self.model_copy(update={"key_file": found(self.key_file)})

    def asked(self, announce: Callable[[str], None]) -> Ask:
        """What asks it. It is asked once at the beginning, before anything is learned. announce: told of a key that others may read.

        Raises: NotFound and RecipeError for a file that holds no key; NetworkError and NotAllowed, here and when it is asked.
        """
        from luthier.evaluation.judged.asking import ask_endpoint
        from luthier.evaluation.judged.endpoint import Endpoint, EndpointModel

        key = None if self.key_file is None else key_in(Path(self.key_file), f"{_FIELD}.key_file")
        tell_open_key(self.url, key, announce)
        endpoint = Endpoint(
            self.url, self.model or "", key, self.timeout_seconds, self.retries, self.num_parallel, self.max_new_tokens
        )
        ask = ask_endpoint(endpoint)
        with _in_the_recipe():
            EndpointModel(endpoint).check()

        def told(chats: Sequence[tuple[Message, ...]], model: str | None, sampling: JudgeSampling) -> list[str | None]:
            with _in_the_recipe():
                return ask(chats, model, sampling)

        return told


@contextmanager
def _in_the_recipe() -> Iterator[None]:
    """Within: what a judge fails at is told with the field that is to be mended."""
    try:
        yield
    except (NetworkError, NotAllowed) as error:
        error.field = _FIELD
        error.mend = "Check url, model, key_file and timeout_seconds of the judge."
        raise
