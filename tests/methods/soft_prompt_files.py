"""Soft prompts on disk, written here or by peft, and what a model with them says of the usual rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import plain_logprobs, random_rows
from models.tiny import plain_model, tiny_model
from models.tuned import LENGTHS, logprobs, plain_attention, quiet, randomize
from peft import PeftConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from luthier.methods import Method
from luthier.training.flat import FlatTrainables

CONFIG = "adapter_config.json"
PEFT_WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unable to fetch remote file"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning"),
]


def written(folder: Path, name: str, method: Method) -> Tensor:
    """Write a random adapter of a tiny model to `a`; return what the model with it says of the usual rows."""
    model = tiny_model(name)
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    FlatTrainables(attachment.groups, workers=1)  # as the loop leaves them: views of one vector
    (folder / "a").mkdir()
    attachment.write(folder / "a", quiet)
    return logprobs(model)


def made_by_peft(folder: Path, name: str, config: PeftConfig) -> Tensor:
    """Save a random adapter with peft; return what peft's model says of the usual rows."""
    with torch.random.fork_rng():
        tuned = get_peft_model(plain_model(name, plain_attention(name)), config).eval()
    for index, parameter in enumerate(p for p in tuned.parameters() if p.requires_grad):
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.3)
    tuned.save_pretrained(folder)
    return by_peft(tuned)


def by_peft(tuned: PreTrainedModel) -> Tensor:
    """What peft's model says of the usual rows."""
    return plain_logprobs(tuned, random_rows(LENGTHS)).detach()


def rewrite_config(folder: Path, **changes: Any) -> None:
    """Change fields of an adapter's config."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))
