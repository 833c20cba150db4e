"""Where answers are computed: in this process, or by a server that is asked over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, Tag, field_validator

from luthier.types import Settings


class OwnEngine(Settings):
    """Answers are computed in the process itself."""

    kind: Literal["own"] = "own"
    cache_gb: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Most memory for keys and values, in gigabytes (10⁹ bytes); unset: room for 65,536 tokens.",
    )
    max_rows: int = Field(128, ge=1, description="Most answers that are computed together.")
    folds_adapter: bool = Field(
        True,
        description="Whether answers are drawn from copies of the weights with the adapter added in, which is faster and takes memory for the adapted layers once more; only for methods that merge over an fp32 base. Off: base and adapter side by side.",
    )

    def with_paths(self, found: Callable[[str], str]) -> Self:
        """The same: it names no files."""
        return self


class VLLMEngine(Settings):
    """Answers are computed by a running `vllm serve`, which gets the policy anew before each rollout."""

    folds_adapter: ClassVar[bool] = False

    kind: Literal["vllm"] = "vllm"
    url: str = Field(description="Where the server answers, such as http://localhost:8000.")
    model: str | None = Field(
        None, min_length=1, description="The name that it serves the base model under; unset: the only one it has."
    )
    key_file: str | None = Field(None, description="A file that holds the key of its --api-key.")
    shared_folder: str | None = Field(
        None,
        description="A folder that the server reads under the same path, for adapters and weights on their way; unset: in the run's own.",
    )
    num_parallel: int = Field(64, ge=1, le=1024, description="Most requests that are under way at once.")
    timeout_seconds: float = Field(600.0, gt=0, allow_inf_nan=False, description="Most seconds that one request takes.")
    retries: int = Field(
        4, ge=0, le=20, description="How often a request is sent again that met no server, or one that was busy."
    )
    max_gap: float = Field(
        0.02,
        gt=0,
        allow_inf_nan=False,
        description="Nats a token that the server's log-probabilities may be from the trainer's in the mean of a rollout; beyond it the run ends. 0.01 to 0.02 is usual for bf16, 0.05 for experts and few bits.",
    )
    most_weight: float = Field(
        2.0,
        ge=1,
        allow_inf_nan=False,
        description="C: a token's advantage is multiplied by min(π_trainer / π_server, C), since it was the server that drew it.",
    )

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        path = parts.path.rstrip("/").removesuffix("/v1")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{value!r} is no address of a server; write it as in http://localhost:8000.")
        if parts.username is not None:
            raise ValueError("the address holds a name or a key; leave it out, and set key_file.")
        try:
            parts.port  # noqa: B018 - it is read here so that a wrong one is told here
        except ValueError as error:
            raise ValueError(f"{value!r} has no port that can be: {error}.") from error
        return f"{parts.scheme}://{parts.netloc}{path}"

    def with_paths(self, found: Callable[[str], str]) -> Self:
        """The same with the file and the folder where they are."""
        named = {"key_file": self.key_file, "shared_folder": self.shared_folder}
        return self.model_copy(update={name: found(path) for name, path in named.items() if path is not None})


def _kind(value: Any) -> str:
    """The `kind` of an engine as a recipe writes it; own where it is left out."""
    if isinstance(value, dict):
        return str(value.get("kind", "own"))
    return value.kind if isinstance(value, OwnEngine | VLLMEngine) else "own"


AnyEngine = Annotated[Annotated[OwnEngine, Tag("own")] | Annotated[VLLMEngine, Tag("vllm")], Discriminator(_kind)]


def bytes_in(cache_gb: float | None) -> int | None:
    """A size in gigabytes as a number of bytes; None for none."""
    return None if cache_gb is None else int(cache_gb * 1e9)
