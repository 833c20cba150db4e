"""Rows that hold no text to write: tags, choices, scores, similar texts, and classes in files without a header."""

from __future__ import annotations

from typing import Any

import pytest
from form_rows import fault_of, records_of, rows_of

from luthier.data.formats import recognise_any, to_records
from luthier.types import Choice, Gives, Labelled, Record, Scored, Similar, Tagged


def numbered(*cells: str) -> dict[str, Any]:
    return {f"column_{index}": cell for index, cell in enumerate(cells, start=1)}


WORDS = ["Ann", "met", "Bo", "Li"]

READ: list[tuple[dict[str, Any], Record, Gives]] = [
    # tags
    ({"tokens": ["Ann", "ran"], "tags": ["B-person", "O"]}, Tagged(("Ann", "ran"), ("B-person", "O")), "tags"),
    ({"tokens": ["Ann", "ran"], "ner_tags": [1, 0], "pos_tags": [4, 7]}, Tagged(("Ann", "ran"), ("1", "0")), "tags"),
    ({"words": ["Ann", "ran"], "labels": ["NOUN", "VERB"]}, Tagged(("Ann", "ran"), ("NOUN", "VERB")), "tags"),
    ({"tokens": '["Ann"]', "tags": '["S-person"]'}, Tagged(("Ann",), ("S-person",)), "tags"),
    # choices
    ({"question": "q", "choices": ["x", "y"], "answer": 1}, Choice("q", ("x", "y"), 1), "choices"),
    ({"question": "q", "options": ["x", "y"], "answer": "B"}, Choice("q", ("x", "y"), 1), "choices"),
    ({"question": "q", "options": ["x", "y"], "answer": "(b)"}, Choice("q", ("x", "y"), 1), "choices"),
    ({"question": "q", "options": ["x", "y"], "answer": "y"}, Choice("q", ("x", "y"), 1), "choices"),
    ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, Choice("q", ("x", "y"), 1), "choices"),
    ({"question": "q", "A": "x", "B": "y", "C": "z", "answer": "C"}, Choice("q", ("x", "y", "z"), 2), "choices"),
    ({"ctx": "She", "endings": ["ran", "sat"], "label": "0"}, Choice("She", ("ran", "sat"), 0), "choices"),
    ({"goal": "g", "sol1": "x", "sol2": "y", "label": 0}, Choice("g", ("x", "y"), 0), "choices"),
    (
        {"premise": "It fell.", "choice1": "x", "choice2": "y", "question": "cause", "label": 1, "idx": 3},
        Choice("It fell. What was the cause?", ("x", "y"), 1),
        "choices",
    ),
    (
        {"article": "Ann ran.", "question": "Who?", "options": ["Ann", "Bo"], "answer": "A"},
        Choice("Ann ran.\n\nWho?", ("Ann", "Bo"), 0),
        "choices",
    ),
    (
        {"Question": "Why?", "Best Answer": "So", "Correct Answers": "So; Thus", "Incorrect Answers": "No; Yes; No"},
        Choice("Why?", ("No", "So", "Yes"), 1),
        "choices",
    ),
    # scores
    ({"sentence1": "a", "sentence2": "b", "score": 4.5}, Scored("a", "b", 4.5), "scores"),
    ({"sentence_A": "a", "sentence_B": "b", "relatedness_score": "3"}, Scored("a", "b", 3.0), "scores"),
    ({"text": "a", "stars": 5}, Scored("a", None, 5.0), "scores"),
    ({"text": "a", "label": 0.25}, Scored("a", None, 0.25), "scores"),
    # similar texts
    ({"anchor": "a", "positive": "b"}, Similar("a", "b"), "similar"),
    ({"anchor": "a", "positive": "b", "negative": "c"}, Similar("a", "b", ("c",)), "similar"),
    ({"query": "a", "document": "b"}, Similar("a", "b"), "similar"),
    ({"anchor": "a", "positive": "b", "negative_1": "c", "negative_2": "d"}, Similar("a", "b", ("c", "d")), "similar"),
    # classes
    ({"word": "bank", "sentence1": "a", "sentence2": "b", "label": True}, Labelled("bank: a", "b", "true"), "labels"),
    ({"question": "q", "passage": "p", "answer": False}, Labelled("q", "p", "false"), "labels"),
    ({"QUESTION": "q", "CONTEXTS": ["a", "b"], "final_decision": "yes", "LABELS": ["x"]}, Labelled("q", "a\nb", "yes"), "labels"),
    ({"Class Index": 3, "Title": "a", "Description": "b"}, Labelled("a", "b", "3"), "labels"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "record", "gives"), READ)
def test_rows_become_what_their_columns_say(values: dict[str, Any], record: Record, gives: Gives) -> None:
    assert recognise_any(rows_of(values)).gives == gives
    assert records_of(values, takes=gives) == [record]


def test_every_positive_of_a_list_becomes_a_record() -> None:
    values = {"query": "a", "pos": ["b", "c"], "neg": ["d", "e"]}
    expected = [Similar("a", "b", ("d", "e")), Similar("a", "c", ("d", "e"))]
    assert records_of(values, takes="similar", form="similar") == expected


def test_answers_that_run_from_one_to_the_number_of_options_count_from_one() -> None:
    rows = [{"question": "q", "option1": "x", "option2": "y", "answer": answer} for answer in ("1", "2")]
    assert [record.answer for record in records_of(*rows, takes="choices")] == [0, 1]  # type: ignore[union-attr]
    assert "count from 1" in " ".join(to_records(rows_of(*rows), "auto", "choices").notes)
    from_zero = [{**row, "answer": answer} for row, answer in zip(rows, (0, 1), strict=True)]
    assert [record.answer for record in records_of(*from_zero, takes="choices")] == [0, 1]  # type: ignore[union-attr]


# ── tags in order ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tags", [["B-x", "I-x", "O", "B-y"], ["B-x", "B-x", "I-x", "O"], ["B-x", "I-x", "E-x", "S-y"]])
def test_tags_in_order_are_taken(tags: list[str]) -> None:
    assert records_of({"tokens": WORDS, "tags": tags}, takes="tags") == [Tagged(tuple(WORDS), tuple(tags))]


@pytest.mark.parametrize(
    ("tags", "index"),
    [
        (["O", "I-x", "O", "O"], 1),
        (["B-x", "I-y", "O", "O"], 1),
        (["I-x", "O", "O", "O"], 0),
        (["B-x", "E-x", "I-x", "O"], 2),
        (["B-x", "O", "O", "L-x"], 3),
    ],
)
def test_a_tag_that_goes_on_with_nothing_is_a_fault(tags: list[str], index: int) -> None:
    fault = fault_of({"tokens": WORDS, "tags": ["B-x", "I-x", "O", "O"]}, {"tokens": WORDS, "tags": tags}, "tags")
    assert fault.field == f"tags[{index}]"
    assert f"Write B-{tags[index][2:]}" in fault.mend


def test_where_entities_begin_with_i_no_order_is_asked_for() -> None:
    values = {"tokens": WORDS, "tags": ["I-x", "O", "I-y", "I-y"]}
    assert records_of(values, takes="tags") == [Tagged(tuple(WORDS), ("I-x", "O", "I-y", "I-y"))]
    assert "begin with I-" in to_records(rows_of(values), "auto", "tags").notes[0]


@pytest.mark.parametrize(
    ("tags", "taken"),
    [
        (["B-x,B-y", "I-y", "O", "O"], ("B-y", "I-y", "O", "O")),
        (["B-x,B-y", "O", "O", "O"], ("B-x", "O", "O", "O")),
        (["B-x,B-y", "I-x,I-y", "I-y", "O"], ("B-y", "I-y", "I-y", "O")),
        (["B-y", "B-x,I-y", "O", "O"], ("B-y", "I-y", "O", "O")),
    ],
)
def test_of_several_tags_for_a_word_the_one_with_the_longest_entity_is_taken(
    tags: list[str], taken: tuple[str, ...]
) -> None:
    assert records_of({"tokens": WORDS, "tags": tags}, takes="tags") == [Tagged(tuple(WORDS), taken)]


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────

TAGS = {"tokens": ["Ann", "ran"], "tags": ["B-x", "O"]}
CHOICES = {"question": "q", "choices": ["x", "y"], "answer": 0}
TRUTHFUL = {"Question": "Why?", "Best Answer": "So", "Incorrect Answers": "No; Yes"}
SCORES = {"text": "a", "score": 0.5}
SIMILAR = {"anchor": "a", "positive": "b", "negative": "c"}

BROKEN: list[tuple[Gives, dict[str, Any], dict[str, Any], str, str]] = [
    ("tags", TAGS, {"tokens": ["Ann"], "tags": ["O", "O"]}, "tags", "1 words and 2 tags"),
    ("tags", TAGS, {"tokens": [], "tags": []}, "tokens", "empty"),
    ("tags", TAGS, {"tokens": ["Ann", " "], "tags": ["O", "O"]}, "tokens[1]", "the word is empty"),
    ("tags", TAGS, {"tokens": ["Ann", "ran"], "tags": ["O", ""]}, "tags[1]", "found nothing"),
    ("tags", TAGS, {"tokens": ["Ann", "ran"], "tags": ["O", 0.5]}, "tags[1]", "found a number"),
    ("tags", TAGS, {"tokens": ["Ann", "ran"]}, "tags", "missing"),
    ("choices", CHOICES, {**CHOICES, "answer": 2}, "answer", "none of the 2 options"),
    ("choices", CHOICES, {**CHOICES, "answer": -1}, "answer", "-1 is none of"),
    ("choices", CHOICES, {**CHOICES, "answer": "z"}, "answer", "'z' is none of"),
    ("choices", CHOICES, {**CHOICES, "answer": None}, "answer", "null is none of"),
    ("choices", CHOICES, {**CHOICES, "choices": ["x"]}, "choices", "fewer than two"),
    ("choices", CHOICES, {**CHOICES, "choices": ["x", "x"]}, "choices", "'x' is there twice"),
    ("choices", CHOICES, {**CHOICES, "choices": ["x", ""]}, "choices[1]", "the option is empty"),
    ("choices", CHOICES, {**CHOICES, "question": ""}, "question", "the question is empty"),
    ("choices", TRUTHFUL, {**TRUTHFUL, "Incorrect Answers": "No; So"}, "Incorrect Answers", "among the wrong ones"),
    ("choices", TRUTHFUL, {**TRUTHFUL, "Incorrect Answers": "; "}, "Incorrect Answers", "no wrong answer"),
    ("scores", SCORES, {"text": "a", "score": "high"}, "score", "found 'high'"),
    ("scores", SCORES, {"text": "a", "score": float("inf")}, "score", "found inf"),
    ("scores", SCORES, {"text": "a", "score": True}, "score", "true or false"),
    ("scores", SCORES, {"text": "a"}, "score", "missing"),
    ("scores", SCORES, {"text": "", "score": 1}, "text", "the text is empty"),
    ("similar", SIMILAR, {"anchor": "", "positive": "b"}, "anchor", "the anchor is empty"),
    ("similar", SIMILAR, {"anchor": "a", "positive": "b", "negative": "b"}, "positive", "like the anchor and unlike"),
    ("similar", SIMILAR, {"anchor": "a", "positive": []}, "positive", "the list is empty"),
    ("similar", SIMILAR, {"anchor": "a", "positive": ["b", 3]}, "positive[1]", "found a number"),
]  # fmt: skip


@pytest.mark.parametrize(("gives", "well", "values", "field", "found"), BROKEN)
def test_rows_at_fault_name_the_field(
    gives: Gives, well: dict[str, Any], values: dict[str, Any], field: str, found: str
) -> None:
    fault = fault_of(well, values, gives)
    assert fault.field == field
    assert found in fault.found
    assert fault.mend


# ── classes without a header, and several that may be the class ─────────────────────────────────────────────────────


def test_without_a_header_the_column_of_few_and_short_values_is_the_class() -> None:
    after = [numbered(f"Sentence number {index} of all.", str(index % 2)) for index in range(6)]
    assert records_of(*after, takes="labels")[1] == Labelled("Sentence number 1 of all.", None, "1")
    before = [numbered("34"[index % 2], f"Title {index}", f"What happened {index}") for index in range(6)]
    assert records_of(*before, takes="labels")[0] == Labelled("Title 0", "What happened 0", "3")
    assert "few and short values" in recognise_any(rows_of(*before)).reason


def test_without_a_header_a_rationale_does_not_stand_beside_the_question_whose_class_it_tells() -> None:
    rows = [
        numbered(f"Is {index} even?", ("yes", "no")[index % 2], f"It is {index}, and so we see.") for index in range(6)
    ]
    assert recognise_any(rows_of(*rows))[:2] == ("rationale", "text")
    assert records_of(*rows, takes="labels")[0] == Labelled("Is 0 even?", None, "yes")


def test_of_two_columns_of_classes_the_one_that_the_other_only_groups_is_taken() -> None:
    kinds = [("cancel", "order"), ("track", "order"), ("pay", "money"), ("cancel", "order")]
    rows = [{"utterance": f"Words {i}", "intent": fine, "category": coarse} for i, (fine, coarse) in enumerate(kinds)]
    found = to_records(rows_of(*rows), "auto", "labels")
    assert [record.label for record, _ in found.records] == ["cancel", "track", "pay", "cancel"]  # type: ignore[union-attr]
    assert any("category may be the class too" in note for note in found.notes)
