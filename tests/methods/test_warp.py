"""WARP: the classes' scores, and the limits in which it is prompt tuning or the base's own choice of words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from methods.soft_prompt_files import written
from models.rows import class_rows
from models.tiny import CLASSES, ENCODERS, MASK, NAMES, TYPED, plain_model, tiny_model, tiny_tokenizer
from models.tuned import LENGTHS, logprobs, logprobs_behind, quiet, randomize, usual_batch
from near import assert_near
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from luthier.errors import RecipeError
from luthier.methods import WARP, LoRA, Stack
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.models.call import Call, Run, calling
from luthier.models.heads import ClassHead
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.recipe import make_recipe

WORDS = {"num_virtual_tokens": 3, "init": "text", "text": "w3 w40 w7"}


def warp(model: LanguageModel, **settings: object) -> AdapterAttachment:
    """The method at work with two classes."""
    return WARP.model_validate({"classes": ["w5", "w9"], **settings}).attach(model, "default", seed=0)


# ── models that write ───────────────────────────────────────────────────────────────────────────────────────────────


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


def test_classes_are_asked_for_where_no_labels_name_them() -> None:
    with pytest.raises(ValidationError):
        WARP.model_validate({"classes": []})
    with pytest.raises(RecipeError, match="no classes") as caught:
        WARP().attach(tiny_model("llama"), "default", seed=0)
    assert caught.value.field == "method.classes"
    values = {"model": "smollm2-135m", "data": {"train": "tatsu-lab/alpaca"}, "method": {"kind": "warp"}}
    with pytest.raises(RecipeError, match=r"method\.classes is missing") as caught:
        make_recipe(values)
    assert caught.value.field == "method.classes"
    make_recipe({**values, "method": {"kind": "warp", "from": "runs/warp-1"}})
    make_recipe({**values, "objective": {"kind": "classification"}})


# ── encoders, at a mask ─────────────────────────────────────────────────────────────────────────────────────────────


def masked(name: str) -> LanguageModel:
    """A tiny encoder with a head that reads a mask."""
    return tiny_model(name, purpose="mask")


def saved(hf: PreTrainedModel, folder: Path) -> ModelSettings:
    """A model's folder with a tokenizer that has a mask."""
    hf.save_pretrained(folder)
    tiny_tokenizer(has_mask=True).save_pretrained(folder)
    return ModelSettings(name=str(folder), device="cpu")


def at_mask(hf: PreTrainedModel, before_KD: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What transformers' head makes of a mask between these embeddings and each of the usual rows: z (D,), logits (V,)."""
    seen: list[Tensor] = []
    hook = hf.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    found = []
    for row in class_rows(LENGTHS, "first"):
        tokens_T = torch.tensor([MASK, *row.parts[0].tokens_T.tolist()])
        inputs = {"inputs_embeds": torch.cat([before_KD, hf.get_input_embeddings()(tokens_T)])[None]}
        if row.types_P is not None and hf.config.model_type in TYPED:
            inputs["token_type_ids"] = torch.tensor([*[0] * (len(before_KD) + 1), *row.types_P.tolist()])[None]
        logits_V = hf(**inputs).logits[0, len(before_KD)]
        found.append((seen[-1][0, len(before_KD)], logits_V))
    hook.remove()
    return found


def of_classes(logits: Sequence[Tensor]) -> Tensor:
    """The log-probabilities of the usual rows' classes, from each row's logits (C,)."""
    rows = class_rows(LENGTHS, "first")
    return torch.stack([logits_C.log_softmax(-1)[row.token_N[0]] for logits_C, row in zip(logits, rows, strict=True)])


@pytest.mark.parametrize("name", ENCODERS)
def test_with_real_words_and_the_rows_of_words_it_is_the_encoders_own_choice_among_them_at_a_mask(
    name: str, tmp_path: Path
) -> None:
    hf = plain_model(name, purpose="mask")
    method = WARP.model_validate({**WORDS, "classes": ["w5", "w9", "w11"]})
    model = load_model(saved(hf, tmp_path), quiet, head=method.class_head(ClassHead(CLASSES)))
    method.attach(model, "default", seed=0)
    words_KD = hf.get_input_embeddings()(torch.tensor([3, 40, 7]))
    expected = of_classes([logits_V[[5, 9, 11]] for _, logits_V in at_mask(hf, words_KD)])
    assert_near(logprobs(model), expected, 1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_scores_are_the_learned_rows_times_what_the_head_makes_of_the_mask(name: str) -> None:
    model = masked(name)
    tensors = WARP(num_virtual_tokens=4).attach(model, "default", seed=0).trainables
    for index, tensor in enumerate(tensors.values()):
        tensor.data.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index)))
    prompt_KD, rows_CD, bias_C = (tensor.detach() for tensor in tensors.values())
    states = at_mask(plain_model(name, purpose="mask"), prompt_KD)
    assert_near(logprobs(model), of_classes([rows_CD @ z_D + bias_C for z_D, _ in states]), 1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_only_prompt_rows_and_biases_train_and_all_of_them_get_gradients(name: str) -> None:
    model = masked(name)
    attachment = WARP(num_virtual_tokens=4).attach(model, "default", seed=0)
    assert list(attachment.trainables) == ["prompt_embeddings", "classifier.weight", "classifier.bias"]
    assert attachment.num_trainable == 4 * 32 + 3 * 32 + 3
    assert attachment.num_in_head == 3 * 32 + 3
    assert attachment.num_virtual == 5  # the mask is one more
    model.forward(usual_batch(model, "default"), "default").logprob_N.sum().backward()
    learned = {id(tensor) for tensor in attachment.trainables.values()}
    assert all(bool((tensor.grad != 0).any()) for tensor in attachment.trainables.values())
    assert all(tensor.grad is None for tensor in model.hf.parameters() if id(tensor) not in learned)


def test_without_words_the_rows_begin_small_drawn_from_the_seed(tmp_path: Path) -> None:
    settings = saved(plain_model("bert", purpose="mask"), tmp_path)
    starts = []
    for seed in (3, 3, 4):
        model = load_model(settings, quiet, head=WARP().class_head(ClassHead(CLASSES, seed)))
        assert (model.classes, model.new_head) == (CLASSES, ("classifier",))
        starts.append(WARP().attach(model, "default", seed).trainables["classifier.weight"].detach())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert 0.01 < float(starts[0].std()) < 0.03


def test_an_encoders_adapter_is_read_back_with_its_rows(tmp_path: Path) -> None:
    model = masked("roberta")
    method = WARP(num_virtual_tokens=3, classes=("w5", "w9", "w11"))
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment, 0.5)
    said: list[str] = []
    attachment.write(tmp_path, said.append)
    assert said == []  # no other tool reads it
    assert set(load_file(tmp_path / "luthier_adapter.safetensors")) == set(attachment.trainables)
    fresh = masked("roberta")
    WARP(begin_from=str(tmp_path)).attach(fresh, "default", seed=1)
    assert torch.equal(logprobs(fresh), logprobs(model))
    with pytest.raises(RecipeError, match="no head of this model for classes"):
        WARP(begin_from=str(tmp_path)).attach(tiny_model("llama"), "default", seed=1)


def test_in_a_stack_the_rows_begin_as_the_words_too() -> None:
    alone, stacked = masked("bert"), masked("bert")
    method = WARP(num_virtual_tokens=2, classes=("w5", "w9", "w11"))
    stack = Stack(parts=(method, LoRA(rank=2)))
    assert stack.class_head(ClassHead(CLASSES)).reads_mask
    method.attach(alone, "default", seed=0)
    tensors = stack.attach(stacked, "default", seed=0).trainables
    assert torch.equal(tensors["classifier.weight"][1], stacked.hf.get_input_embeddings().base.weight[9])
    assert_near(logprobs(stacked), logprobs(alone), 1e-6)  # LoRA begins at zero


# ── encoders that have no place for it ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("purpose", ["trunk", "classes"])
def test_an_encoder_saved_without_its_head_over_words_is_refused_with_the_mend(
    name: str, purpose: str, tmp_path: Path
) -> None:
    hf = plain_model(name)
    settings = saved(hf.base_model if purpose == "trunk" else hf, tmp_path)
    with pytest.raises(RecipeError, match="without its head over words") as caught:
        load_model(settings, quiet, head=WARP().class_head(ClassHead(CLASSES)))
    assert caught.value.field == "model"
    assert "as it was pretrained" in caught.value.mend


def test_a_head_for_classes_in_the_place_of_words_is_refused_with_the_mend(tmp_path: Path) -> None:
    for name in ("bert", "llama"):
        with pytest.raises(RecipeError, match="loaded with a head for classes") as caught:
            WARP().attach(tiny_model(name, purpose="classes"), "default", seed=0)
        assert "class_head" in caught.value.mend
    with pytest.raises(RecipeError, match="'llama' fill no masks") as caught:
        load_model(saved(plain_model("llama"), tmp_path), quiet, head=WARP().class_head(ClassHead(CLASSES)))
    assert caught.value.field == "method.kind"


def test_words_that_do_not_go_with_the_classes_and_a_tokenizer_without_a_mask_are_refused() -> None:
    with pytest.raises(RecipeError, match="2 words for the 3 classes angry, happy, neutral") as caught:
        WARP(classes=("w5", "w9")).attach(masked("bert"), "default", seed=0)
    assert caught.value.field == "method.classes"
    with pytest.raises(RecipeError, match="3 tokens"):
        WARP(classes=("w5", "w9", "w1 w2 w3")).attach(masked("bert"), "default", seed=0)
    model = masked("bert")
    model.tokenizer = tiny_tokenizer()
    with pytest.raises(RecipeError, match="no mask token"):
        WARP().attach(model, "default", seed=0)
