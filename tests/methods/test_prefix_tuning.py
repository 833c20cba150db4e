"""Prefix tuning: true keys and values are the text itself, what a cache keeps, and the files of peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.prefixed import exchange_keys
from methods.soft_prompt_files import CONFIG, PEFT_WARNINGS, by_peft, made_by_peft, rewrite_config, written
from models.rows import random_rows
from models.tiny import PACKED, PLAIN, plain_model, tiny_model
from models.tuned import LENGTHS, logprobs, logprobs_behind, plain_attention, quiet, randomize, usual_batch
from near import assert_apart, assert_near
from peft import PeftModel, PrefixTuningConfig
from pydantic import ValidationError
from torch import Tensor
from transformers import DynamicCache

from luthier.data.packing import collate
from luthier.data.placeholders import with_placeholders
from luthier.errors import RecipeError
from luthier.methods import PrefixTuning
from luthier.methods.prefix_tuning import states_of
from luthier.models.language_model import LanguageModel
from luthier.types import Segment

pytestmark = PEFT_WARNINGS
FAMILIES = (
    "llama",
    "gpt2",
    "gpt_neox",
    "opt",
    "phi",
    "granite",
    "gemma2",
    "qwen3",
    "phi3",
    "olmo2",
    "gemma",
    "mistral",
)


@pytest.mark.parametrize("fast", [None, PLAIN], ids=["fast", "plain"])
@pytest.mark.parametrize("name", PACKED)
def test_a_prefix_of_the_true_keys_and_values_of_a_text_is_that_text(name: str, fast: Any) -> None:
    model = tiny_model(name, fast)
    expected = logprobs_behind(model, (3, 40, 7))
    PrefixTuning(num_virtual_tokens=3, init="text", text="w3 w40 w7").attach(model, "default", seed=0)
    assert_near(logprobs(model), expected)
    assert_apart(logprobs(model), logprobs(model, None))


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert"])
def test_an_encoder_sees_the_prefix_of_each_layer_in_the_place_of_its_first_keys_as_far_as_a_window_reaches(
    name: str,
) -> None:
    model, plain = tiny_model(name), plain_model(name)
    attachment = PrefixTuning(num_virtual_tokens=2).attach(model, "default", seed=0)
    randomize(attachment, 1.0)
    states_LSVKE = attachment.trainables["prompt_embeddings"].detach().view(2, 2, 2, 4, 8).permute(1, 2, 0, 3, 4)
    attentions = [plain.get_submodule(layer.attention) for layer in model.anatomy.layers]
    exchange_keys(plain, dict(zip(attentions, states_LSVKE, strict=True)))
    batch = usual_batch(model, "default")
    assert batch.mask_BT is not None
    own_BT = batch.mask_BT & (batch.positions_BT >= 2)
    given = {"input_ids": batch.tokens_BT, "attention_mask": batch.mask_BT, "position_ids": batch.positions_BT}
    if name == "bert":
        given["token_type_ids"] = batch.types_BT
    expected = plain.get_submodule(model.anatomy.trunk)(**given).last_hidden_state[own_BT]
    assert_near(model.hidden(batch, "default")[own_BT], expected)
    assert_apart(model.hidden(batch)[own_BT], expected)


@pytest.mark.parametrize(
    ("name", "heads", "width"), [("llama", 2, 8), ("gpt2", 4, 8), ("gemma2", 2, 8), ("qwen3", 2, 8)]
)
def test_the_count_is_two_for_each_layer_token_key_value_head_and_width(name: str, heads: int, width: int) -> None:
    attachment = PrefixTuning(num_virtual_tokens=5).attach(tiny_model(name), "default", seed=0)
    assert attachment.num_trainable == 2 * 2 * 5 * heads * width
    assert attachment.lowest_layer == 0
    row, embedding = 2 * 2 * heads * width, 32
    attachment = PrefixTuning(num_virtual_tokens=5, projection=7).attach(tiny_model(name), "default", seed=0)
    assert attachment.num_trainable == 5 * embedding + embedding * 7 + 7 + 7 * row + row


def test_the_network_is_two_linear_layers_with_tanh_between_them() -> None:
    attachment = PrefixTuning(num_virtual_tokens=4, projection=7).attach(tiny_model("llama"), "default", seed=0)
    w = attachment.trainables
    inner = torch.tanh(w["embedding"] @ w["network.0.weight"].t() + w["network.0.bias"])
    rows = inner @ w["network.2.weight"].t() + w["network.2.bias"]
    assert_near(attachment.file_tensors()["prompt_embeddings"], rows.detach(), 1e-6)


def test_all_of_the_prefix_and_nothing_of_the_placeholders_matters() -> None:
    model = tiny_model("llama")
    attachment = PrefixTuning(num_virtual_tokens=3, init="random").attach(model, "default", seed=0)
    rows = [with_placeholders(row, 3) for row in random_rows(LENGTHS)]
    before = logprobs(model)
    (prefix,) = attachment.trainables.values()
    batch = collate(rows, model.layout, 0)
    (gradient,) = torch.autograd.grad(model.forward(batch, "default").logprob_N.sum(), [prefix])
    assert bool((gradient.view(3, 2, 2, 16).abs().sum(-1) > 0).all())
    for row in rows:
        row.parts[0].tokens_T[:3] = (9, 10, 11)
    assert_near(model.forward(collate(rows, model.layout, 0), "default").logprob_N, before, 1e-6)


def test_a_shared_beginning_and_recomputed_layers_change_neither_values_nor_gradients() -> None:
    found = []
    for shares, recomputes in ((False, False), (True, False), (False, True)):
        model = tiny_model("llama")
        attachment = PrefixTuning(num_virtual_tokens=6, projection=5).attach(model, "default", seed=0)
        if recomputes:
            model.checkpoint_layers()
        rows = [with_placeholders(row, 6) for row in random_rows(LENGTHS)]
        batch = collate(rows, model.layout, 0, shares_prefix=shares)
        assert (batch.segments[0] == Segment(0, 6)) == shares
        logprob = model.forward(batch, "default").logprob_N
        tensors = list(attachment.trainables.values())
        found.append([logprob, *torch.autograd.grad(logprob.sum(), tensors)])
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert_near(same, one, 2e-5)


def last_logits(model: LanguageModel, rows: list[list[int]]) -> Tensor:
    """The scores after rows padded on the left and one more token each, both from `decode`."""
    width = max(len(row) for row in rows)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.bool)
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    cache = DynamicCache()
    model.decode(tokens, (mask.cumsum(-1) - 1).clamp(min=0), mask, cache, "default")
    more = torch.ones(len(rows), 1, dtype=torch.bool)
    return model.decode(
        torch.full((len(rows), 1), 9), mask.sum(-1, keepdim=True), torch.cat([mask, more], 1), cache, "default"
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_cache_filled_from_rows_padded_on_the_left_keeps_the_prefix(name: str) -> None:
    model = tiny_model(name)
    attachment = PrefixTuning(num_virtual_tokens=2).attach(model, "default", seed=0)
    randomize(attachment, 0.5)
    rows = [[0, 0, 5, 6, 7], [0, 0, 8]]
    together = last_logits(model, rows)
    for index, row in enumerate(rows):
        cache = DynamicCache()
        whole = torch.tensor([[*row, 9]])
        segment, last = (Segment(0, len(row) + 1),), torch.tensor([len(row)])
        alone = model.prefill(whole, torch.arange(len(row) + 1)[None], segment, last, cache, "default")
        assert_near(together[index : index + 1], alone)
        kept = torch.stack([torch.cat([layer.keys, layer.values])[:, :, :2] for layer in cache.layers])
        (prefix,) = attachment.trainables.values()
        layers, states, heads, width = 2, 2, *kept.shape[2:][::2]
        assert_near(kept, prefix.view(2, layers, states, heads, width).permute(1, 2, 3, 0, 4), 1e-7)


def test_states_are_those_of_the_models_own_cache() -> None:
    model = tiny_model("llama")
    states = states_of(model, torch.tensor([3, 40, 7]))
    cache = plain_model("llama")(torch.tensor([[3, 40, 7]]), use_cache=True).past_key_values
    for layer in range(2):
        assert_near(states[layer, 0].transpose(0, 1), cache.layers[layer].keys[0])
        assert_near(states[layer, 1].transpose(0, 1), cache.layers[layer].values[0])


@pytest.mark.parametrize("projection", [None, 6])
@pytest.mark.parametrize("name", FAMILIES)
def test_peft_computes_the_same_from_a_written_prefix(name: str, projection: int | None, tmp_path: Path) -> None:
    expected = written(tmp_path, name, PrefixTuning(num_virtual_tokens=3, projection=projection))
    loaded = PeftModel.from_pretrained(plain_model(name, plain_attention(name)), tmp_path / "a")
    assert_near(by_peft(loaded), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefix_saved_by_peft_computes_the_same_here_and_is_written_as_it_was_read(name: str, tmp_path: Path) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    expected = made_by_peft(tmp_path / "p", name, config)
    model = tiny_model(name)
    attachment = PrefixTuning(begin_from=str(tmp_path / "p")).attach(model, "default", seed=0)
    assert_near(logprobs(model), expected)
    (tmp_path / "b").mkdir()
    attachment.write(tmp_path / "b", quiet)
    before, after = (json.loads((tmp_path / run / CONFIG).read_text()) for run in "pb")
    ours = {"base_model_name_or_path": None, "encoder_hidden_size": None}
    assert {**before, **ours} == {**after, **ours}


def test_training_goes_on_with_the_network_that_was_kept(tmp_path: Path) -> None:
    expected = written(tmp_path, "llama", PrefixTuning(num_virtual_tokens=3, projection=6))
    model = tiny_model("llama")
    again = PrefixTuning(begin_from=str(tmp_path / "a")).attach(model, "default", seed=4)
    assert_near(logprobs(model), expected, 1e-6)
    assert set(again.trainables) == {
        "embedding",
        *(f"network.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
    }


def test_a_prefix_whose_network_is_lost_is_refused_with_the_way_to_go_on_without_it(tmp_path: Path) -> None:
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=6
    )
    expected = made_by_peft(tmp_path / "p", "llama", config)
    with pytest.raises(RecipeError, match="not the network") as caught:
        PrefixTuning(begin_from=str(tmp_path / "p")).attach(tiny_model("llama"), "default", seed=0)
    assert "prefix_projection" in caught.value.mend
    rewrite_config(tmp_path / "p", prefix_projection=False)
    model = tiny_model("llama")
    PrefixTuning(begin_from=str(tmp_path / "p")).attach(model, "default", seed=0)
    assert_near(logprobs(model), expected)


@pytest.mark.parametrize("name", ["falcon", "falcon-alibi"])
def test_attention_that_is_not_ours_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="falcon") as caught:
        PrefixTuning().attach(tiny_model(name), "default", seed=0)
    assert "prompt-tuning" in caught.value.mend


@pytest.mark.parametrize("settings", [{"projection": 5, "init": "vocabulary"}, {"projection": 0}])
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PrefixTuning.model_validate(settings)


def test_each_document_of_a_batch_has_its_own_adapters_prefix() -> None:
    model = tiny_model("llama")
    randomize(PrefixTuning(num_virtual_tokens=2).attach(model, "short", seed=0), 0.5)
    randomize(PrefixTuning(num_virtual_tokens=5, projection=4).attach(model, "long", seed=1), 0.5)
    whose = ("long", "short", None, "long")
    mixed = model.forward(usual_batch(model, whose), whose).logprob_N
    counts = [row.num_learned for row in random_rows(LENGTHS)]
    for row, (adapter, part) in enumerate(zip(whose, mixed.split(counts), strict=True)):
        assert_near(part, logprobs(model, adapter).split(counts)[row])
