"""What holds for every method over a model with new tokens: their rows train, are written and read, and merge; or it says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods.examples import EXAMPLES, model_for, ready
from methods.examples import REFUSED as WITHOUT_A_PLACE
from models.tuned import logprobs, quiet, randomize, usual_batch, usual_rows
from near import assert_apart, assert_near

from luthier.errors import RecipeError
from luthier.methods import AdapterMethod, BitFit, Full, LoRA, Method, PromptTuning, Rows, Stack
from luthier.methods.rows_files import ROWS_FILE
from luthier.models.call import Draws
from luthier.models.language_model import LanguageModel
from luthier.objectives import SFT
from luthier.recipe import make_recipe

REFUSED = {
    "top-layers": "the embedding is below them",
    "adapter-fusion": "trained over a base without them",
    "attention-fusion": "without a backward pass",
    "ladder": "without a backward pass",
    "lets": "without a backward pass",
}


AT_A_TABLE = [each for each in EXAMPLES if each.kind in ("rows", "warp")]
"""These train rows of the embedding or the head themselves."""
SOME = ("lora", "ln-tuning", "prompt-tuning", "prefix-tuning", "loreft", "stack", "unipelt", "adamix", "warp")
TRAINED = [
    pytest.param(method, family, id=f"{method.kind}-{family}")
    for method in (*EXAMPLES, Rows(linear_rows=0.2))
    for family in ("llama", "gemma2", "t5", "bert")
    if isinstance(method, AdapterMethod) or method.kind == "adamix"
    if method.kind not in REFUSED and (method not in AT_A_TABLE or (method.kind, family) == ("warp", "bert"))
    if (method.kind, family) not in WITHOUT_A_PLACE
    if family == "llama" or method.kind in SOME
]
"""A head of its own, a tied one behind an embedding with a factor, two stacks, and a head over classes."""


def with_new_tokens(method: Method, family: str) -> LanguageModel:
    """A tiny model of which two tokens of the usual rows are new."""
    model = model_for(method, family)
    model.new_tokens = tuple(sorted({int(token) for token in usual_rows(model)[1].parts[0].tokens_T[3:5]}))
    return model


@pytest.fixture
def method(request: pytest.FixtureRequest, tmp_path: Path) -> Method:
    return ready(request.param, request.node.callspec.params["family"], lambda: tmp_path)


@pytest.mark.parametrize(("method", "family"), TRAINED, indirect=["method"])
def test_rows_learn_beside_the_adapter_from_the_frozen_ones_on(method: Method, family: str) -> None:
    model = with_new_tokens(method, family)
    before = logprobs(model, None)
    table_VD = model.hf.get_submodule(model.anatomy.embedding).get_parameter("weight").clone()
    attachment = method.attach(model, "default", seed=0)
    if method.traits.identity_at_start:
        assert_near(logprobs(model, attachment.adapter), before, 1e-5)
    rows = {name: tensor for name, tensor in attachment.trainables.items() if name.endswith(".rows")}
    reads_classes, is_tied = model.anatomy.purpose == "classes", model.anatomy.is_head_tied
    assert len(rows) == (1 if reads_classes or is_tied else 2)
    assert attachment.lowest_layer is None
    batch = usual_batch(model, attachment.adapter)
    attachment.loss_sum(lambda repeat: model.forward(batch, "default", Draws(0, 1, repeat)), SFT().loss_sum).backward()
    assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in rows.values())
    assert_near(logprobs(model, None), before, 1e-6)
    own_VD = model.hf.get_submodule(model.anatomy.embedding).base.get_parameter("weight")  # type: ignore[union-attr]
    assert torch.equal(own_VD, table_VD)


@pytest.mark.parametrize(("method", "family"), TRAINED, indirect=["method"])
def test_rows_are_written_and_read_back_and_merge_with_the_adapter(method: Method, family: str, tmp_path: Path) -> None:
    model = with_new_tokens(method, family)
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    with_rows = logprobs(model)
    said: list[str] = []
    (tmp_path / "adapter").mkdir()
    attachment.write(tmp_path / "adapter", said.append)
    is_apart = (tmp_path / "adapter" / ROWS_FILE).is_file()
    assert is_apart == any("file of their own" in sentence for sentence in said)
    assert not (is_apart and method.kind == "lora"), "peft has a place for the rows beside a LoRA"
    fresh = with_new_tokens(method, family)
    again = method.continued(tmp_path).attach(fresh, "default", seed=9)
    assert_near(logprobs(fresh), with_rows, 1e-5)
    rows = {name: tensor for name, tensor in again.trainables.items() if name.endswith(".rows")}
    assert rows
    assert all(torch.equal(tensor, attachment.trainables[name]) for name, tensor in rows.items())
    if method.traits.merges:
        again.merge()
        assert_near(logprobs(fresh, None), with_rows, 2e-4)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_method_that_cannot_train_them_says_why(kind: str, tmp_path: Path) -> None:
    method = ready(next(each for each in EXAMPLES if each.kind == kind), "llama", lambda: tmp_path)
    assert REFUSED[kind] in str(method.without_new_tokens)
    recipe = {
        "model": {"name": "x", "add_tokens": ["<new>"]},
        "data": {"train": "rows.jsonl"},
        "method": method.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"kind": kind},
    }
    with pytest.raises(RecipeError) as caught:
        make_recipe(recipe)
    assert REFUSED[kind] in caught.value.found + caught.value.mend
    if isinstance(method, AdapterMethod):
        with pytest.raises(RecipeError, match=REFUSED[kind]):
            method.attach(with_new_tokens(method, "llama"), "default", seed=0)


def test_a_stack_is_refused_with_what_its_part_says() -> None:
    ladder = next(each for each in EXAMPLES if each.kind == "ladder")
    stack = Stack(parts=(LoRA(rank=2), ladder))
    assert stack.without_new_tokens == ladder.without_new_tokens
    assert Stack(parts=(LoRA(rank=2), BitFit())).without_new_tokens is None
    assert Full().without_new_tokens is None


@pytest.mark.parametrize("method", [*AT_A_TABLE, LoRA(targets=("embed_tokens",)), LoRA(targets=("lm_head",))])
def test_a_place_that_the_rows_have_is_refused(method: Method) -> None:
    with pytest.raises(RecipeError, match="which train whole"):
        method.attach(with_new_tokens(method, "llama"), "default", seed=0)


def test_another_soft_prompt_over_the_same_base_has_rows_of_its_own(tmp_path: Path) -> None:
    method = PromptTuning(num_virtual_tokens=3)
    model = with_new_tokens(method, "llama")
    first, second = (method.attach(model, name, seed=0) for name in ("one", "two"))
    before = [logprobs(model, name) for name in ("one", "two")]
    for name, tensor in first.trainables.items():
        if name.endswith(".rows"):
            tensor.data.add_(1.0)
    assert_apart(logprobs(model, "one"), before[0])
    assert_near(logprobs(model, "two"), before[1], 0.0)
    assert second.trainables.keys() == first.trainables.keys()
    first.write(tmp_path, quiet)
