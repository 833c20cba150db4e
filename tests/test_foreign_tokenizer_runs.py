"""Runs over the tokenizer of another model: refused before a weight is touched, unless the recipe trusts it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_tiny_model
from tiny_runs import begin, course, recipe_values, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.errors import GateRefusal


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "orders.jsonl", 8)


def values_of(model: Path, rows: Path, *, trusts: bool, **training: Any) -> dict[str, Any]:
    values = recipe_values(model, rows, training={"steps": 1, "checkpoint_every": 1, **training})
    return {**values, "model": {"name": str(model), "trust_tokenizer": trusts}}


def test_a_model_that_expects_tokens_which_its_tokenizer_lacks_is_refused_at_its_first_step(tmp_path: Path, rows: Path):
    folder = write_tiny_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(4_096, mean_resizing=False)
    model.save_pretrained(folder)
    guess = math.log(len(AutoTokenizer.from_pretrained(folder)))
    with pytest.raises(GateRefusal, match="the model cannot read these rows") as refused:
        begin(values_of(folder, rows, trusts=False), tmp_path / "run")
    assert refused.value.field == "model"
    assert "model.trust_tokenizer" in refused.value.mend
    begin(values_of(folder, rows, trusts=True), tmp_path / "trusted")
    assert guess + 1.5 < course(tmp_path / "trusted")[0]["loss"] < math.log(4_096) + 0.5


def test_a_model_whose_end_of_text_is_a_word_of_the_tokenizer_is_refused_by_the_gate(tmp_path: Path, rows: Path):
    folder = write_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    word = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("a")
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": word}))
    with pytest.raises(GateRefusal, match="'a', an ordinary token: the tokenizer is that of another model"):
        begin(values_of(folder, rows, trusts=False), tmp_path / "run")
    begin(values_of(folder, rows, trusts=True), tmp_path / "trusted")
