"""The data set: form, limits and split, each said aloud."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from small_examples import example_of
from small_tokenizers import CHATML, byte_level

from luthier.data.dataset import Dataset, load_dataset
from luthier.data.settings import DataSettings
from luthier.errors import GateRefusal, NotFound, RecipeError
from luthier.types import Completion, PlainText, RowLengths


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(number: int) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(number)]


def load(train: str | tuple[str, ...], said: list[str] | None = None, **values: Any) -> Dataset:
    settings = DataSettings(train=train, **values)
    announce = (lambda text: None) if said is None else said.append
    return load_dataset(settings, byte_level(CHATML), example_of, announce)


def length_of(rows: list[dict[str, Any]], tmp_path: Path) -> list[int]:
    dataset = load(write_rows(tmp_path / "lengths.jsonl", rows), validation="none")
    return [example.num_tokens for example in dataset.train]


def test_records_and_examples_are_aligned_and_know_their_line(tmp_path: Path) -> None:
    dataset = load(write_rows(tmp_path / "rows.jsonl", pairs(100)))
    assert len(dataset.train) == 84
    assert len(dataset.validation) == 16
    tokenizer = dataset.renderer.tokenizer
    for examples, records in ((dataset.train, dataset.train_records), (dataset.validation, dataset.validation_records)):
        for example, record in zip(examples, records, strict=True):
            assert isinstance(record, Completion)
            assert record.prompt in tokenizer.decode(example.parts[0].tokens_T)
            assert record.prompt == f"What is {example.document}?"
            assert example.origin.line == example.document + 1
    documents = [example.document for example in (*dataset.train, *dataset.validation)]
    assert sorted(documents) == list(range(100))


def test_pieces_of_one_text_are_held_out_together_unless_it_is_all_there_is(tmp_path: Path) -> None:
    texts = [{"text": f"Text {number} goes on. " * 12} for number in range(60)]
    for name, rows, cut in (("many", texts, 0), ("one", [{"text": " ".join(row["text"] for row in texts)}], 1)):
        said: list[str] = []
        dataset = load(write_rows(tmp_path / f"{name}.jsonl", rows), said, max_length=64, too_long="split")
        lines = [{row.origin.line for row in side} for side in (dataset.train, dataset.validation)]
        assert len(dataset.validation) >= 10
        assert len(lines[0] & lines[1]) == cut
        assert any("1 text is too long to be held out whole" in text for text in said) == bool(cut)
        pieces = [record for record in dataset.train_records if isinstance(record, PlainText)]
        assert all(len(piece.part_of) == 64 for piece in pieces)


def test_the_form_its_reason_and_the_split_are_announced(tmp_path: Path) -> None:
    said: list[str] = []
    dataset = load(write_rows(tmp_path / "rows.jsonl", pairs(100)), said)
    assert dataset.format == "completion"
    assert any("100 rows" in text and "completion" in text and dataset.reason.rstrip(".") in text for text in said)
    assert any("84 rows to train on; 16 held out" in text for text in said)
    assert all(note in said for note in dataset.notes)


def test_too_few_rows_to_split_are_all_trained_on_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    dataset = load(write_rows(tmp_path / "rows.jsonl", pairs(4)), said)
    assert (len(dataset.train), len(dataset.validation)) == (4, 0)
    assert any("no validation" in text for text in said)


def test_rows_that_all_ask_the_same_cannot_be_split_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    rows = [{"prompt": "Write a line.", "completion": f"Line {i}."} for i in range(30)]
    dataset = load(write_rows(tmp_path / "rows.jsonl", rows), said)
    assert (len(dataset.train), len(dataset.validation)) == (30, 0)
    assert any("prompts that repeat" in text and "data.validation" in text for text in said)


def test_validation_may_be_none_or_a_file(tmp_path: Path) -> None:
    train, held_out = write_rows(tmp_path / "a.jsonl", pairs(50)), write_rows(tmp_path / "b.jsonl", pairs(7))
    assert load(train, validation="none").validation == ()
    dataset = load(train, validation=held_out)
    assert (len(dataset.train), len(dataset.validation), len(dataset.validation_records)) == (50, 7, 7)
    assert {example.origin.file for example in dataset.validation} == {held_out}
    with pytest.raises(NotFound):
        load(train, validation=str(tmp_path / "missing.jsonl"))


def test_several_files_follow_one_another_and_max_rows_takes_the_first(tmp_path: Path) -> None:
    files = tuple(write_rows(tmp_path / f"{name}.jsonl", pairs(3)) for name in "ab")
    dataset = load(files, validation="none")
    assert [(example.document, example.origin.file) for example in dataset.train] == [
        (i, files[i // 3]) for i in range(6)
    ]
    assert len(load(files, validation="none", max_rows=4).train) == 4


def test_the_hash_follows_the_rows_content_and_nothing_else(tmp_path: Path) -> None:
    def hash_of(name: str, rows: list[dict[str, Any]], **values: Any) -> str:
        return load(write_rows(tmp_path / name, rows), **values).sha256

    base = hash_of("a.jsonl", pairs(20))
    assert hash_of("b.jsonl", pairs(20)) == base
    assert hash_of("c.jsonl", pairs(20)[::-1]) != base
    assert hash_of("d.jsonl", [*pairs(19), {"prompt": "What is 19?", "completion": "It is 19!"}]) != base
    assert hash_of("e.jsonl", pairs(20), max_rows=19) != base


# ── too long ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[str, list[int]]:
    """Short rows, and two long ones at lines 3 and 5; their lengths in tokens."""
    rows = pairs(6)
    rows[2]["completion"] = "one two three four " * 5
    rows[4]["completion"] = "one two three four " * 9
    return write_rows(tmp_path / "mixed.jsonl", rows), length_of(rows, tmp_path)


def test_rows_that_are_too_long_are_refused_with_place_number_and_mend(mixed: tuple[str, list[int]]) -> None:
    file, lengths = mixed
    with pytest.raises(GateRefusal) as refused:
        load(file, max_length=lengths[0] + 4)
    assert (refused.value.file, refused.value.line) == (file, 3)
    assert f"{lengths[2]} tokens" in refused.value.found
    assert "2 of 6 rows" in refused.value.found
    assert f"data.max_length to {max(lengths)}" in refused.value.mend
    assert "truncate or drop" in refused.value.mend


def test_rows_of_exactly_the_allowed_length_are_taken(mixed: tuple[str, list[int]]) -> None:
    file, lengths = mixed
    assert len(load(file, max_length=max(lengths), validation="none").train) == 6


def test_rows_that_are_too_long_can_be_dropped_and_it_is_said(mixed: tuple[str, list[int]]) -> None:
    file, lengths = mixed
    said: list[str] = []
    dataset = load(file, said, max_length=lengths[0] + 4, too_long="drop", validation="none")
    assert [example.document for example in dataset.train] == [0, 1, 3, 5]
    assert len(dataset.train_records) == 4
    assert any("2 rows of 6" in text and "Left out" in text for text in said)


def test_rows_that_are_too_long_can_be_cut_and_the_loss_is_said(mixed: tuple[str, list[int]]) -> None:
    file, lengths = mixed
    allowed = lengths[0] + 4
    said: list[str] = []
    whole = load(file, validation="none").train
    cut = load(file, said, max_length=allowed, too_long="truncate", validation="none").train
    assert [example.num_tokens for example in cut] == [min(length, allowed) for length in lengths]
    for before, after in zip(whole, cut, strict=True):
        assert after.parts[0].tokens_T.tolist() == before.parts[0].tokens_T[:allowed].tolist()
        assert after.token_N.tolist() == before.token_N[before.source_N + 1 < allowed].tolist()
    lost = sum(max(0, length - allowed) for length in lengths)
    assert any("2 rows of 6" in text and f"{lost} tokens lost" in text for text in said)


@pytest.mark.parametrize("too_long", ["refuse", "drop", "truncate"])
def test_what_a_limit_loses_is_known_whatever_becomes_of_the_long_rows(
    mixed: tuple[str, list[int]], too_long: Literal["refuse", "drop", "truncate"]
) -> None:
    file, lengths = mixed
    allowed = lengths[0] + 4
    whole = load(file, validation="none").train
    if too_long == "refuse":
        with pytest.raises(GateRefusal) as refused:
            load(file, max_length=allowed, too_long=too_long, validation="none")
        found = refused.value.lengths
    else:
        found = load(file, max_length=allowed, too_long=too_long, validation="none").lengths
    assert found == RowLengths(
        limit=allowed,
        num_rows=6,
        num_long=2,
        num_tokens=sum(lengths),
        num_learned=sum(row.num_learned for row in whole),
        beyond=sum(max(0, length - allowed) for length in lengths),
        learned_beyond=sum(int((row.source_N + 1 >= allowed).sum()) for row in whole),
        longest=max(lengths),
    )


def test_a_row_whose_answer_is_cut_away_is_refused(tmp_path: Path) -> None:
    rows = [*pairs(2), {"prompt": "one two three four " * 9, "completion": "yes"}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(GateRefusal, match="answer is gone") as refused:
        load(file, max_length=length_of(rows, tmp_path)[0] + 4, too_long="truncate")
    assert refused.value.line == 3


def test_limits_hold_for_held_out_rows_too(tmp_path: Path, mixed: tuple[str, list[int]]) -> None:
    file, lengths = mixed
    with pytest.raises(GateRefusal) as refused:
        load(write_rows(tmp_path / "train.jsonl", pairs(3)), validation=file, max_length=lengths[0] + 4)
    assert refused.value.file == file


def test_a_template_of_the_recipe_reaches_the_renderer(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", pairs(3))
    dataset = load(file, chat_template=CHATML.replace("assistant", "helper"), validation="none")
    prompt = dataset.renderer.record_prompt(Completion("a", ""))
    assert prompt is not None
    assert dataset.renderer.tokenizer.decode(prompt).endswith("<|im_start|>helper\n")
    with pytest.raises(RecipeError):
        load(file, chat_template="{% for %}")
