"""A method's reference: the model as it was before anything trained, whatever trains after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods.examples import EXAMPLES, REFUSED, model_for, ready
from models.rows import random_rows
from models.tuned import quiet, randomize
from near import assert_apart
from torch import Tensor

from luthier.data.packing import collate
from luthier.data.placeholders import with_placeholders
from luthier.methods import LoRA, Method, PromptTuning
from luthier.methods.contract import REFERENCE, Reference
from luthier.models.language_model import LanguageModel

ROWS = random_rows((7, 12, 5))


def said(model: LanguageModel, adapter: str | None) -> Tensor:
    """log p of all targets under an adapter, its virtual tokens before each row."""
    rows = [with_placeholders(row, model.num_virtual(adapter)) for row in ROWS]
    with torch.no_grad():
        return model.forward(collate(rows, model.layout, model.pad_id), adapter).logprob_N


@pytest.mark.parametrize("method", EXAMPLES, ids=lambda method: method.kind)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_reference_says_what_the_start_said_after_everything_has_moved(
    method: Method, family: str, tmp_path: Path
) -> None:
    if (method.kind, family) in REFUSED:
        pytest.skip("the family has no place for it")
    method = ready(method, family, lambda: tmp_path)
    model = model_for(method, family)
    attachment = method.attach(model, "default", seed=4)
    start = said(model, attachment.adapter)
    reference = method.reference(model, seed=4)
    if method.tunes_base:
        assert reference is None
        return
    assert reference is not None
    before = said(model, reference.adapter)
    assert float((before - start).abs().max()) <= 1e-5
    randomize(attachment, 0.3)
    assert_apart(said(model, attachment.adapter), start, 1e-4)
    assert torch.equal(said(model, reference.adapter), before)
    assert all(tensor.requires_grad for tensor in attachment.trainables.values())


@pytest.mark.parametrize("method", [LoRA(rank=3), PromptTuning(num_virtual_tokens=2)], ids=lambda method: method.kind)
def test_the_reference_of_a_run_that_goes_on_from_an_adapter_is_that_adapter(method: Method, tmp_path: Path) -> None:
    first = method.attach(model_for(method, "llama"), "default", seed=1)
    randomize(first)
    (tmp_path / "adapter").mkdir()
    first.write(tmp_path / "adapter", quiet)
    going_on, model = method.continued(tmp_path / "adapter"), model_for(method, "llama")
    attachment = going_on.attach(model, "default", seed=2)
    reference = going_on.reference(model, seed=2)
    assert reference == Reference(REFERENCE)
    start = said(first.model, "default")
    randomize(attachment, 0.4)
    assert torch.equal(said(model, REFERENCE), start)
    assert_apart(said(model, "default"), start, 1e-3)
    assert_apart(said(model, None), start, 1e-4)


def test_nothing_of_a_frozen_copy_trains() -> None:
    method, model = PromptTuning(num_virtual_tokens=2), model_for(PromptTuning(num_virtual_tokens=2), "llama")
    method.attach(model, "default", seed=0)
    assert method.reference(model, seed=0) == Reference(REFERENCE)
    rows = [with_placeholders(row, 2) for row in ROWS]
    assert not model.forward(collate(rows, model.layout, 0), REFERENCE).logprob_N.requires_grad
