"""Models from the Hugging Face hub: only what is needed of a repository, never pickles, and every refusal in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from luthier.errors import LuthierError, NetworkError, NotAllowed, NotFound
from luthier.store import disk

WEIGHTS = "*.safetensors"
WANTED = ("*.json", "*.model", "*.txt", "*.jinja")
UNWANTED = ("*/*", "consolidated*", "*.fp16.safetensors", "training_args*")

# The hub's library moved from one HTTP library to another; this is the root of the errors of the one in use.
_TRANSPORT_ERROR: type[BaseException] = HfHubHTTPError.__mro__[1]


def download(repo: str, revision: str | None, announce: Callable[[str], None], *, weights: bool = True) -> Path:
    """The local folder of a hub model: config, tokenizer and safetensors weights, fetched unless they are there already.

    weights: whether they are needed; config and tokenizer are a few megabytes.

    Raises: NotFound, NotAllowed (gated), NetworkError, DiskFull.
    """
    announce(f"Looking for {repo} on the Hugging Face hub.")
    try:
        with disk.errors(Path(constants.HF_HUB_CACHE), only_disk=True):
            wanted = [*WANTED, *([WEIGHTS] if weights else [])]
            folder = snapshot_download(repo, revision=revision, allow_patterns=wanted, ignore_patterns=list(UNWANTED))
            return Path(folder)
    except LuthierError:
        raise
    except GatedRepoError as error:
        raise NotAllowed(
            f"The model {repo} is gated: its owner gives it only to those who accept the terms.",
            f"Accept them at https://huggingface.co/{repo}, then log in with `hf auth login`.",
            field="model",
        ) from error
    except RevisionNotFoundError as error:
        raise NotFound(
            f"The model {repo} has no revision {revision!r}.",
            "Give a branch, tag or commit of it.",
            field="model.revision",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise NotFound(
            f"The hub has no model {repo}, or it is private.",
            "Check the spelling (owner/model); for a private one log in with `hf auth login`.",
            field="model",
        ) from error
    except (EntryNotFoundError, OSError, _TRANSPORT_ERROR) as error:
        raise NetworkError(
            f"The model {repo} is not on this machine, and the hub could not be reached ({type(error).__name__}).",
            "Check the network, or give a local folder or the built-in model smollm2-135m.",
            field="model",
        ) from error
