"""Adapters that peft makes and reads, over the tiny models: the other side of every parity test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import plain_logprobs, random_rows
from models.tiny import plain_model, tiny_model
from models.tuned import LENGTHS, logprobs, plain_attention, quiet, randomize
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor

from luthier.methods import Method

# peft warns of what is meant here: a tied head among the targets, Conv1D beside Linear, layers of rank 0
MEANT = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unable to fetch remote file"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
    pytest.mark.filterwarnings(
        "ignore:The following rank_pattern keys did not match"
    ),  # it names them with lora_E itself
]


def tuned_by_peft(name: str, config: PeftConfig) -> Any:
    """A tiny model with an adapter of peft's whose trained tensors are random."""
    with torch.random.fork_rng():
        tuned = get_peft_model(plain_model(name, plain_attention(name)), config).eval()
    for index, parameter in enumerate(p for p in tuned.parameters() if p.requires_grad):
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.1)
    return tuned


def saved_by_peft(folder: Path, name: str, config: PeftConfig) -> Tensor:
    """Save such an adapter; return what peft's model says of the usual rows."""
    tuned = tuned_by_peft(name, config)
    tuned.save_pretrained(folder)
    return plain_logprobs(tuned, random_rows(LENGTHS)).detach()


def read_by_peft(folder: Path, name: str) -> Tensor:
    """What peft says of the usual rows with the adapter of a folder."""
    loaded = PeftModel.from_pretrained(plain_model(name, plain_attention(name)), folder)
    return plain_logprobs(loaded, random_rows(LENGTHS)).detach()


def written(folder: Path, name: str, method: Method) -> Tensor:
    """Write a random adapter of a tiny model; return what the model with it says of the usual rows."""
    model = tiny_model(name)
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    folder.mkdir()
    attachment.write(folder, quiet)
    return logprobs(model)
