"""Where heads look: the weights are the model's own, and the change between two models is a share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.rows import batch_of, random_rows
from models.tiny import PACKED, plain_model, tiny_model
from models.tuned import random_lora
from near import assert_near

from luthier.errors import RecipeError, UsageError
from luthier.methods import PrefixTuning, PromptTuning
from luthier.studies.attention_maps import AttentionMaps, attention_maps, write_attention_plot


@pytest.mark.parametrize("name", PACKED)
def test_the_weights_are_those_of_plain_transformers(name: str) -> None:
    ours = tiny_model(name).attention(batch_of((9,), "packed"))
    tokens = torch.from_numpy(random_rows((9,))[0].parts[0].tokens_T)[None]
    plain = plain_model(name)(input_ids=tokens, output_attentions=True, use_cache=False).attentions
    assert_near(ours, torch.cat(plain), 1e-5)


def test_documents_of_a_batch_do_not_look_at_each_other() -> None:
    weights = tiny_model("llama").attention(batch_of((4, 5), "packed"))
    assert float(weights[:, :, 4:, :4].abs().max()) == 0
    assert_near(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_a_model_beside_itself_has_not_changed_and_an_adapter_moves_shares() -> None:
    model = tiny_model("llama")
    random_lora(model)
    same = attention_maps("w5 w9 w3 w7", model, model, None)
    assert same.tokens == ("w5", "w9", "w3", "w7")
    assert float(same.change_LH.max()) == 0
    moved = attention_maps("w5 w9 w3 w7", model, model, "default").change_LH
    assert moved.shape == (2, 4)
    assert 0 < float(moved.max()) <= 1


@pytest.mark.parametrize("method", [PromptTuning, PrefixTuning])
def test_behind_virtual_tokens_a_text_looks_as_behind_the_words_that_they_stand_for(
    method: type[PromptTuning | PrefixTuning],
) -> None:
    model = tiny_model("llama")
    method(num_virtual_tokens=2, init="text", text="w3 w40").attach(model, "default", seed=0)
    maps = attention_maps("w5 w9 w7", model, model, "default")
    whole = attention_maps("w3 w40 w5 w9 w7", model, model, None).base_LHTT
    assert_near(maps.tuned_LHTT, whole[..., 2:, 2:])


def test_the_change_is_the_share_that_went_elsewhere() -> None:
    base = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).view(1, 1, 2, 2)
    tuned = torch.tensor([[1.0, 0.0], [0.1, 0.9]]).view(1, 1, 2, 2)
    assert float(AttentionMaps(("a", "b"), base, tuned).change_LH) == pytest.approx(0.2)


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    model = tiny_model("llama")
    write_attention_plot(attention_maps("w5 w9", model, model, None), tmp_path / "attention.png")
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_texts_without_tokens_and_models_that_cannot_be_looked_into_are_refused() -> None:
    with pytest.raises(UsageError, match="0 tokens"):
        attention_maps("", tiny_model("llama"), tiny_model("llama"), None)
    with pytest.raises(RecipeError, match="looked into"):
        tiny_model("falcon").attention(batch_of((4,), "bucketed"))
