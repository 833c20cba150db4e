"""Prompt tuning: what its rows stand for, how they begin, and its files in peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.soft_prompt_files import CONFIG, PEFT_WARNINGS, by_peft, made_by_peft, rewrite_config, written
from models.rows import batch_of
from models.tiny import NAMES, plain_model, tiny_model
from models.tuned import LENGTHS, logprobs, logprobs_behind, plain_attention, quiet, usual_batch
from near import assert_apart, assert_near
from peft import PeftModel, PromptTuningConfig
from pydantic import ValidationError

from luthier.errors import RecipeError
from luthier.methods import PromptTuning
from luthier.models.language_model import LanguageModel

pytestmark = PEFT_WARNINGS
FAMILIES = ("llama", "gemma2", "gpt2", "gpt_neox", "opt", "opt-norm-after", "phi3", "falcon-new")


def rows_of(method: PromptTuning, model: LanguageModel) -> torch.Tensor:
    """The rows that a method begins with."""
    (rows,) = method.attach(model, "default", seed=0).trainables.values()
    return rows.detach()


def table_of(model: LanguageModel) -> torch.Tensor:
    """What the base's embedding gives for every token."""
    return model.hf.get_submodule(model.anatomy.embedding)(torch.arange(model.vocab_size))


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_of_the_embeddings_of_words_is_those_words(name: str) -> None:
    model = tiny_model(name)
    expected = logprobs_behind(model, (3, 40, 7))
    PromptTuning(num_virtual_tokens=3, init="text", text="w3 w40 w7").attach(model, "default", seed=0)
    assert_near(logprobs(model), expected, 1e-6)
    assert_apart(logprobs(model), logprobs(model, None))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_count_is_the_number_of_virtual_tokens_times_the_width(name: str) -> None:
    model = tiny_model(name)
    width = table_of(model).shape[1]
    attachment = PromptTuning(num_virtual_tokens=5).attach(model, "default", seed=0)
    assert attachment.num_trainable == 5 * width
    if name == "llama":
        assert attachment.num_trainable == 160
    assert attachment.lowest_layer is None
    assert attachment.num_virtual == model.num_virtual("default") == 5


def test_random_rows_are_uniform_in_half_and_the_others_are_rows_of_the_embedding_as_it_gives_them() -> None:
    model = tiny_model("gemma2")
    table = table_of(model)
    rows = rows_of(PromptTuning(num_virtual_tokens=50, init="random"), model)
    assert float(rows.abs().max()) <= 0.5
    assert float(rows.std()) == pytest.approx(12**-0.5, rel=0.05)
    rows = rows_of(PromptTuning(num_virtual_tokens=50), tiny_model("gemma2"))
    assert all(bool((table == row).all(1).any()) for row in rows)
    assert len({tuple(row.tolist()) for row in rows}) > 20
    for text, tokens in (("w5 w6", (5, 6, 5, 6, 5)), ("w3 w4 w5 w6 w7 w8", (3, 4, 5, 6, 7))):
        rows = rows_of(PromptTuning(num_virtual_tokens=5, init="text", text=text), tiny_model("gemma2"))
        assert torch.equal(rows, table[list(tokens)])


def test_a_document_without_placeholders_of_its_own_is_not_the_prompts_business() -> None:
    model = tiny_model("llama")
    PromptTuning(num_virtual_tokens=3).attach(model, "default", seed=0)
    before = model.forward(batch_of(LENGTHS, model.layout)).logprob_N
    assert_near(model.forward(batch_of(LENGTHS, model.layout), None).logprob_N, before, 0)


def test_a_bf16_base_stays_bf16_and_the_rows_get_fp32_gradients() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    attachment = PromptTuning(num_virtual_tokens=3).attach(model, "default", seed=0)
    batch = usual_batch(model, "default")
    assert model.hidden(batch, "default").dtype == torch.bfloat16
    (rows,) = attachment.trainables.values()
    (gradient,) = torch.autograd.grad(model.forward(batch, "default").logprob_N.sum(), [rows])
    assert gradient.dtype == torch.float32
    assert bool((gradient.abs().sum(1) > 0).all())


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_computes_the_same_from_a_written_prompt(name: str, tmp_path: Path) -> None:
    expected = written(tmp_path, name, PromptTuning(num_virtual_tokens=3))
    loaded = PeftModel.from_pretrained(plain_model(name, plain_attention(name)), tmp_path / "a")
    assert_near(by_peft(loaded), expected)


# not opt-norm-after: peft takes the width of its layers for that of its embedding
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "opt-norm-after"])
def test_a_prompt_saved_by_peft_computes_the_same_here_and_is_written_as_it_was_read(name: str, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    expected = made_by_peft(tmp_path / "p", name, config)
    model = tiny_model(name)
    attachment = PromptTuning(begin_from=str(tmp_path / "p")).attach(model, "default", seed=0)
    assert_near(logprobs(model), expected)
    (tmp_path / "b").mkdir()
    attachment.write(tmp_path / "b", quiet)
    before, after = (json.loads((tmp_path / run / CONFIG).read_text()) for run in "pb")
    assert {**before, "base_model_name_or_path": None} == {**after, "base_model_name_or_path": None}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "peft_type"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_files_that_mean_something_else_are_refused_by_field(
    change: dict[str, Any], field: str, tmp_path: Path
) -> None:
    written(tmp_path, "llama", PromptTuning(num_virtual_tokens=3))
    rewrite_config(tmp_path / "a", **change)
    with pytest.raises(RecipeError) as caught:
        PromptTuning(begin_from=str(tmp_path / "a")).attach(tiny_model("llama"), "default", seed=0)
    assert caught.value.field == field
    assert caught.value.mend


def test_a_prompt_of_another_width_or_number_is_refused_with_both_shapes(tmp_path: Path) -> None:
    written(tmp_path, "llama", PromptTuning(num_virtual_tokens=3))
    rewrite_config(tmp_path / "a", num_virtual_tokens=4)
    with pytest.raises(RecipeError, match=r"\(3, 32\)") as caught:
        PromptTuning(begin_from=str(tmp_path / "a")).attach(tiny_model("llama"), "default", seed=0)
    assert "(4, 32)" in caught.value.found


def test_a_recipe_that_states_another_number_than_the_adapter_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "llama", PromptTuning(num_virtual_tokens=3))
    method = PromptTuning(begin_from=str(tmp_path / "a"), num_virtual_tokens=5)
    with pytest.raises(RecipeError, match="5 against 3"):
        method.attach(tiny_model("llama"), "default", seed=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"init": "text"},
        {"text": "w5"},
        {"init": "text", "text": "w5", "from": "somewhere"},
        {"init": "random", "from": "somewhere"},
        {"num_virtual_tokens": 0},
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PromptTuning.model_validate(settings)


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(RecipeError, match="no tokens"):
        PromptTuning(init="text", text=" ").attach(tiny_model("llama"), "default", seed=0)
