"""A forward pass whose gradient nobody asks for leaves nothing in memory."""

from __future__ import annotations

import pytest
from held import graph_tensors
from models.tiny import tiny_model
from models.tuned import random_lora, usual_batch

from luthier.models.language_model import LanguageModel


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon-new", "t5-gated", "bart", "bert", "deberta"])
def test_a_pass_that_is_not_carried_backward_leaves_nothing(name: str, is_checkpointed: bool) -> None:
    model = tiny_model(name)
    random_lora(model)
    if is_checkpointed:
        model.checkpoint_layers()
    compute(model)  # what is kept for later passes, masks of attention for one, is there from now on
    before = graph_tensors()
    assert compute(model) > before, "it holds something while it lives"
    assert graph_tensors() == before


def compute(model: LanguageModel) -> int:
    """How many tensors of graphs are alive at the end of a pass."""
    outputs = model.forward(usual_batch(model, "default"), "default")
    count = graph_tensors()
    del outputs
    return count
