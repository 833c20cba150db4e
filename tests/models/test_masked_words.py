"""Encoders as they are pretrained: states, logits of masked words and their loss are those of transformers, padding or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.nn.functional as F
from models.rows import class_rows
from models.tiny import CLASSES, ENCODERS, TYPED, VOCABULARY, plain_model, tiny_model, tiny_tokenizer
from models.tuned import LENGTHS, quiet
from near import assert_near

from luthier.data.packing import collate
from luthier.errors import RecipeError
from luthier.models.heads import ClassHead
from luthier.models.loading import load_model
from luthier.models.reading import words_layer
from luthier.models.settings import ModelSettings


@pytest.mark.parametrize("name", ENCODERS)
def test_the_parts_of_a_mask_head_in_order_give_the_logits_and_the_loss_of_transformers(name: str) -> None:
    plain, model = plain_model(name, purpose="mask"), tiny_model(name, purpose="mask")
    pad = 1 if name == "roberta" else 0  # by which transformers finds out where its positions begin
    batch = collate(class_rows(LENGTHS, "first"), "bucketed", pad_id=pad)
    assert batch.mask_BT is not None
    given = {"input_ids": batch.tokens_BT, "attention_mask": batch.mask_BT.long()}
    if plain.config.model_type in TYPED:
        given["token_type_ids"] = batch.types_BT
    labels_BT = batch.tokens_BT.roll(1, 1).masked_fill(~batch.mask_BT | (batch.tokens_BT % 3 != 0), -100)
    expected = plain(**given, labels=labels_BT)
    hidden_ND = model.hidden(batch)[batch.mask_BT]
    states_BTD = plain.get_submodule(model.anatomy.trunk)(**given).last_hidden_state
    assert_near(hidden_ND, states_BTD[batch.mask_BT])
    for part in model.anatomy.family.mask_head[:-1]:
        hidden_ND = model.hf.get_submodule(part.name)(hidden_ND)
        hidden_ND = F.gelu(hidden_ND) if part.activation == "gelu" else hidden_ND
    words = words_layer(model.hf)
    assert words is not None
    logits_NV = words(hidden_ND)
    assert logits_NV.shape[1] == VOCABULARY
    assert_near(logits_NV, expected.logits[batch.mask_BT])
    assert_near(F.cross_entropy(logits_NV, labels_BT[batch.mask_BT]), expected.loss)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("deberta", "conv_kernel_size", 3),
        ("deberta", "pooler_hidden_act", "tanh"),
        ("bloom", "apply_residual_connection_post_layernorm", True),
    ],
)
def test_a_config_of_another_model_than_the_entry_describes_is_refused_with_what_it_says(
    name: str, key: str, value: object, tmp_path: Path
) -> None:
    hf = plain_model(name)
    hf.config.update({key: value})
    head = ClassHead(CLASSES) if name in ENCODERS else None
    with pytest.raises(RecipeError) as caught:
        load_model(saved(hf, tmp_path), quiet, head=head)
    assert f"{key} {value!r}" in caught.value.found
    assert caught.value.mend


def test_a_head_over_words_without_a_layer_for_them_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    hf = plain_model("deberta")
    hf.config.legacy = False
    settings = saved(hf, tmp_path)
    load_model(settings, quiet, head=ClassHead(CLASSES))
    with pytest.raises(RecipeError, match="legacy False"):
        load_model(settings, quiet, head=ClassHead(CLASSES, reads="mask"))


@pytest.mark.parametrize("name", ["distilbert", "modernbert"])
def test_each_module_of_a_head_over_words_is_missed_where_the_files_lack_it(name: str, tmp_path: Path) -> None:
    hf = plain_model(name, purpose="mask")
    settings = saved(hf, tmp_path)
    heads = {key.partition(".")[0] for key in hf.state_dict()} - {"distilbert", "model"}
    assert (
        heads
        == {
            "distilbert": {"vocab_transform", "vocab_layer_norm", "vocab_projector"},
            "modernbert": {"head", "decoder"},
        }[name]
    )
    for part in heads:
        hf.save_pretrained(tmp_path, state_dict={k: v for k, v in hf.state_dict().items() if not k.startswith(part)})
        with pytest.raises(RecipeError, match=f"it lacks {part}"):
            load_model(settings, quiet, head=ClassHead(CLASSES, reads="mask"))


def saved(hf, folder: Path) -> ModelSettings:
    """A model's folder with a tokenizer."""
    hf.save_pretrained(folder)
    tiny_tokenizer(has_mask=True).save_pretrained(folder)
    return ModelSettings(name=str(folder), device="cpu")
