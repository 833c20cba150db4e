"""Companions: what they say of a batch belongs to its targets, whatever layout and virtual tokens either model has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models.rows import random_row, random_rows, with_sources
from models.tiny import VOCABULARY, tiny_model
from models.tuned import randomize
from near import assert_near
from torch import Tensor

from luthier.data.packing import collate, shared_prefix
from luthier.data.placeholders import with_placeholders
from luthier.errors import DataError
from luthier.methods import LoRA, Method, PromptTuning
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import KnownLogprobs, Outputs
from luthier.objectives.contract import Kept
from luthier.ops.imitation import KnownWords
from luthier.ops.workers import Workers
from luthier.store.rows import INDEX, ROWS
from luthier.training.companions import (
    AtHand,
    Companions,
    Keeping,
    KeptSay,
    Logprobs,
    Speaker,
    Words,
    ask_once,
    by_document,
)
from luthier.types import Batch, Example, Part

KEPT = Kept(count=5, temperature=1.5)


@pytest.fixture
def rows() -> list[Example]:
    return random_rows((9, 6, 12, 7))


def batch_for(model: LanguageModel, rows: list[Example], adapter: str | None = None) -> Batch:
    placed = [with_placeholders(row, model.num_virtual(adapter)) for row in rows]
    return collate(placed, model.layout, model.pad_id)


def beginning_alike(row: Example) -> Example:
    """A row whose first 20 tokens are those of every other, and are not learned."""
    (part,) = row.parts
    tokens_T = np.concatenate([np.arange(3, 23), part.tokens_T[20:]])
    is_late = row.source_N >= 20
    changes = {name: getattr(row, name)[is_late] for name in ("source_N", "token_N", "weight_N", "sample_N")}
    return replace(row, parts=(Part(tokens_T),), **changes)


def heard(voices: Companions, batch: Batch) -> Tensor:
    said = voices.beside(batch)["teacher"]
    assert isinstance(said, Outputs)
    return said.logprob_N


@pytest.mark.parametrize("student", ["llama", "bloom"])
@pytest.mark.parametrize("teacher", ["mistral", "falcon"])
@pytest.mark.parametrize("method", [None, PromptTuning(num_virtual_tokens=3)], ids=["plain", "virtual"])
def test_what_is_heard_is_what_the_companion_says_by_itself(
    student: str, teacher: str, method: Method | None, rows: list[Example]
) -> None:
    model, other = tiny_model(student), tiny_model(teacher)
    adapter = None if method is None else "default"
    for each in (model, other):
        if method is not None:
            randomize(method.attach(each, "default", seed=1))
    voices = Companions({"teacher": AtHand(Speaker(other, adapter), by_document(rows))})
    turned = [rows[2], rows[0], rows[3], rows[1]]
    found = heard(voices, batch_for(model, turned, adapter))
    expected = [other.forward(batch_for(other, [row], adapter), adapter).logprob_N for row in turned]
    assert_near(found, torch.cat(expected))
    assert not found.requires_grad


def test_of_encoder_decoders_the_companion_reads_the_sources_too() -> None:
    rows = with_sources(random_rows((6, 4, 8)))
    student, other = tiny_model("bart"), tiny_model("t5")
    voices = Companions({"teacher": AtHand(Speaker(other, None), by_document(rows))})
    found = heard(voices, batch_for(student, rows))
    assert_near(found, torch.cat([other.forward(batch_for(other, [row])).logprob_N for row in rows]))


def test_a_companion_is_asked_when_it_is_read_and_then_once(rows: list[Example]) -> None:
    model = tiny_model("llama")
    asked: list[int] = []
    model.hf.register_forward_hook(lambda *_: asked.append(1))
    model.hf.get_submodule(model.anatomy.trunk).register_forward_hook(lambda *_: asked.append(1))
    beside = Companions({"teacher": AtHand(Speaker(model, None), by_document(rows))}).beside(batch_for(model, rows))
    assert (list(beside), len(beside), asked) == (["teacher"], 1, [])
    assert beside["teacher"] is beside["teacher"]
    assert len(asked) == 1


def test_a_companion_shares_the_beginning_that_rows_have_in_common(rows: list[Example]) -> None:
    model = tiny_model("llama")
    randomize(LoRA(rank=2).attach(model, "default", seed=0))
    long = [beginning_alike(row) for row in random_rows((30, 28, 34))]
    assert shared_prefix(long) == 20
    voices = [
        Companions({"teacher": AtHand(Speaker(model, "default", shares), by_document(long))})
        for shares in (True, False)
    ]
    assert_near(*(heard(each, batch_for(model, long)) for each in voices))


# ── kept words ──────────────────────────────────────────────────────────────────────────────────────────────────────


def say_in(folder: Path, rows: list[Example], keeping: Keeping | None = None) -> KeptSay:
    return KeptSay(folder, keeping or Words(KEPT, VOCABULARY), rows)


def kept_in(
    folder: Path, rows: list[Example], budget: int = 24, workers: int = 1, keeping: Keeping | None = None
) -> KeptSay:
    words = say_in(folder, rows, keeping)
    with Workers(workers) as pool:
        ask_once(words, Speaker(tiny_model("gpt2"), None), rows, budget, pool)
    assert not words.missing
    return words


def test_kept_words_are_the_likeliest_of_the_companion_in_any_batch(tmp_path: Path, rows: list[Example]) -> None:
    words, other = kept_in(tmp_path, rows), tiny_model("gpt2")
    for some in (rows, rows[2:], [rows[3], rows[0]]):
        batch = batch_for(other, some)
        known, outputs = words.say(batch), other.forward(batch)
        assert isinstance(known, KnownWords)
        logp_NV = (outputs.head.logits(outputs.hidden_ND).float() / KEPT.temperature).log_softmax(-1)
        highest = logp_NV.topk(KEPT.count)
        assert_near(known.logprob_NL[:, :-1], highest.values)
        assert torch.equal(known.token_NK, highest.indices)
        assert_near(known.logprob_NL.exp().sum(-1), torch.ones(len(logp_NV)))


def test_what_a_dead_process_left_is_gone_on_with_to_the_same_bits(tmp_path: Path, rows: list[Example]) -> None:
    whole = kept_in(tmp_path / "whole", rows)
    kept_in(tmp_path / "broken", rows)
    index = tmp_path / "broken" / INDEX
    lines = index.read_text().splitlines()
    index.write_text("\n".join(lines[1:3]) + "\n" + lines[3][:9])
    data = bytearray((tmp_path / "broken" / ROWS).read_bytes())
    data[json.loads(lines[1])["start"] * 44 + 3] ^= 1  # and the disk lost a bit
    (tmp_path / "broken" / ROWS).write_bytes(data)
    again = say_in(tmp_path / "broken", rows)
    assert len(again.missing) == 3
    again = kept_in(tmp_path / "broken", rows, workers=2)
    batch = batch_for(tiny_model("gpt2"), rows)
    one, other = whole.say(batch), again.say(batch)
    assert isinstance(one, KnownWords)
    assert isinstance(other, KnownWords)
    assert torch.equal(one.token_NK, other.token_NK)
    assert torch.equal(one.logprob_NL, other.logprob_NL)


def test_rows_that_teach_nothing_are_not_asked_of(tmp_path: Path) -> None:
    rows = [random_row(9, 0), random_row(6, 1, learned=0.0), random_row(7, 2)]
    assert not rows[1].num_learned
    words = kept_in(tmp_path, rows)
    count = rows[0].num_learned + rows[2].num_learned
    known = words.say(batch_for(tiny_model("gpt2"), rows))
    assert isinstance(known, KnownWords)
    assert len(known.token_NK) == count
    nothing = words.say(batch_for(tiny_model("gpt2"), rows[1:2]))
    assert isinstance(nothing, KnownWords)
    assert nothing.token_NK.shape == (0, KEPT.count)


def test_words_that_are_lost_while_it_trains_are_told(tmp_path: Path, rows: list[Example]) -> None:
    kept_in(tmp_path, rows)
    words = say_in(tmp_path, rows)
    (tmp_path / ROWS).write_bytes(b"")
    with pytest.raises(DataError, match="no longer whole") as told:
        words.say(batch_for(tiny_model("gpt2"), rows))
    assert "luthier resume" in told.value.mend


def test_kept_log_probabilities_are_those_of_the_model_in_any_batch(tmp_path: Path, rows: list[Example]) -> None:
    say, model = kept_in(tmp_path, rows, keeping=Logprobs()), tiny_model("gpt2")
    for some in (rows, [rows[3], rows[0]], rows[1:2]):
        known = say.say(batch_for(model, some))
        assert isinstance(known, KnownLogprobs)
        assert_near(known.logprob_N, model.forward(batch_for(model, some)).logprob_N)
