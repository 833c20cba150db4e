"""A model that is sure of other tokens than come is told from one that knows nothing, and from one that reads its own."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import write_tiny_model
from transformers import AutoModelForCausalLM

import luthier.prediction.surprise as surprise
from luthier.errors import GateRefusal
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.prediction.surprise import beginning_of, loss_and_entropy, refuse_foreign_tokens
from luthier.types import Example, Origin, Part

WORDS = 1_100
"""Rows of the embedding; the tokenizer has about 320."""


def row_of(tokens: list[int], document: int = 0) -> Example:
    none = np.zeros(0, dtype=np.int64)
    tokens_T = np.array(tokens, dtype=np.int64)
    return Example((Part(tokens_T),), none, none, none.astype(np.float32), none, document, Origin("rows.jsonl", 1))


COUNTING = [row_of(list(range(start, start + 40)), start) for start in range(10, 250, 20)]


def shuffled(rows: list[Example]) -> list[Example]:
    """The rows as another tokenizer of as many tokens would write them."""
    other = list(range(300))
    random.Random(3).shuffle(other)
    return [row_of([other[token] for token in row.parts[0].tokens_T.tolist()], row.document) for row in rows]


def model_of(folder: Path, *, counts: bool) -> LanguageModel:
    """A model of random weights, or one that is sure that each token is followed by the next."""
    write_tiny_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(WORDS, mean_resizing=False)
    if counts:
        with torch.no_grad():
            embedding_VD = model.get_input_embeddings().weight
            embedding_VD.normal_(generator=torch.Generator().manual_seed(0))
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            head_VD = torch.roll(embedding_VD, 1, dims=0).clone()
            model.config.tie_word_embeddings = False
            model.lm_head.weight = torch.nn.Parameter(head_VD)
    model.save_pretrained(folder)
    return load_model(ModelSettings(name=str(folder)), lambda text: None)


def test_a_model_that_reads_its_own_tokens_passes_and_those_of_another_tokenizer_are_refused(tmp_path: Path):
    model = model_of(tmp_path / "model", counts=True)
    loss, entropy = loss_and_entropy(model, [beginning_of(row) for row in COUNTING])
    assert loss < 1
    assert entropy < 1
    refuse_foreign_tokens(model, COUNTING)
    before = torch.get_rng_state()
    with pytest.raises(GateRefusal, match="expects other tokens than the rows have") as refused:
        refuse_foreign_tokens(model, shuffled(COUNTING))
    assert refused.value.field == "model"
    assert "model.trust_tokenizer" in refused.value.mend
    assert torch.equal(torch.get_rng_state(), before)


def test_random_weights_expect_to_know_nothing_and_pass(tmp_path: Path):
    model = model_of(tmp_path / "model", counts=False)
    loss, entropy = loss_and_entropy(model, [beginning_of(row) for row in COUNTING])
    assert loss == pytest.approx(np.log(WORDS), abs=0.3)
    assert entropy == pytest.approx(np.log(WORDS), abs=0.3)
    refuse_foreign_tokens(model, COUNTING)


@pytest.mark.parametrize(
    ("loss", "entropy", "passes"),
    [(12.3, 7.5, False), (12.3, 10.5, True), (4.9, 0.5, True), (5.6, 3.5, True), (5.6, 2.9, False)],
)
def test_both_a_loss_near_a_guess_and_a_false_sureness_are_needed(
    loss: float, entropy: float, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = model_of(tmp_path / "model", counts=False)
    assert 5.6 < np.log(len(model.tokenizer)) < 5.9
    monkeypatch.setattr(surprise, "loss_and_entropy", lambda model, rows: (loss, entropy))
    if passes:
        refuse_foreign_tokens(model, COUNTING)
        return
    with pytest.raises(GateRefusal):
        refuse_foreign_tokens(model, COUNTING)


def test_few_tokens_say_nothing(tmp_path: Path):
    refuse_foreign_tokens(model_of(tmp_path / "model", counts=True), shuffled(COUNTING[:1]))


def test_the_beginning_of_a_row_teaches_each_of_its_tokens_but_the_first():
    row = beginning_of(row_of(list(range(100))))
    assert len(row.parts[0].tokens_T) == surprise.TOKENS_OF_ROW
    assert row.token_N.tolist() == list(range(1, surprise.TOKENS_OF_ROW))
    assert row.source_N.tolist() == list(range(surprise.TOKENS_OF_ROW - 1))
    assert beginning_of(row_of([5])).num_learned == 0
