"""Adapters written here and read by peft, and the other way round: what both say of the usual rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.rows import plain_logprobs, random_rows
from models.tiny import plain_model, tiny_model
from models.tuned import LENGTHS, logprobs, plain_attention, quiet, randomize
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from luthier.methods import AdapterMethod
from luthier.training.flat import FlatTrainables

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# peft warns of what is meant here: Conv1D beside Linear, no network, one factor of BOFT
WARNINGS = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unable to fetch remote file"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension"),
    pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor to 1"),
    pytest.mark.filterwarnings("ignore:Invalid `"),
]


def plain(name: str) -> PreTrainedModel:
    """The tiny model in transformers alone."""
    return plain_model(name, plain_attention(name))


def written_here(method: AdapterMethod, name: str, folder: Path, size: float = 0.1) -> Tensor:
    """Write a random adapter of a tiny model; return what the model with it says."""
    model = tiny_model(name)
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment, size)
    FlatTrainables(attachment.groups, workers=1)  # as the loop leaves them: views of one vector
    folder.mkdir(exist_ok=True)
    attachment.write(folder, quiet)
    return logprobs(model)


def read_by_peft(folder: Path, name: str) -> Tensor:
    """What peft makes of an adapter."""
    loaded = PeftModel.from_pretrained(plain(name), folder).eval()
    return plain_logprobs(loaded, random_rows(LENGTHS)).detach()


def written_by_peft(config: PeftConfig, name: str, folder: Path, size: float = 0.1) -> Tensor:
    """Save a random adapter with peft; return what peft's model says."""
    with torch.random.fork_rng():
        tuned = get_peft_model(plain(name), config).eval()
    for index, parameter in enumerate(p for p in tuned.parameters() if p.requires_grad):
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * size)
    tuned.save_pretrained(folder)
    return plain_logprobs(tuned, random_rows(LENGTHS)).detach()


def read_here(method: type[AdapterMethod], folder: Path, name: str) -> Tensor:
    """What we make of an adapter."""
    model = tiny_model(name)
    method.model_validate({"from": str(folder)}).attach(model, "default", seed=9)
    return logprobs(model)
