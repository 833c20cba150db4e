"""WARP: the classes' logits, and the limits in which it is prompt tuning or the base's own choice of words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods.soft_prompt_files import written
from models.tiny import NAMES, tiny_model
from models.tuned import logprobs, logprobs_behind, randomize, usual_batch
from near import assert_near
from pydantic import ValidationError
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods import WARP
from luthier.methods.adapter import AdapterAttachment
from luthier.models.call import Call, Run, calling
from luthier.models.language_model import LanguageModel

WORDS = {"num_virtual_tokens": 3, "init": "text", "text": "w3 w40 w7"}


def warp(model: LanguageModel, **settings: object) -> AdapterAttachment:
    """The method at work with two classes."""
    return WARP.model_validate({"classes": ["w5", "w9"], **settings}).attach(model, "default", seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_with_real_words_before_it_and_the_heads_own_rows_it_is_the_bases_choice_of_words(name: str) -> None:
    model = tiny_model(name)
    expected = logprobs_behind(model, (3, 40, 7))
    warp(model, **WORDS)
    assert_near(logprobs(model), expected, 2e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "opt"])
def test_at_the_head_the_classes_have_logits_of_their_own_and_all_other_tokens_the_bases(name: str) -> None:
    model = tiny_model(name)
    attachment = warp(model)
    randomize(attachment, 0.5)
    rows, bias = (attachment.trainables[key].detach() for key in ("class_embeddings", "class_bias"))
    x = torch.randn(6, rows.shape[1], generator=torch.Generator().manual_seed(1))
    head = model.hf.get_submodule(model.anatomy.head)
    with calling(Call(None, (Run(0, 4, "default"), Run(4, 6, None)))):
        found = head(x)
    expected = head(x)
    expected[:4, [5, 9]] = x[:4] @ rows.t() + bias
    assert_near(found, expected, 1e-6)


def test_the_count_is_the_prompt_and_a_row_and_a_number_for_each_class() -> None:
    assert warp(tiny_model("llama"), num_virtual_tokens=4).num_trainable == 4 * 32 + 2 * 32 + 2
    # the paper's scale: K = 20, D = 1024 and three classes
    assert 20 * 1024 + 3 * 1024 + 3 == 23_555


def test_only_prompt_and_class_rows_get_gradients_and_both_do() -> None:
    model = tiny_model("gemma2")
    attachment = warp(model)
    batch = usual_batch(model, "default")
    gradients = torch.autograd.grad(
        model.forward(batch, "default").logprob_N.sum(), list(attachment.trainables.values())
    )
    assert list(attachment.trainables) == ["prompt_embeddings", "class_embeddings", "class_bias"]
    assert all(bool((gradient != 0).any()) for gradient in gradients)


def test_what_is_written_is_read_back_with_its_classes(tmp_path: Path) -> None:
    expected = written(tmp_path, "llama", WARP(num_virtual_tokens=3, classes=("w5", "w9")))
    model = tiny_model("llama")
    method = WARP.model_validate({"from": str(tmp_path / "a"), "classes": ["w5", "w9"]})
    tensors: dict[str, Tensor] = dict(method.attach(model, "default", seed=1).trainables)
    assert tensors["class_embeddings"].shape == (2, 32)
    assert_near(logprobs(model), expected, 1e-6)
    other = WARP.model_validate({"from": str(tmp_path / "a"), "classes": ["w5", "w8"]})
    with pytest.raises(RecipeError, match="classes"):
        other.attach(tiny_model("llama"), "default", seed=1)


@pytest.mark.parametrize(("classes", "told"), [(("w5", "w5 w6"), "2 tokens"), (("w5", " w5"), "same token")])
def test_classes_that_are_not_one_token_each_are_refused(classes: tuple[str, ...], told: str) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        WARP(classes=classes).attach(tiny_model("llama"), "default", seed=0)
    assert caught.value.field == "method.classes"


def test_classes_are_asked_for() -> None:
    with pytest.raises(ValidationError):
        WARP.model_validate({"classes": []})
