"""Rows of texts with classes: recognised, rendered as the tokenizer writes them, split, cut, and judged by the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import byte_level
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from luthier.data.dataset import Asked, Dataset, load_dataset
from luthier.data.formats import faults, to_records
from luthier.data.gate import check_gate
from luthier.data.marked import marked_text
from luthier.data.reading import Row
from luthier.data.rendering import Renderer
from luthier.data.settings import DataSettings
from luthier.data.split import prompt_key
from luthier.errors import DataError, GateRefusal
from luthier.objectives import Classification
from luthier.types import Labelled, Origin


def rows_of(*values: dict[str, Any]) -> list[Row]:
    return [Row(value, Origin("rows.jsonl", line)) for line, value in enumerate(values, start=1)]


def bert_like() -> PreTrainedTokenizerFast:
    """A tokenizer that writes <s> A </s> and <s> A </s> B </s>, the second text as type 1."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def dataset_of(
    folder: Path, rows: list[dict[str, Any]], objective: Classification | None = None, **data: Any
) -> Dataset:
    """The rows as a file, loaded for a classifier over an encoder."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = objective or Classification()
    return load_dataset(
        DataSettings(train=str(file), **{"validation": "none", **data}),
        bert_like(),
        asked.example,
        lambda text: None,
        asked=Asked(takes="labels"),
        of_labels=lambda labels: asked.settled(labels).example,
        pooled="first",
    )


# ── recognition ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "record"),
    [
        ({"text": "It broke.", "label": "angry"}, Labelled("It broke.", None, "angry")),
        ({"sentence": "It broke.", "label": 2, "idx": 7}, Labelled("It broke.", None, "2")),
        ({"text": "a", "text_pair": "b", "label": True}, Labelled("a", "b", "true")),
        ({"sentence1": "a", "sentence2": "b", "label": 0}, Labelled("a", "b", "0")),
        ({"premise": "a", "hypothesis": "b", "label": "no"}, Labelled("a", "b", "no")),
        ({"question": "a", "sentence": "b", "label": "no"}, Labelled("a", "b", "no")),
        ({"utterance": "Hi", "Intent": " greet "}, Labelled("Hi", None, "greet")),
        ({"text": "Hi", "label": 1, "label_text": "one", "category": "x"}, Labelled("Hi", None, "1")),
    ],
)
def test_texts_with_classes_are_recognised_by_their_columns(values: dict[str, Any], record: Labelled) -> None:
    found = to_records(rows_of(values), "auto", takes="labels")
    assert (found.name, found.records[0][0]) == ("classification", record)


@pytest.mark.parametrize(
    ("values", "field", "found", "mend"),
    [
        ({"text": " ", "label": "x"}, "text", "the text is empty", "Fill it in"),
        ({"text": "Hi", "label": ""}, "label", "the label is empty", "Fill it in"),
        ({"text": "Hi", "label": None}, "label", "null", "leave this row out"),
        ({"text": "Hi", "label": 0.5}, "label", "a number", "whole number"),
        ({"text": "Hi", "label": ["a"]}, "label", "a list", "leave this row out"),
        ({"text": "Hi"}, "label", "'label' is missing", "Add 'label'"),
        ({"text": 3, "label": "x"}, "text", "expected text", "string"),
    ],
)
def test_rows_at_fault_name_the_line_the_field_and_the_mend(
    values: dict[str, Any], field: str, found: str, mend: str
) -> None:
    well = {"text": "Hi", "label": "x"}
    (fault,) = faults(rows_of(well, well, values, well), "auto", takes="labels")
    assert (fault.file, fault.line, fault.field) == ("rows.jsonl", 3, field)
    assert found in fault.found
    assert mend in fault.mend


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "a", "completion": "b"},
        {"title": "a", "body": "b", "label": 1},
        {"text": "a", "intent": "b", "class": "c"},
    ],
)
def test_rows_whose_text_or_class_cannot_be_told_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no texts with classes") as caught:
        to_records(rows_of(values), "auto", takes="labels")
    assert "Rename the columns to text" in caught.value.mend


def test_rows_with_labels_are_sent_to_the_objective_that_takes_them() -> None:
    with pytest.raises(DataError, match="label stands beside the text") as caught:
        to_records(rows_of({"text": "Hi", "label": 1}), "auto")
    assert "objective.kind to classification" in caught.value.mend


# ── rendering ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_text_and_a_pair_are_written_with_the_tokenizers_own_special_tokens() -> None:
    tokenizer = bert_like()
    renderer = Renderer(tokenizer, None, pooled="first")
    one = renderer.render(Labelled("The sky", None, "x"))
    assert tokenizer.decode(one.tokens_T) == "<s>The sky</s>"
    assert (one.label, one.types_T, one.num_closing, one.pooled) == ("x", None, 1, "first")
    two = renderer.render(Labelled("The sky", "is blue", "x"))
    assert tokenizer.decode(two.tokens_T) == "<s>The sky</s>is blue</s>"
    assert two.types_T is not None
    assert tokenizer.decode(two.tokens_T[two.types_T == 1]) == "is blue</s>"
    assert not one.weight_T.any()


def test_a_tokenizer_that_would_only_join_a_pair_gets_a_line_break_between() -> None:
    tokenizer = byte_level()
    rendered = Renderer(tokenizer, None).render(Labelled("The sky", "is blue", "x"))
    assert tokenizer.decode(rendered.tokens_T) == "The sky\nis blue"
    assert (rendered.types_T, rendered.num_closing, rendered.pooled) == (None, 0, "last")


def test_a_row_that_is_cut_keeps_what_closes_it_and_never_loses_its_second_text(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten"
    rows = [{"text": long, "label": "a"}, {"text": "six", "label": "b"}]
    dataset = dataset_of(tmp_path, rows, max_length=8, too_long="truncate")
    cut = dataset.train[0].parts[0].tokens_T
    assert len(cut) == 8
    assert (cut[0], cut[-1]) == (0, 1)
    pairs = [{"text": "one", "text_pair": long, "label": "a"}, {"text": "six", "text_pair": "one", "label": "b"}]
    kept = dataset_of(tmp_path, pairs, max_length=8, too_long="truncate").train[0]
    assert kept.types_P is not None
    assert len(kept.types_P) == 8
    pairs[1] = {"text": long, "text_pair": "one", "label": "b"}
    with pytest.raises(GateRefusal, match="second text is gone") as caught:
        dataset_of(tmp_path, pairs, max_length=8, too_long="truncate")
    assert (caught.value.line, "data.max_length" in caught.value.mend) == (2, True)


# ── classes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_classes_are_the_labels_of_the_training_rows_sorted(tmp_path: Path) -> None:
    names = dataset_of(tmp_path, [{"text": "a", "label": label} for label in ("no", "yes", "maybe", "no")])
    assert names.labels == ("maybe", "no", "yes")
    assert [int(example.token_N[0]) for example in names.train] == [1, 2, 0, 1]
    assert [example.source_N.tolist() for example in names.train] == [[0]] * 4
    numbers = dataset_of(tmp_path, [{"text": "a", "label": label} for label in (10, 2, 0)])
    assert numbers.labels == ("0", "2", "10")


def test_a_label_outside_the_classes_is_refused_at_its_line(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": label} for label in ("no", "yes", "perhaps")]
    with pytest.raises(DataError, match="'perhaps' is none of the classes no, yes") as caught:
        dataset_of(tmp_path, rows, Classification(classes=("no", "yes")))
    assert (caught.value.line, caught.value.field) == (3, "label")
    assert "objective.classes" in caught.value.mend


def test_a_held_out_row_of_a_class_that_training_lacks_is_refused_at_its_line(tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text('{"text": "a", "label": "new"}\n')
    rows = [{"text": "a", "label": label} for label in ("no", "yes")]
    with pytest.raises(DataError, match="'new' is none of") as caught:
        dataset_of(tmp_path, rows, validation=str(held_out))
    assert (caught.value.file, caught.value.line) == (str(held_out), 1)


def test_fewer_than_two_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GateRefusal, match="All rows have the label 'no'") as caught:
        dataset_of(tmp_path, [{"text": "a", "label": "no"}] * 3)
    assert (caught.value.line, "two classes" in caught.value.mend) == (1, True)


# ── split and gate ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_are_held_out_by_their_texts_whatever_their_labels() -> None:
    assert prompt_key(Labelled("a", "b", "x")) == prompt_key(Labelled("a", "b", "y"))
    assert len({prompt_key(record) for record in (Labelled("a", "b", "x"), Labelled("ab", None, "x"))}) == 2


def test_the_gate_shows_texts_with_their_classes_and_counts_these(tmp_path: Path) -> None:
    rows = [{"text": "The sky", "label": "no"}, {"text": "blue", "label": "yes"}, {"text": "one", "label": "yes"}]
    report = check_gate(dataset_of(tmp_path, rows), 10_000)
    assert marked_text(report.rows[0]) == "<s>The sky</s> → ⟦no⟧"
    assert report.classes == (("yes", 2), ("no", 1))
    assert report.num_learned == 3


def test_the_gate_notes_a_class_that_only_rows_held_out_have(tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text('{"text": "a", "label": "third"}\n')
    rows = [{"text": "a", "label": label} for label in ("no", "yes")]
    dataset = dataset_of(tmp_path, rows, Classification(classes=("no", "yes", "third")), validation=str(held_out))
    assert any("No training row has the label third" in note for note in check_gate(dataset).notes)


def test_targets_move_behind_virtual_tokens_with_the_kinds_of_tokens(tmp_path: Path) -> None:
    from luthier.data.placeholders import with_placeholders

    rows = [{"text": "The sky", "text_pair": "is blue", "label": label} for label in ("no", "yes")]
    example = dataset_of(tmp_path, rows).train[0]
    placed = with_placeholders(example, 3)
    assert placed.source_N.tolist() == [3]
    assert placed.types_P is not None
    assert example.types_P is not None
    assert placed.types_P.tolist() == [0, 0, 0, *example.types_P.tolist()]
    assert np.array_equal(placed.parts[0].tokens_T[3:], example.parts[0].tokens_T)
