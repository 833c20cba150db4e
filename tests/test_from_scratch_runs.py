"""Runs from random weights of a config: the same start on resume, a folder that transformers loads, each kind of model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Cut, begin, course, cut_after, go_on, nothing, outcome, recipe_values, write_rows
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from luthier import api
from luthier.data.tokenizer_training import Purpose, TokenizerSettings, train_tokenizer
from luthier.errors import RecipeError, RunMismatch
from luthier.recipe import make_recipe
from luthier.recipe.loading import recipe_of_run
from luthier.studies.planning import read_request
from luthier.tuned import load_run

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
BERT = {**LLAMA, "model_type": "bert"}
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 40, "num_layers": 1}
FULL = {"kind": "full"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "orders.jsonl", 40)


def tokenizer_for(purpose: Purpose, rows: Path, folder: Path) -> Path:
    size = 300 + 100 * (purpose == "encoder-decoder")
    train_tokenizer(str(rows), folder, TokenizerSettings(purpose=purpose, vocab_size=size), nothing)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Path:
    return tokenizer_for("decoder", rows, tmp_path_factory.mktemp("tokenizers") / "decoder")


def values_of(config: Any, tokenizer: Path, rows: Path, **parts: Any) -> dict[str, Any]:
    values = recipe_values(tokenizer, rows, **parts)
    return {**values, "model": {"config": config, "tokenizer": str(tokenizer)}, "method": FULL}


def test_a_run_that_is_resumed_from_its_beginning_or_a_checkpoint_gives_the_same_bits(
    tmp_path: Path, tokenizer: Path, rows: Path
):
    values = values_of(LLAMA, tokenizer, rows)
    begin(values, tmp_path / "whole")
    for step in (1, 3):  # before the first checkpoint, and after it
        with pytest.raises(Cut):
            begin(values, tmp_path / f"cut{step}", cut_after(step))
        go_on(tmp_path / f"cut{step}")
        assert outcome(tmp_path / f"cut{step}") == outcome(tmp_path / "whole")


def test_the_run_holds_its_config_and_its_tokenizer_must_stay(tmp_path: Path, rows: Path):
    folder = tokenizer_for("decoder", rows, tmp_path / "tokenizer")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    values = values_of(str(config), folder, rows)
    begin(values, tmp_path / "whole")
    with pytest.raises(Cut):
        begin(values, tmp_path / "cut", cut_after(3))
    config.write_text(json.dumps({**LLAMA, "hidden_size": 64}))
    go_on(tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert recipe_of_run(tmp_path / "cut").model.config == LLAMA

    with pytest.raises(Cut):
        begin(values, tmp_path / "other", cut_after(3))
    other = folder / "tokenizer.json"
    other.write_text(other.read_text() + "\n")
    with pytest.raises(RunMismatch, match="model"):
        go_on(tmp_path / "other")


def test_the_saved_decoder_is_one_that_transformers_loads_with_its_tokenizer(
    tmp_path: Path, tokenizer: Path, rows: Path
):
    said: list[str] = []
    begin(values_of(LLAMA, tokenizer, rows), tmp_path / "run", announce=said.append)
    assert any("drawn from seed 7" in text for text in said)
    ours = load_run(tmp_path / "run", nothing)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    own = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    text = "Where is order 12, the lamp?"
    assert own(text)["input_ids"] == ours.tokenizer(text)["input_ids"]
    assert own(text)["input_ids"] == AutoTokenizer.from_pretrained(tokenizer)(text)["input_ids"]
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.hf.state_dict()[name], tensor)
    base = api.base_of(tmp_path / "run", api.load_text(tmp_path / "run"))
    assert not torch.equal(base.language_model.hf.state_dict()["model.norm.weight"], theirs.model.norm.weight)
    assert isinstance(api.load_text(tmp_path / "run").generate("Where", max_new_tokens=3), str)


def test_another_seed_is_another_start(tmp_path: Path, tokenizer: Path, rows: Path):
    first, second = ({**values_of(LLAMA, tokenizer, rows, training={"steps": 1}), "seed": seed} for seed in (1, 2))
    begin(first, tmp_path / "1")
    begin(second, tmp_path / "2")
    prints = {recipe_of_run(tmp_path / name).provenance.model_sha256 for name in "12"}  # type: ignore[union-attr]
    assert len(prints) == 2


def test_an_encoder_for_classes_learns_from_nothing(tmp_path: Path, rows: Path):
    folder = tokenizer_for("encoder", rows, tmp_path / "tokenizer")
    labelled = tmp_path / "labelled.jsonl"
    texts = [{"text": f"order {n} is {'late' if n % 2 else 'here'}", "label": "ab"[n % 2]} for n in range(40)]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in texts))
    values = values_of(BERT, folder, labelled) | {"objective": {"kind": "classification"}}
    values["training"] |= {"steps": 30, "checkpoint_every": 30, "peak_lr": 0.005, "rows_per_step": 16}
    result = begin(values, tmp_path / "run")
    assert result.final_loss is not None
    assert result.final_loss < 0.4 < torch.log(torch.tensor(2.0))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert set(theirs.config.id2label.values()) == {"a", "b"}


def test_an_encoder_learns_to_fill_masks_from_nothing(tmp_path: Path, rows: Path):
    folder = tokenizer_for("encoder", rows, tmp_path / "tokenizer")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"the order {n % 4} is here now"}) + "\n" for n in range(40)))
    values = values_of(BERT, folder, texts) | {"objective": {"kind": "mlm", "rate": 0.4}}
    values["training"] |= {"steps": 30, "checkpoint_every": 30, "peak_lr": 0.005, "rows_per_step": 16}
    result = begin(values, tmp_path / "run")
    assert result.final_loss is not None
    assert result.final_loss < 0.7 * course(tmp_path / "run")[0]["loss"]
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model")
    assert theirs.config.vocab_size == len(AutoTokenizer.from_pretrained(folder))


def test_an_encoder_decoder_learns_from_nothing(tmp_path: Path, rows: Path):
    folder = tokenizer_for("encoder-decoder", rows, tmp_path / "tokenizer")
    values = values_of(T5, folder, rows)
    begin(values, tmp_path / "whole")
    with pytest.raises(Cut):
        begin(values, tmp_path / "cut", cut_after(3))
    go_on(tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "whole" / "model")
    own = AutoTokenizer.from_pretrained(tmp_path / "whole" / "model")
    assert theirs.config.vocab_size == len(own) == 400
    assert own.convert_tokens_to_ids("<extra_id_0>") == 399
    assert (
        own("Where is order 5?")["input_ids"] == AutoTokenizer.from_pretrained(folder)("Where is order 5?")["input_ids"]
    )
    assert isinstance(api.load_text(tmp_path / "whole").generate("Where is order 5?", max_new_tokens=3), str)


@pytest.mark.parametrize("kind", ["lora", "top-layers", "bitfit"])
def test_methods_that_leave_the_base_frozen_are_refused_over_random_weights(kind: str, tokenizer: Path, rows: Path):
    values = values_of(LLAMA, tokenizer, rows) | {"method": {"kind": kind}}
    with pytest.raises(RecipeError, match="nothing for") as raised:
        make_recipe(values)
    assert "kind: full" in raised.value.mend


def test_a_run_without_a_rate_takes_that_of_a_random_start(tmp_path: Path, tokenizer: Path, rows: Path):
    values = values_of(LLAMA, tokenizer, rows, training={"peak_lr": None, "steps": 1})
    begin(values, tmp_path / "run")
    assert recipe_of_run(tmp_path / "run").training.peak_lr == 1e-3


def test_a_plan_reads_the_rows_with_the_new_models_tokenizer(tokenizer: Path, rows: Path):
    recipe, config, found = read_request(make_recipe(values_of("llama-2m", tokenizer, rows)), nothing)
    assert config.vocab_size == 300
    assert not found.are_imagined
    assert len(found.examples) == 40
    assert recipe.model.name == "llama-2m"
