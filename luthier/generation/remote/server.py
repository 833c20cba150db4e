"""What `vllm serve` can be told and asked, one method each: which models it has, completions, adapters, weights.

Its protocol: https://docs.vllm.ai/en/latest/serving/openai_compatible_server/, adapters
https://docs.vllm.ai/en/latest/features/lora/, weights https://docs.vllm.ai/en/latest/training/weight_transfer/ (of these the
disk backend, the only one that needs nothing but HTTP and a folder).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError, NetworkError, NotAllowed, NotFound, RecipeError, ResourceError
from luthier.generation.engine_settings import VLLMEngine
from luthier.generation.remote.http import JSONClient, Reply, key_in

_FIELD = "objective.generation"
_CONSTRAINS_SINCE = (0, 11)
RUNTIME_ADAPTERS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
DEV_MODE = "VLLM_SERVER_DEV_MODE=1"
DISK_BACKEND = """--weight-transfer-config '{"backend": "disk"}'"""


@dataclass(frozen=True)
class Served:
    """A model that the server has. parent: of an adapter, the base. max_length: most tokens of prompt and answer, if it says so."""

    name: str
    parent: str | None
    max_length: int | None


class Server:
    """A running `vllm serve`.

    base: the model that completions are asked of unless an adapter is named.
    """

    def __init__(self, client: JSONClient, wanted: str | None = None) -> None:
        """wanted: the name that the base model is served under; None: it is the only one.

        Raises: NetworkError, if no server answers; NotAllowed, if it wants another key; NotFound, if it has no such model.
        """
        self.client = client
        self.base = _chosen(self.models(), wanted, client.url)

    def models(self) -> list[Served]:
        """The models that it has, adapters among them."""
        reply = self.client.get("/v1/models")
        if not reply.is_good:
            raise self._refusal(reply, "say which models it has")
        value = reply.json(f"{self.client.url}/v1/models")
        try:
            return [Served(str(each["id"]), each.get("parent"), each.get("max_model_len")) for each in value["data"]]
        except (TypeError, KeyError, AttributeError) as error:
            raise NetworkError(
                f"{self.client.url}/v1/models does not list models as the OpenAI API does.",
                "See that the address is that of 'vllm serve' itself.",
                field=f"{_FIELD}.url",
            ) from error

    def completions(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices that a request is answered with, in order. Raises: as the class, and for what the server refuses."""
        reply = self.client.post("/v1/completions", body)
        if not reply.is_good:
            raise self._refusal(reply, f"complete a prompt of {len(body['prompt'])} tokens with {body['model']}")
        value = reply.json(f"{self.client.url}/v1/completions")
        choices = value.get("choices") if isinstance(value, dict) else None
        if not isinstance(choices, list) or len(choices) != body["n"]:
            count = len(choices) if isinstance(choices, list) else "no"
            raise NetworkError(
                f"{self.client.url} gave {count} answers where {body['n']} were asked for.",
                "See that the address is that of 'vllm serve' itself, and that it is of a recent version.",
            )
        return sorted(choices, key=lambda choice: int(choice["index"]))

    def check_constrains(self) -> None:
        """Raise RecipeError if it is of a version that takes no notice of constraints under the name that they are sent by."""
        reply = self.client.get("/version")
        found = re.match(r"(\d+)\.(\d+)", str(reply.json("/version").get("version"))) if reply.is_good else None
        if found is not None and (int(found[1]), int(found[2])) < _CONSTRAINS_SINCE:
            raise RecipeError(
                f"The server at {self.client.url} is vLLM {found[0]}, which knows no structured_outputs, and would leave regex and "
                "json_schema out.",
                f"Use vLLM {_CONSTRAINS_SINCE[0]}.{_CONSTRAINS_SINCE[1]} or newer, or leave them out.",
                field=_FIELD,
            )

    # ── adapters ────────────────────────────────────────────────────────────────────────────────────────────────────

    def load_adapter(self, name: str, folder: Path, rank: int) -> None:
        """Have it read an adapter in peft's files, and serve it under that name. folder: absolute, the same on its side.

        Raises: NotAllowed, if it lets nobody load adapters; RecipeError for one that it does not take; as the class.
        """
        reply = self.client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if reply.is_good or (reply.status == 400 and self._has(name)):  # a try whose answer was lost had loaded it
            return
        if reply.status in (404, 405) and not _is_about_adapters(reply):
            raise NotAllowed(
                f"The server at {self.client.url} lets nobody load adapters.",
                f"Start it with {RUNTIME_ADAPTERS} in its environment, and --enable-lora --max-lora-rank {rank}.",
                field=_FIELD,
            )
        if reply.status in (401, 403):
            raise self._refusal(reply, "load an adapter")
        raise RecipeError(
            f"The server at {self.client.url} did not load the adapter in {folder}: {reply.complaint}",
            f"Start it with --enable-lora --max-lora-rank {rank}, and see that it can read that folder under this very path "
            f"({_FIELD}.shared_folder).",
            field=_FIELD,
        )

    def unload_adapter(self, name: str) -> None:
        """Have it forget an adapter; one that it does not have is none to forget."""
        reply = self.client.post("/v1/unload_lora_adapter", {"lora_name": name})
        if not reply.is_good and self._has(name):
            raise self._refusal(reply, f"let go of the adapter {name}")

    def _has(self, name: str) -> bool:
        return any(model.name == name for model in self.models())

    # ── weights ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin_weights(self) -> None:
        """Make it ready to take weights from a folder. Raises: NotAllowed, if it was not started for that; as the class."""
        self._told("/init_weight_transfer_engine", {"init_info": {}})

    def load_weights(self, folder: Path, version: str) -> None:
        """Have it read all weights anew from a folder of safetensors files, and forget what it computed with the old ones.

        folder: absolute, the same on its side.
        """
        self._told("/pause?mode=wait", {})
        try:
            self._told("/start_weight_update", {})
            self._told("/update_weights", {"update_info": {"path": str(folder)}})
            self._told("/finish_weight_update", {"weight_version": version})
        finally:
            self._told("/resume", {})

    def _told(self, path: str, body: dict[str, Any]) -> None:
        reply = self.client.post(path, body)
        if reply.is_good:
            return
        if reply.status in (401, 403):
            raise self._refusal(reply, "take weights")
        raise NotAllowed(
            f"The server at {self.client.url} does not take weights ({path}: {reply.complaint}).",
            f"Start it with {DEV_MODE} in its environment and {DISK_BACKEND} (a vLLM that has this backend); or train an adapter, "
            "such as method: {kind: lora}.",
            field=_FIELD,
        )

    # ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _refusal(self, reply: Reply, what: str) -> LuthierError:
        """What to say of a reply that is none."""
        url, complaint = self.client.url, reply.complaint
        if reply.status in (401, 403):
            return NotAllowed(
                f"The server at {url} takes no requests with this key, or wants one (status {reply.status}).",
                f"Write the key that it was started with (--api-key) into a file, and set {_FIELD}.key_file to it.",
                field=f"{_FIELD}.key_file",
            )
        if reply.status == 404:
            return NotFound(
                f"The server at {url} could not {what}: {complaint}",
                f"See that the address is that of 'vllm serve', and {_FIELD}.model one of its names.",
                field=f"{_FIELD}.model",
            )
        if "context length" in complaint or "max_model_len" in complaint:
            return ResourceError(
                f"The server at {url} could not {what}: {complaint}",
                "Start it with a larger --max-model-len, or lower objective.max_new_tokens or data.max_length.",
                field=_FIELD,
            )
        return NetworkError(
            f"The server at {url} could not {what} (status {reply.status}): {complaint}",
            "Its own log says more.",
            field=_FIELD,
        )


def connect(settings: VLLMEngine, sleep: Callable[[float], None] | None = None) -> Server:
    """The server that settings name.

    Raises: NotFound, if the file with the key cannot be read; as `Server`.
    """
    key = None if settings.key_file is None else key_in(Path(settings.key_file), f"{_FIELD}.key_file")
    waits = {} if sleep is None else {"sleep": sleep}
    client = JSONClient(settings.url, key, settings.timeout_seconds, settings.retries, **waits)
    return Server(client, settings.model)


def _is_about_adapters(reply: Reply) -> bool:
    """Whether an adapter was not found; if not, the way to load one was not."""
    return "adapter" in reply.text.lower()


def _chosen(models: list[Served], wanted: str | None, url: str) -> Served:
    """The base model of that name, or the only one."""
    bases = [model for model in models if model.parent is None]
    names = ", ".join(model.name for model in bases) or "none"
    found = bases if wanted is None else [model for model in bases if model.name == wanted]
    if len(found) == 1:
        return found[0]
    if wanted is not None:
        raise NotFound(
            f"The server at {url} has no base model {wanted!r}; it has {names}.",
            f"Set {_FIELD}.model to one of its names, or start it with --served-model-name {wanted}.",
            field=f"{_FIELD}.model",
        )
    raise NotFound(
        f"The server at {url} has not one base model, but {names}.",
        f"Set {_FIELD}.model to the one that the recipe's model is." if bases else "Start it with a model.",
        field=f"{_FIELD}.model",
    )
