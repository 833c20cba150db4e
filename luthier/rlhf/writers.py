"""Who writes a policy's answers: the engine of this process, or a server that gets the policy anew before each rollout.

A server computes by other means than the trainer, so that what it says of the tokens it drew is only nearly what the trainer says
of them. Then the log-probabilities of every ratio are the trainer's, read anew from the answers; the server's are kept beside them,
and a token's advantage is multiplied by the truncated importance weight

    w = min(π_trainer / π_server, C)

for it was π_server that drew it (Yao et al. 2025, https://fengyao.notion.site/off-policy-rl; truncation after Ionides 2008).
The pull to the reference is not. A server that is too far off (`max_gap`) ends the run: it serves something else.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.errors import LuthierError, RecipeError, RunMismatch
from luthier.export.peft_folder import Serving, check_served
from luthier.generation.engine import Engine, Progress, generate
from luthier.generation.engine_settings import OwnEngine, VLLMEngine, bytes_in
from luthier.generation.remote.engine import RemoteEngine
from luthier.generation.remote.server import Server, connect
from luthier.generation.requests import Completed, Request
from luthier.generation.settings import Sampling
from luthier.methods.contract import Attachment
from luthier.methods.peft_files import CONFIG
from luthier.rlhf.contract import ADVANTAGE
from luthier.rlhf.experience import Given
from luthier.rlhf.samples import Sample
from luthier.store.files import make_folder, remove_folder, write_folder
from luthier.training.loop import autocast
from luthier.types import FloatArray

FOLDER = "engine"
"""Of a run: adapters and weights on their way to a server."""

_FIELD = "objective.generation"


@dataclass(frozen=True)
class Apart:
    """A writer that computes by other means than the trainer.

    max_gap: nats a token that the two may be apart in the mean. most_weight: C.
    """

    max_gap: float
    most_weight: float

    def check(self, gap: float, temperature: float) -> None:
        """Raise RunMismatch if the two were further apart than they may be. gap: nats a token, in the mean."""
        if gap <= self.max_gap:
            return
        modes = "" if temperature == 1 else " with --logprobs-mode processed_logprobs (the temperature is not 1)"
        raise RunMismatch(
            f"The server that wrote the answers and the trainer give their tokens log-probabilities {gap:.3g} nats apart, more "
            f"than {_FIELD}.max_gap ({self.max_gap:g}).",
            f"See that it serves the recipe's model in the same precision{modes}, and reads the folder that adapters are written "
            f"to; or raise {_FIELD}.max_gap.",
            field=f"{_FIELD}.max_gap",
        )


class Writer(ABC):
    """Who writes a policy's answers."""

    @property
    def apart(self) -> Apart | None:
        """How far it may be from the trainer; None: it is the trainer's own model, by the same means."""
        return None

    @abstractmethod
    def write(self, requests: Sequence[Request], version: int, progress: Progress | None = None) -> list[Completed]:
        """The answers to requests, in order, by the policy as it is. version: how many optimizer steps it has taken."""

    @abstractmethod
    def check_fits(self, num_prompt: int, num_new: int, num_answers: int) -> None:
        """Raise ResourceError if there is no room for a prompt of so many tokens with so many new ones in each answer."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds outside this process."""


class OwnWriter(Writer):
    """The engine of this process, over the base and the adapter beside it, or over both in one."""

    def __init__(self, attachment: Attachment, settings: OwnEngine, compute_in: torch.dtype | None = None) -> None:
        """compute_in: as training computes matrix products. Where that is coarser than the weights nothing is folded into them, for
        it would round what the policy has learned otherwise than the trainer does."""
        self._attachment, self._settings, self._compute_in = attachment, settings, compute_in

    def write(self, requests: Sequence[Request], version: int, progress: Progress | None = None) -> list[Completed]:
        """See the base class. Raises: as `generate`."""
        attachment, settings = self._attachment, self._settings
        folds = settings.folds_adapter and self._compute_in is None
        with (
            attachment.folded() if folds else nullcontext(attachment.adapter) as adapter,
            autocast(attachment.model.device, self._compute_in),
        ):
            return generate(
                attachment.model,
                [replace(request, adapter=adapter) for request in requests],
                max_rows=settings.max_rows,
                cache_bytes=bytes_in(settings.cache_gb),
                progress=progress,
            )

    def check_fits(self, num_prompt: int, num_new: int, num_answers: int) -> None:
        """See the base class. Without a limit of memory there is room for anything that the model can hold."""
        if (limit := bytes_in(self._settings.cache_gb)) is not None:
            sampling = Sampling(max_new_tokens=num_new)
            asked = Request((0,) * num_prompt, sampling, self._attachment.adapter, num_answers=num_answers)
            Engine(self._attachment.model, cache_bytes=limit).submit(asked)

    def close(self) -> None:
        """It holds nothing."""


class VLLMWriter(Writer):
    """A running `vllm serve`: each version of the policy is an adapter under a name of its own, or all weights anew.

    One that a process of this run left there is taken away first; the latest is at the end.
    """

    def __init__(self, server: Server, attachment: Attachment, settings: VLLMEngine, folder: Path) -> None:
        """folder: of the run. Raises: RecipeError for a policy that vLLM cannot load; NotAllowed, if the server takes none."""
        self._attachment, self._settings, self._server = attachment, settings, server
        self._engine = RemoteEngine(server, attachment.model, settings.num_parallel)
        self._serving = serving_of(attachment)
        self._folder = Path(settings.shared_folder or folder / FOLDER).resolve()
        # a name is never used twice: the server may know prompts by the name of their adapter
        self._of_run = f"luthier-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:10]}-"
        self._of_process = f"{self._of_run}{secrets.token_hex(3)}-"
        self._name: str | None = None
        self._version: int | None = None
        self._clear()

    def _clear(self) -> None:
        """Take away what a process of this run left, there and here; make the server ready to take weights."""
        for left in self._folder.glob(f"{self._of_run}*"):
            remove_folder(left)
        if self._serving is None:
            self._server.begin_weights()
            return
        for model in self._server.models():
            if model.parent is not None and model.name.startswith(self._of_run):
                self._server.unload_adapter(model.name)

    @property
    def apart(self) -> Apart:
        """As the settings have it."""
        return Apart(self._settings.max_gap, self._settings.most_weight)

    def check_fits(self, num_prompt: int, num_new: int, num_answers: int) -> None:
        """See the base class."""
        self._engine.check_fits(num_prompt, num_new)

    def write(self, requests: Sequence[Request], version: int, progress: Progress | None = None) -> list[Completed]:
        """See the base class. Raises: as `RemoteEngine.generate` and `Server`."""
        if version != self._version:
            self._push(version)
        served = self._name or self._server.base.name
        return self._engine.generate(requests, {self._attachment.adapter: served}, progress)

    def _push(self, version: int) -> None:
        """Bring the policy as it is to the server; what it had of it before is let go of."""
        name = f"{self._of_process}{version}"
        make_folder(self._folder)
        written = self._folder / name
        write_folder(written, lambda partial: self._attachment.write(partial, lambda text: None), replace=True)
        if self._serving is None:
            if not (written / "config.json").is_file():
                raise _other_form()
            self._server.load_weights(written, name)
            remove_folder(written)
        else:
            self._server.load_adapter(name, written, self._serving.max_rank)
            self._forget()
            self._name = name
        self._version = version

    def _forget(self) -> None:
        """Let go of the adapter that is served. Its folder stays until then: the server may read it again."""
        if self._name is not None:
            self._server.unload_adapter(self._name)
            remove_folder(self._folder / self._name)
            self._name = None

    def close(self) -> None:
        """Take the latest adapter away from the server; one that cannot be reached keeps it until the run goes on."""
        with suppress(LuthierError):
            self._forget()
        self._server.client.close()
        if self._settings.shared_folder is None:
            remove_folder(self._folder)


def serving_of(attachment: Attachment) -> Serving | None:
    """What vLLM must be told to serve a policy's adapter; None for one that is a whole model.

    Raises: RecipeError for what vLLM does not load, with the reason.
    """
    if attachment.adapter is None:
        return None
    with tempfile.TemporaryDirectory(prefix="luthier-") as name:
        folder = Path(name)
        attachment.write(folder, lambda text: None)
        is_json = (folder / CONFIG).is_file()
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8")) if is_json else {}
        if "peft_type" in config:  # other libraries' adapters have a file of that name too
            try:
                return check_served(config, attachment.model.anatomy)
            except RecipeError as error:
                raise _not_loaded(error.found, error.field) from error
    raise _other_form()


def _other_form() -> RecipeError:
    return _not_loaded("It is no adapter in peft's form and no whole model, and it loads nothing else.", "method.kind")


def _not_loaded(found: str, field: str | None) -> RecipeError:
    return RecipeError(
        f"vLLM cannot load what the method trains. {found}",
        f"Set method.kind to lora, or leave {_FIELD} out: every method's answers can be computed in the process that trains.",
        field=field,
    )


def writer_of(
    settings: OwnEngine | VLLMEngine,
    attachment: Attachment,
    folder: Path,
    sleep: Callable[[float], None] | None = None,
    compute_in: torch.dtype | None = None,
) -> Writer:
    """Who writes the answers of a policy, ready to. compute_in: as training computes. Raises: as `VLLMWriter` and `connect`."""
    if isinstance(settings, OwnEngine):
        return OwnWriter(attachment, settings, compute_in)
    return VLLMWriter(connect(settings, sleep), attachment, settings, folder)


def importance(sample: Sample, most_weight: float) -> FloatArray:
    """w of each token of an answer, shape (T,)."""
    assert sample.old_T is not None, "the trainer reads all answers that others wrote"
    gap_T = sample.old_T.astype(np.float64) - sample.engine_T.astype(np.float64)
    return np.minimum(np.exp(np.minimum(gap_T, np.log(most_weight))), most_weight).astype(np.float32)


def weighed(samples: Sequence[Sample], given: Sequence[Given], apart: Apart | None) -> list[Given]:
    """What tokens are learned by, their advantages times w where another than the trainer drew them."""
    if apart is None:
        return list(given)
    return [
        {**own, ADVANTAGE: own[ADVANTAGE] * importance(sample, apart.most_weight)} if ADVANTAGE in own else own
        for sample, own in zip(samples, given, strict=True)
    ]
