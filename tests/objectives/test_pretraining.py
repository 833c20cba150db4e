"""Objectives of pre-training: what they make of a text can be undone, and their losses are those of transformers' models."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from models.rows import random_row
from models.tiny import CLASSES, MASK, plain_model, tiny_model
from near import assert_apart, assert_near
from objectives.words import MARKS, SENTINELS, vocabulary
from small_tokenizers import byte_level
from torch import Tensor
from transformers import AddedToken

from luthier.corruption.spans import restore
from luthier.corruption.vocabulary import Vocabulary
from luthier.data.drawn import Drawing
from luthier.data.packing import collate
from luthier.data.rendering import Renderer
from luthier.errors import DataError, RecipeError
from luthier.models.language_model import LanguageModel
from luthier.objectives import CLM, FIM, MLM, UL2, Denoising, Objective, PrefixLM, SpanCorruption
from luthier.types import Example, Origin, Part, PlainText, Rendered

ORIGIN = Origin("rows.txt", 4)
LENGTHS = (9, 30, 17)
FIM_MARKS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")


def text(length: int, document: int = 0) -> Example:
    """A text of random words, as an objective has it before it is drawn; the tiny models' last words are left for marks."""
    tokens_T = np.random.default_rng(length * 100 + document).integers(3, MARKS[0], length, dtype=np.int64)
    return MLM().example(Rendered(tokens_T, np.zeros(length, dtype=np.float32)), document, ORIGIN)


def drawn(objective: Objective, length: int, document: int = 0, epoch: int = 0) -> Example:
    start = None if "decoder" in objective.kinds else 1
    corrupt = objective.corruption(vocabulary(start))
    assert corrupt is not None
    return Drawing(corrupt, seed=5)(text(length, document), epoch)


def loss_of(model: LanguageModel, objective: Objective, rows: list[Example]) -> Tensor:
    return objective.loss_sum(model.forward(collate(rows, model.layout, pad_id=model.pad_id)))


# ── masks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_masked_words_have_the_loss_of_transformers(name: str) -> None:
    rows = [drawn(MLM(rate=0.3), length, document) for document, length in enumerate(LENGTHS)]
    plain, model = plain_model(name, purpose="words"), tiny_model(name, purpose="words")
    expected = torch.zeros(())
    for row in rows:
        labels = torch.full((1, row.num_tokens), -100)
        labels[0, row.source_N] = torch.from_numpy(row.token_N)
        ids = torch.from_numpy(row.parts[0].tokens_T)[None]
        expected = expected + plain(input_ids=ids, labels=labels).loss * row.num_learned
    assert_near(loss_of(model, MLM(), rows), expected)


def test_a_text_without_its_masks_is_the_text() -> None:
    for epoch in range(20):
        row, whole = drawn(MLM(), 40, epoch=epoch), text(40).parts[0].tokens_T
        inputs_T = row.parts[0].tokens_T.copy()
        assert row.num_learned >= 1
        inputs_T[row.source_N] = row.token_N
        assert np.array_equal(inputs_T, whole)


def test_special_tokens_are_never_hidden() -> None:
    tokens_T = np.array([1, 5, 6, 2], dtype=np.int64)
    marked = Example((Part(tokens_T),), tokens_T[:0], tokens_T[:0], np.zeros(0, np.float32), tokens_T[:0], 0, ORIGIN)
    corrupt = MLM(rate=0.9).corruption(vocabulary())
    for epoch in range(30):
        row = Drawing(corrupt, 0)(marked, epoch)
        assert set(row.source_N.tolist()) <= {1, 2}
        assert (row.parts[0].tokens_T[[0, 3]] == [1, 2]).all()


def test_draws_follow_the_seed_the_epoch_and_the_document_alone() -> None:
    first, again = drawn(MLM(), 30), drawn(MLM(), 30)
    assert np.array_equal(first.parts[0].tokens_T, again.parts[0].tokens_T)
    others = [drawn(MLM(), 30, epoch=1), drawn(MLM(), 30, document=1)]
    assert all(not np.array_equal(first.source_N, other.source_N) for other in others)
    drawing = Drawing(MLM().corruption(vocabulary()), 5)
    held = drawing.held_out(text(30))
    assert np.array_equal(held.source_N, drawing.held_out(text(30)).source_N)
    assert not np.array_equal(held.source_N, first.source_N)


# ── spans and noise ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("t5", SpanCorruption()),
        ("t5", UL2()),
        ("bart", Denoising(mask=0.3)),
        ("t5", Denoising()),
        ("t5", PrefixLM()),
        ("bart", PrefixLM()),
    ],
)
def test_what_an_encoder_decoder_writes_has_the_loss_of_transformers(name: str, objective: Objective) -> None:
    start = 1
    corrupt = objective.corruption(vocabulary(start))
    assert corrupt is not None
    rows = [Drawing(corrupt, 5)(text(length, document), 0) for document, length in enumerate(LENGTHS)]
    plain, model = plain_model(name), tiny_model(name)
    expected = torch.zeros(())
    for row in rows:
        assert row.source_S is not None
        inputs: dict[str, Any] = {
            "input_ids": torch.from_numpy(row.source_S)[None],
            "decoder_input_ids": torch.from_numpy(row.parts[0].tokens_T)[None],
            "labels": torch.from_numpy(row.token_N)[None],
        }
        expected = expected + plain(**inputs).loss * row.num_learned
        assert row.parts[0].tokens_T.tolist() == [start, *row.token_N[:-1].tolist()]
    assert_near(loss_of(model, objective, rows), expected)


@pytest.mark.parametrize("length", [2, 3, 10, 25])
def test_a_text_is_whole_again_from_what_was_kept_and_what_was_cut_out(length: int) -> None:
    objective = SpanCorruption(density=0.3, mean_length=2.0, roll=length == 25)
    row, whole = drawn(objective, length), text(length).parts[0].tokens_T
    assert row.source_S is not None
    assert np.array_equal(restore(row.source_S, row.token_N, SENTINELS, eos_id=2), whole)


def test_what_is_denoised_is_the_text_and_what_is_read_is_not() -> None:
    row, whole = drawn(Denoising(), 30), text(30).parts[0].tokens_T
    assert np.array_equal(row.token_N, whole)
    assert row.source_S is not None
    assert not np.array_equal(row.source_S, whole)
    same = drawn(Denoising(mask=0.0, permute=0.0), 30)
    assert same.source_S is not None
    assert np.array_equal(same.source_S, whole)


@pytest.mark.parametrize(
    "objective", [SpanCorruption(), SpanCorruption(roll=True), UL2(), PrefixLM(), Denoising(insert=0.1)]
)
@pytest.mark.parametrize("max_length", [16, 40])
def test_the_longest_text_comes_to_no_more_than_asked_whatever_is_drawn(objective: Objective, max_length: int) -> None:
    longest = objective.longest_text(max_length)
    corrupt = objective.corruption(vocabulary(1))
    assert corrupt is not None
    totals = [Drawing(corrupt, seed)(text(longest), 0).num_tokens for seed in range(60)]
    assert max(totals) <= max_length
    if isinstance(objective, SpanCorruption) and not objective.roll:  # and not less than that of a text one longer
        assert longest + 1 + 2 * round(round((longest + 1) * 0.15) / 3) + 2 > max_length


def test_the_sheets_lengths_of_t5_follow_from_the_length_of_both_sides() -> None:
    assert SpanCorruption().longest_text(512 + 114) == 568


# ── decoders ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon"])
def test_pre_training_a_decoder_has_the_loss_of_transformers(name: str) -> None:
    rendered = [Rendered(text(length).parts[0].tokens_T, np.ones(length, dtype=np.float32)) for length in LENGTHS]
    rows = [CLM().example(row, document, ORIGIN) for document, row in enumerate(rendered)]
    plain, model = plain_model(name), tiny_model(name)
    expected = torch.zeros(())
    for row in rendered:
        ids = torch.from_numpy(row.tokens_T)[None]
        expected = expected + plain(input_ids=ids, labels=ids).loss * (len(row.tokens_T) - 1)
    assert_near(loss_of(model, CLM(), rows), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("objective", [PrefixLM(), UL2()], ids=["prefix-lm", "ul2"])
def test_what_a_decoder_writes_after_a_prefix_has_the_loss_of_transformers_under_the_same_mask(
    name: str, objective: Objective
) -> None:
    rows = [drawn(objective, length, document) for document, length in enumerate(LENGTHS)]
    plain, model = plain_model(name), tiny_model(name)
    expected, under_causal = torch.zeros(()), torch.zeros(())
    for row in rows:
        ids = torch.from_numpy(np.concatenate([part.tokens_T for part in row.parts]))[None]
        length, prefix = ids.shape[1], len(row.parts[0].tokens_T)
        labels = torch.full_like(ids, -100)
        labels[0, row.source_N + 1] = torch.from_numpy(row.token_N)
        is_seen = torch.ones(length, length, dtype=torch.bool).tril()
        is_seen[:prefix, :prefix] = True
        hidden = torch.finfo(torch.float32).min
        mask = torch.zeros(1, 1, length, length).masked_fill(~is_seen, hidden)
        expected = expected + plain(input_ids=ids, attention_mask=mask, labels=labels).loss * row.num_learned
        under_causal = under_causal + plain(input_ids=ids, labels=labels).loss * row.num_learned
    assert_near(loss_of(model, objective, rows), expected)
    assert_apart(under_causal, expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("spm", [0.0, 1.0])
def test_a_text_whose_middle_was_moved_has_the_loss_of_transformers_on_the_moved_tokens(name: str, spm: float) -> None:
    objective = FIM(rate=1.0, spm_rate=spm, marks=("[NLU]", "[NLG]", "[S2S]"))
    drawing = Drawing(objective.corruption(vocabulary()), 5)
    plain, model = plain_model(name), tiny_model(name)
    rows, expected = [], torch.zeros(())
    for document, length in enumerate(LENGTHS):
        rendered = Rendered(text(length).parts[0].tokens_T, np.ones(length, dtype=np.float32))
        row = drawing(objective.example(rendered, document, ORIGIN), 0)
        tokens_T = row.parts[0].tokens_T
        assert set(MARKS) <= set(tokens_T.tolist())
        ids = torch.from_numpy(tokens_T)[None]
        expected = expected + plain(input_ids=ids, labels=ids).loss * (len(tokens_T) - 1)
        rows.append(row)
    assert_near(loss_of(model, objective, rows), expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_prefix_is_read_in_both_directions_and_the_rest_in_one(name: str) -> None:
    model = tiny_model(name)
    row = drawn(PrefixLM(), 12)
    cut = len(row.parts[0].tokens_T)
    assert 1 < cut < 11
    before = model.hidden(collate([row], model.layout, 0))[0]

    def changed(at: int) -> Tensor:
        parts = [part.tokens_T.copy() for part in row.parts]
        part, place = (0, at) if at < cut else (1, at - cut)
        parts[part][place] = 3 + (parts[part][place] + 1) % 20
        other = Example(
            (Part(parts[0], causal=False), Part(parts[1], parent=0)),
            row.source_N, row.token_N, row.weight_N, row.sample_N, 0, ORIGIN,
        )  # fmt: skip
        return model.hidden(collate([other], model.layout, 0))[0]

    last = changed(cut - 1)  # the prefix's last token is seen by its first
    assert_apart(last[0], before[0])
    within = changed(cut + 1)  # a token of the rest is seen by none before it
    assert_near(within[: cut + 1], before[: cut + 1], 1e-6)
    assert_apart(within[cut + 1 :], before[cut + 1 :])
    assert row.source_N.tolist() == list(range(cut - 1, 11))
    assert row.token_N.tolist() == text(12).parts[0].tokens_T[cut:].tolist()


def test_a_prefix_of_one_token_is_plain_language_modelling() -> None:
    model = tiny_model("llama")
    tokens_T = text(12).parts[0].tokens_T
    example = CLM().example(Rendered(tokens_T, np.ones(12, dtype=np.float32)), 0, ORIGIN)
    row = next(row for epoch in range(200) if len((row := drawn(PrefixLM(), 12, epoch=epoch)).parts[0].tokens_T) == 1)
    assert_near(loss_of(model, PrefixLM(), [row]), loss_of(model, CLM(), [example]))


@pytest.mark.parametrize("ends", [False, True])
def test_an_encoder_reads_a_prefix_and_the_decoder_writes_the_rest(ends: bool) -> None:
    words = vocabulary(1)
    whole = text(12)
    if ends:  # the last piece of a text has its end already
        whole = replace(whole, parts=(Part(np.append(whole.parts[0].tokens_T, words.end_id)),))
    cut = PrefixLM().corruption(words)
    assert cut is not None
    for epoch in range(30):
        row = Drawing(cut, seed=5)(whole, epoch)
        assert row.source_S is not None
        assert row.source_S[-1] == row.token_N[-1] == words.end_id
        assert np.array_equal(np.concatenate([row.source_S[:-1], row.token_N[:-1]]), text(12).parts[0].tokens_T)
        assert row.parts[0].tokens_T.tolist() == [1, *row.token_N[:-1]]
        assert row.weight_N.tolist() == [1.0] * len(row.token_N)


def test_a_decoder_writes_what_ul2_cut_out_after_what_it_kept() -> None:
    corrupt = UL2().corruption(vocabulary())
    row = Drawing(corrupt, 5)(text(30), 0)
    assert [part.causal for part in row.parts] == [False, True]
    assert row.parts[0].tokens_T[0] in MARKS
    assert np.array_equal(row.parts[1].tokens_T, row.token_N)
    assert_near(
        loss_of(tiny_model("llama"), UL2(), [row, random_row(5, 1)]),
        loss_of(tiny_model("llama"), UL2(), [row]) + loss_of(tiny_model("llama"), UL2(), [random_row(5, 1)]),
    )


@pytest.mark.parametrize("spm", [0.0, 1.0])
def test_a_middle_stands_last_and_the_text_is_whole_again_without_the_marks(spm: float) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in FIM_MARKS])
    words, written = Vocabulary(tokenizer), "Zwölf Boxkämpfer jagen Viktor 🥊 quer über den großen Sylter Deich."
    prefix_id, suffix_id, middle_id = (words.id_of(mark, "objective.marks") for mark in FIM_MARKS)
    tokens_T = np.array([*tokenizer(written, add_special_tokens=False)["input_ids"], words.end_id], dtype=np.int64)
    whole = FIM().example(Rendered(tokens_T, np.ones(len(tokens_T), dtype=np.float32)), 0, ORIGIN)
    drawing = Drawing(FIM(rate=1.0, spm_rate=spm).corruption(words), 3)
    for epoch in range(30):
        row = drawing(whole, epoch)
        tokens = row.parts[0].tokens_T.tolist()
        assert [tokens.count(mark) for mark in (prefix_id, suffix_id, middle_id)] == [1, 1, 1]
        assert tokens[-1] == words.end_id
        at_suffix, at_middle = tokens.index(suffix_id), tokens.index(middle_id)
        prefix, suffix, middle = tokens[1:at_suffix], tokens[at_suffix + 1 : at_middle], tokens[at_middle + 1 : -1]
        if spm:  # the prefix stands before the middle, and nothing tells where it ends
            assert prefix == []
            assert tokenizer.decode(middle + suffix) == written
        else:
            assert "".join(tokenizer.decode(part) for part in (prefix, middle, suffix)) == written
        assert row.num_learned == len(tokens) - 1
    assert np.array_equal(Drawing(FIM(rate=0.0).corruption(words), 3)(whole, 0).parts[0].tokens_T, tokens_T)


def fim_vocabulary() -> Vocabulary:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in (*FIM_MARKS, "<note>")])
    return Vocabulary(tokenizer)


def whole_again(tokens: list[int], words: Vocabulary) -> str:
    """The document that a part of was moved, the suffix between prefix and middle."""
    prefix_id, suffix_id, middle_id = (words.id_of(mark, "objective.marks") for mark in FIM_MARKS)
    assert [tokens.count(mark) for mark in (prefix_id, suffix_id, middle_id)] == [1, 1, 1]
    assert (tokens[0], tokens[-1]) == (prefix_id, words.end_id)
    at_suffix, at_middle = tokens.index(suffix_id), tokens.index(middle_id)
    parts = tokens[1:at_suffix], tokens[at_middle + 1 : -1], tokens[at_suffix + 1 : at_middle]
    return "".join(words.tokenizer.decode(part) for part in parts)


PARAGRAPHS = "Zwölf Boxkämpfer jagen Viktor 🥊 quer über den großen Sylter Deich. " * 6


@pytest.mark.parametrize("spm", [0.0, 1.0])
def test_a_long_document_is_moved_first_and_cut_then(spm: float) -> None:
    words, longest = fim_vocabulary(), 60
    renderer = Renderer(words.tokenizer, None)
    objective = FIM(rate=1.0, spm_rate=spm, level="document")
    pieces = [rendered for _, rendered in renderer.pieces(
        PlainText(PARAGRAPHS), "written", objective.longest_text(longest)
    )]  # fmt: skip
    assert len(pieces) > 3
    texts = [objective.example(piece, 5 + index, ORIGIN) for index, piece in enumerate(pieces)]
    drawing = Drawing(objective.corruption(words), 3)
    seen = set()
    for epoch in range(20):
        rows = [drawing(text, epoch) for text in texts]
        assert max(row.num_tokens for row in rows) <= longest
        tokens = [token for row in rows for token in row.parts[0].tokens_T.tolist()]
        assert whole_again(tokens, words) == PARAGRAPHS
        seen.add(tuple(tokens))
        assert all(row.num_learned == row.num_tokens - 1 for row in rows)
    assert len(seen) == 20
    never = FIM(rate=0.0, level="document")
    kept = Drawing(never.corruption(words), 3)(texts[1], 0)
    assert np.array_equal(kept.parts[0].tokens_T, pieces[1].tokens_T)


def test_in_a_context_each_piece_and_each_document_of_a_row_is_moved_within_itself() -> None:
    words = fim_vocabulary()
    objective = FIM(rate=1.0)
    documents = ["Der erste Text, etwas länger.", "Second text. <note>It has a mark.", "漢字"]
    end = words.tokenizer.eos_token
    (piece,) = [rendered for _, rendered in Renderer(words.tokenizer, None).pieces(
        PlainText(str(end).join(documents)), "written", 512
    )]  # fmt: skip
    row = objective.example(piece, 0, ORIGIN)
    assert row.piece is None
    drawing = Drawing(objective.corruption(words), 3)
    for epoch in range(30):
        tokens = drawing(row, epoch).parts[0].tokens_T.tolist()
        assert len(tokens) <= len(piece.tokens_T) + 16
        ends = [at + 1 for at, token in enumerate(tokens) if token == words.end_id]
        found = [tokens[start:stop] for start, stop in pairwise([0, *ends])]
        assert [_undone(each, words) for each in found] == documents


def _undone(tokens: list[int], words: Vocabulary) -> str:
    """A document whichever way it was moved; of the prefix-first one and the suffix-first one."""
    first, second = (words.id_of(mark, "objective.marks") for mark in FIM_MARKS[:2])
    if tokens[:2] != [first, second]:
        return whole_again(tokens, words)
    at_middle = tokens.index(words.id_of(FIM_MARKS[2], "objective.marks"))
    decode = words.tokenizer.decode
    return str(decode(tokens[at_middle + 1 : -1]) + decode(tokens[2:at_middle]))


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_tokenizer_lacks_is_named() -> None:
    bare = tiny_model("llama").tokenizer
    for objective, found in (
        (MLM(), "no mask token"),
        (SpanCorruption(), "no sentinels"),
        (UL2(), r"no token '\[NLU\]'"),
        (FIM(), "no marks"),
        (FIM(marks=("a", "b", "c")), "no token 'a'"),
    ):
        with pytest.raises(RecipeError, match=found):
            objective.corruption(Vocabulary(bare, 1))


def test_a_text_too_short_to_be_cut_is_refused_at_its_line() -> None:
    for objective in (PrefixLM(), SpanCorruption()):
        with pytest.raises(DataError) as caught:
            drawn(objective, 1)
        assert (caught.value.file, caught.value.line) == (ORIGIN.file, ORIGIN.line)


def test_the_tiny_mask_is_the_last_word_but_for_the_marks() -> None:
    assert vocabulary().mask_id == MASK
    assert len(CLASSES) > 1
