"""What rows are taken for where no objective asks: inline rows that could be several things, and every shared set."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from form_rows import rows_of, shared_rows
from hypothesis import given
from hypothesis import strategies as st
from shared_sets import REFUSED, TABLE

from luthier.data.formats import FORMS, faults, recognise_any, to_records
from luthier.errors import DataError

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}

NATURAL: list[tuple[dict[str, Any], str, str | None]] = [
    ({"text": "Nice film", "label": 1}, "classification", "classification"),
    ({"instruction": "Hi", "context": "", "response": "Hello", "category": "chat"}, "qa", "sft"),
    ({"question": "Hi", "answer": "Hello", "category": "chat"}, "completion", "sft"),
    ({"instruction": "Hi", "output": "a", "chosen": "b", "rejected": "c"}, "preferences", "dpo"),
    ({"prompt": "Hi", "completion": "a", "label": False}, "verdicts", "kto"),
    ({"messages": [USER, ANSWER], "category": "chat"}, "chat", "sft"),
    ({"sentence_A": "a", "sentence_B": "b", "relatedness_score": 3.5, "entailment_judgment": "NO"}, "classification", "classification"),
    ({"sentence1": "a", "sentence2": "b", "label": 3.5}, "scores", "regression"),
    ({"text": "a", "url": "b"}, "text", "sft"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "form", "objective"), NATURAL)
def test_rows_are_taken_for_what_they_most_naturally_are(values: dict[str, Any], form: str, objective: str) -> None:
    found = recognise_any(rows_of(values, values))
    assert (found.name, found.objective) == (form, objective)
    assert found.reason


def test_a_form_that_is_named_is_not_guessed() -> None:
    found = recognise_any(rows_of({"text": "Nice film", "label": 1}), "text")
    assert found[:4] == ("text", "text", "data.format says so", "sft")
    with pytest.raises(DataError, match=r"data\.format is tags, but the rows do not have that form") as caught:
        recognise_any(rows_of({"text": "Nice film"}), "tags")
    assert "tokens and tags" in caught.value.mend


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"messages": [USER, ANSWER], "images": ["a.png"]}, "images stands beside"),
        ({"prompt": "Hi", "completion": "Hello", "context": "There"}, "may rest on context"),
        ({"prompt": "Hi"}, "no answer to learn"),
        ({"question_id": 1, "turns": ["Hi"], "category": "x"}, "questions without answers, for evaluation"),
        ({"facts": 1, "says": "b", "more": "c"}, "fit no form"),
    ],
)
def test_rows_that_nothing_should_learn_from_are_refused(values: dict[str, Any], found: str) -> None:
    with pytest.raises(DataError) as caught:
        recognise_any(rows_of(values, values))
    assert found in caught.value.found
    assert caught.value.mend


# ── rows of any content ─────────────────────────────────────────────────────────────────────────────────────────────

KEYS = [
    "prompt",
    "replies",
    "text",
    "role",
    "chosen",
    "rejected",
    "messages",
    "label",
    "tokens",
    "tags",
    "question",
    "choices",
]
KEYS += [
    "answer",
    "rationale",
    "schema",
    "sql",
    "source",
    "target",
    "context",
    "answers",
    "paragraphs",
    "fields",
    "instances",
]
KEYS += [
    "instruction",
    "anchor",
    "positive",
    "negative",
    "score",
    "sentence1",
    "sentence2",
    "margin",
    "input",
    "mr",
    "ref",
]
KEYS += ["column_1", "column_2", "column_3", "preferred_output", "non_preferred_output", "conversations"]
INNER = [
    "text",
    "role",
    "replies",
    "rank",
    "content",
    "from",
    "value",
    "context",
    "qas",
    "answers",
    "answer_start",
    "messages",
]
INNER += ["question", "input", "output", "label"]
WORDS = [
    "",
    "prompter",
    "assistant",
    "user",
    "gpt",
    "### Human: a ### Assistant: b",
    "\n\nHuman: a\n\nAssistant: b",
    "B-x",
    "I-x",
]
WORDS += ["#### 5", "SELECT", "true", "1", "[1]", "a", "cause"]
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-1, 2), st.floats(), st.sampled_from(WORDS))
CONTENT = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=5)
)
ROWS = st.lists(st.dictionaries(st.sampled_from(KEYS), CONTENT, max_size=6), min_size=1, max_size=3)


@given(ROWS, st.sampled_from(FORMS))
def test_rows_of_any_content_become_records_or_are_refused_in_words(values: list[dict[str, Any]], form: Any) -> None:
    rows = rows_of(*values)
    for name in ("auto", form.NAME):
        for fault in faults(rows, name, form.GIVES):
            assert fault.found
            assert fault.mend
    with suppress(DataError):
        natural = recognise_any(rows)
        assert (natural.name, natural.gives) in [(form.NAME, form.GIVES) for form in FORMS]


# ── every shared set ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "form", "gives", "num_records", "num_faults"), TABLE, ids=[line[0] for line in TABLE])
def test_every_shared_set_is_recognised_without_an_option(
    name: str, form: str, gives: Any, num_records: int, num_faults: int, shared_data: Path
) -> None:
    rows = shared_rows(shared_data / name)
    found = recognise_any(rows)
    assert (found.name, found.gives) == (form, gives)
    at_fault = {fault.line for fault in faults(rows, "auto", gives)}
    well = [row for row in rows if row.origin.line not in at_fault]
    assert len(at_fault) == num_faults
    assert len(to_records(well, "auto", gives).records) == num_records


@pytest.mark.parametrize(("name", "reason"), REFUSED)
def test_sets_to_measure_models_with_are_refused_for_what_they_are(name: str, reason: str, shared_data: Path) -> None:
    with pytest.raises(DataError) as caught:
        recognise_any(shared_rows(shared_data / name))
    assert reason in caught.value.found


def test_the_table_has_every_shared_set(shared_data: Path) -> None:
    files = {str(path.relative_to(shared_data)) for path in shared_data.glob("*/*")}
    models = {name for name in files if name.startswith("stories260k_llama/")}
    assert {line[0] for line in (*TABLE, *REFUSED)} == files - models
