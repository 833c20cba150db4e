"""Rows of one task whose answer is written: rationales, summaries, SQL, questions about a text, facts, fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from form_rows import fault_of, records_of, rows_of, said, shared_rows
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.formats import recognise_any, to_records
from luthier.data.formats.rationale import final_answer
from luthier.data.formats.summary import references
from luthier.data.settings import Wishes
from luthier.errors import DataError
from luthier.types import Completion, Conversation

LEFT_OUT = Wishes(rationale="leave_out")
SQUAD = {"paragraphs": [{"context": "Ann built it.", "qas": [{"question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}]}]}  # fmt: skip
WIKISQL = {"text": "table: t\ncolumns: A, B\nQ: which A:\nA: SELECT A FROM t"}

READ: list[tuple[str, dict[str, Any], Completion]] = [
    (
        "rationale",
        {"question": "2+3?", "answer": "5", "rationale": "Two and three.\n"},
        Completion("2+3?\n", "Two and three.\n#### 5"),
    ),
    ("rationale", {"question": "2+3?", "answer": "It is\n#### 5"}, Completion("2+3?\n", "It is\n#### 5")),
    ("summary", {"document": "A long day. ", "summary": "Day."}, Completion("A long day.\n", "Day.")),
    ("summary", {"article": "A long day.", "highlights": "Day."}, Completion("A long day.\n", "Day.")),
    ("summary", {"text": "A long day.", "summary": "Day."}, Completion("A long day.\n", "Day.")),
    (
        "summary",
        {"source": ["One.", "Two."], "target": ["First.", "Other.", "First."]},
        Completion("One. Two.\n", "First.", ("Other.",)),
    ),
    (
        "sql",
        {"question": "Who?", "context": "CREATE TABLE p (n TEXT)", "answer": "SELECT n FROM p"},
        Completion("CREATE TABLE p (n TEXT)\n\nWho?\n", "SELECT n FROM p"),
    ),
    ("sql", {"question": "Who?", "schema": "p(n)", "sql": "select n"}, Completion("p(n)\n\nWho?\n", "select n")),
    ("sql", {"question": "Who?", "query": "SELECT n FROM p", "db_id": "x"}, Completion("Who?\n", "SELECT n FROM p")),
    ("sql", WIKISQL, Completion("table: t\ncolumns: A, B\nQ: which A:\nA:", " SELECT A FROM t")),
    ("qa", {"context": "Ann ran.", "question": "Who?", "answer": "Ann"}, Completion("Ann ran.\n\nWho?\n", "Ann")),
    ("qa", {"instruction": "Greet.", "context": "", "response": "Hi", "category": "x"}, Completion("Greet.\n", "Hi")),
    (
        "qa",
        {"context": "Ann ran.", "question": "Who?", "answers": {"text": ["Ann"], "answer_start": [0]}},
        Completion("Ann ran.\n\nWho?\n", "Ann"),
    ),
    (
        "qa",
        {"context": "Ann ran.", "question": "Who?", "answers": {"text": [], "answer_start": []}},
        Completion("Ann ran.\n\nWho?\n", "unanswerable"),
    ),
    ("qa", {"passage": "Ann ran.", "question": "Did she?", "label": True}, Completion("Ann ran.\n\nDid she?\n", "yes")),
    (
        "qa",
        {"QUESTION": "Did she?", "CONTEXTS": ["Ann ran.", "Far."], "final_decision": "maybe"},
        Completion("Ann ran.\nFar.\n\nDid she?\n", "maybe"),
    ),
    ("data-to-text", {"mr": "name[Eagle]", "ref": "The Eagle."}, Completion("name[Eagle]\n", "The Eagle.")),
    (
        "fields",
        {"task": "t", "question": "Right?", "fields": {"text": "A clause.", "party": "", "year": 3}, "answer": "No"},
        Completion("Right?\n\ntext: A clause.\nyear: 3\n", "No"),
    ),
    ("fields", {"question": "", "fields": {"text": "x"}, "answer": "No"}, Completion("text: x\n", "No")),
    (
        "completion",
        {"prompt": "def f():\n", "canonical_solution": "    pass\n"},
        Completion("def f():\n", "    pass\n"),
    ),
    ("completion", {"text": "A complaint of Ann.", "answer": "Ann B"}, Completion("A complaint of Ann.", "Ann B")),
]


@pytest.mark.parametrize(("form", "values", "record"), READ)
def test_rows_become_a_prompt_and_what_is_learned(form: str, values: dict[str, Any], record: Completion) -> None:
    assert records_of(values, form=form) == [record]


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ({"question": "2+3?", "answer": "5", "rationale": "Two and three."}, "5"),
        ({"question": "2+3?", "answer": "It is\n#### 1,005"}, "1,005"),
    ],
)
def test_a_rationale_left_out_leaves_the_answer_alone(values: dict[str, Any], answer: str) -> None:
    assert records_of(values, form="rationale", wishes=LEFT_OUT) == [Completion("2+3?\n", answer)]


def test_every_instance_of_an_instruction_becomes_a_conversation() -> None:
    instances = [{"input": "2+3", "output": "5"}, {"input": "", "output": "None"}]
    records = records_of({"instruction": "Add.", "instances": instances}, form="alpaca")
    assert [said(record.messages) for record in records if isinstance(record, Conversation)] == [
        [("user", "Add.\n\n2+3", None), ("assistant", "5", None)],
        [("user", "Add.", None), ("assistant", "None", None)],
    ]


def test_every_question_of_an_article_becomes_a_record() -> None:
    more = {"question": "What?", "answers": [], "is_impossible": True}
    article = {
        "title": "x",
        "paragraphs": [{**SQUAD["paragraphs"][0], "qas": [*SQUAD["paragraphs"][0]["qas"], more]}] * 2,
    }
    assert records_of(article, form="qa") == [
        Completion("Ann built it.\n\nWho?\n", "Ann"),
        Completion("Ann built it.\n\nWhat?\n", "unanswerable"),
    ] * 2  # fmt: skip


def test_all_summaries_are_references_and_the_first_is_learned() -> None:
    values = {"source": ["One."], "target": ["First.", " Other. "]}
    assert references(rows_of(values)[0], "target") == ("First.", "Other.")
    assert "1 rows have several summaries" in to_records(rows_of(values, {**values, "target": ["A."]}), "auto").notes[0]


# ── the answer at the end ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So it is 4.\n#### 18", "18"),
        ("#### 3\nNo, wait.\n#### $1,250", "1250"),
        ("####  -7.5 ", "-7.5"),
        ("#### 1,2,3", "1,2,3"),
        ("#### 20%", "20"),
        ("Thus the answer is (B).", "(B)"),
        ("The answer is 3.14. That is all.", "3.14"),
        ("Answer: yes", "yes"),
        (r"so $x = \boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        ("The answer is 3.\n#### 4", "4"),
        ("There are 5 apples.", None),
        ("####", None),
        ("", None),
    ],
)
def test_the_final_answer_is_what_a_text_marks_as_such(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), min_size=1).map(str.strip).filter(bool),
    st.booleans(),
)
def test_the_final_answer_of_what_is_learned_is_the_answer_of_the_row(answer: str, learns: bool) -> None:
    values = {"question": "q", "answer": answer, "rationale": "As one sees."}
    (record,) = records_of(values, wishes=Wishes(rationale="learn" if learns else "leave_out"))
    assert isinstance(record, Completion)
    found = final_answer(record.completion) if learns else record.completion
    assert found in (answer, (final_answer(f"#### {answer}")))


def test_places_count_from_the_text_as_it_is_written_also_where_it_begins_with_a_space():
    values = {"context": " Ann ran.", "question": "Who?", "answers": {"text": ["Ann"], "answer_start": [1]}}
    (record,) = records_of(values)
    assert isinstance(record, Completion)
    assert (record.prompt, record.completion) == ("Ann ran.\n\nWho?\n", "Ann")


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────

GSM = {"question": "2+3?", "answer": "It is\n#### 5"}
QA = {"context": "Ann ran.", "question": "Who?", "answer": "Ann"}
PLACED = {"context": "Ann ran.", "question": "Who?", "answers": {"text": ["Ann"], "answer_start": [0]}}
FIELDS = {"question": "Right?", "fields": {"text": "x"}, "answer": "No"}
SEVERAL = {"source": ["One."], "target": ["First."]}
INSTANCES = {"instruction": "Add.", "instances": [{"input": "2+3", "output": "5"}]}


def article(**answer: Any) -> dict[str, Any]:
    return {"paragraphs": [{"context": "Ann ran.", "qas": [{"question": "Who?", "answers": [answer]}]}]}


BROKEN: list[tuple[dict[str, Any], dict[str, Any], str, str, str]] = [
    (GSM, {"question": "2+3?", "answer": "5"}, "answer", "begins with ####", "#### 42"),
    (GSM, {"question": "", "answer": "#### 5"}, "question", "the question is empty", "Fill"),
    ({**GSM, "rationale": "So."}, {**GSM, "rationale": ""}, "rationale", "the rationale is empty", "Fill"),
    (SEVERAL, {"source": ["One."], "target": []}, "target", "there is no summary", "Add one"),
    (SEVERAL, {"source": ["One.", 2], "target": ["x"]}, "source[1]", "found a number", "string"),
    (SEVERAL, {"source": [], "target": ["x"]}, "source", "the text is empty", "Fill"),
    (WIKISQL, {"text": "table: t\nQ: x\nA: SELECT"}, "text", "not of the lines", "four lines"),
    (WIKISQL, {"text": "table: t\ncolumns: A\nQ: x\nA: "}, "text", "the query after A: is empty", "Fill"),
    (QA, {**QA, "answer": ""}, "answer", "the answer is empty", "Fill"),
    (QA, {**QA, "question": " "}, "question", "the question is empty", "Fill"),
    (PLACED, {**PLACED, "answers": {"text": ["Ann"], "answer_start": [1]}}, "answers.answer_start[0]", "at 1", "at 0"),
    (PLACED, {**PLACED, "answers": {"text": ["Bo"], "answer_start": [0]}}, "answers.answer_start[0]", "'Bo'", "Copy"),
    (PLACED, {**PLACED, "answers": {"text": ["Ann"], "answer_start": []}}, "answers.answer_start", "0 places", "one place"),
    (PLACED, {**PLACED, "answers": {"text": ["Ann"], "answer_start": [-8]}}, "answers.answer_start[0]", "-8", "at 0"),
    (SQUAD, article(text="ran", answer_start=0), "paragraphs[0].qas[0].answers[0].answer_start", "at 0", "at 4"),
    (SQUAD, article(text="", answer_start=0), "paragraphs[0].qas[0].answers[0].text", "empty", "Fill"),
    (SQUAD, article(text="Ann", answer_start="0"), "paragraphs[0].qas[0].answers[0].answer_start", "text", "number"),
    (SQUAD, {"paragraphs": [{"context": "Ann ran.", "qas": [{"question": "Who?", "answers": []}]}]}, "paragraphs[0].qas[0].answers", "no answer", "has none"),
    (SQUAD, {"paragraphs": []}, "paragraphs", "no question", "Leave"),
    ({"mr": "name[x]", "ref": "x"}, {"mr": "", "ref": "x"}, "mr", "facts is empty", "Fill"),
    (FIELDS, {**FIELDS, "fields": {"text": ["x"]}}, "fields.text", "found a list", "string"),
    (FIELDS, {**FIELDS, "fields": {"text": ""}}, "fields", "all fields are empty", "Fill"),
    (INSTANCES, {"instruction": "Add.", "instances": []}, "instances", "empty", "at least one"),
    (INSTANCES, {"instruction": "Add.", "instances": [{"input": "2", "output": ""}]}, "instances[0].output", "empty", "Fill"),
    (INSTANCES, {"instruction": "Add.", "instances": [{"input": "2"}]}, "instances[0].output", "missing", "Add"),
    (INSTANCES, {"instruction": "Add.", "instances": ["x"]}, "instances[0]", "found text", '"output"'),
]  # fmt: skip


@pytest.mark.parametrize(("well", "values", "field", "found", "mend"), BROKEN)
def test_rows_at_fault_name_the_field_and_the_mend(
    well: dict[str, Any], values: dict[str, Any], field: str, found: str, mend: str
) -> None:
    fault = fault_of(well, values)
    assert fault.field == field
    assert found in fault.found
    assert mend in fault.mend


# ── real files ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_real_single_string_sql_is_its_prompt_and_its_query_again(shared_data: Path) -> None:
    rows = shared_rows(shared_data / "wikisql_text" / "valid.jsonl")
    for row, (record, _) in zip(rows, to_records(rows, "auto").records, strict=True):
        assert isinstance(record, Completion)
        assert record.prompt + record.completion == row.values["text"]
        assert record.prompt.endswith("\nA:")
        assert record.completion.startswith(" SELECT ")


def test_real_questions_are_answered_by_words_of_their_text(shared_data: Path) -> None:
    rows = shared_rows(shared_data / "xquad_en_zh" / "xquad.zh.json")
    records = to_records(rows, "auto").records
    assert len(records) == 1190
    assert all(isinstance(record, Completion) and record.completion in record.prompt for record, _ in records)


def test_real_maths_gives_the_number_after_the_mark(shared_data: Path) -> None:
    rows = shared_rows(shared_data / "gsm8k" / "train_1500.jsonl")
    learned = to_records(rows, "auto").records
    alone = to_records(rows, "auto", wishes=LEFT_OUT).records
    for row, (record, _), (short, _) in zip(rows, learned, alone, strict=True):
        assert isinstance(record, Completion)
        assert isinstance(short, Completion)
        number = row.values["answer"].split("#### ")[1]
        assert short.completion == number
        assert final_answer(record.completion) == number.replace(",", "")


def test_documents_that_are_no_texts_are_not_joined_but_refused() -> None:
    values = {"question": "Who?", "documents": [{"id": 1, "body": "Ann ran."}], "answer": "Ann"}
    with pytest.raises(DataError, match="may rest on documents"):
        records_of(values)


def test_what_is_natural_for_questions_about_a_text_is_their_class_where_there_is_one() -> None:
    assert recognise_any(rows_of({"passage": "p", "question": "q", "label": True})).gives == "labels"
    assert recognise_any(rows_of(QA)).gives == "text"
