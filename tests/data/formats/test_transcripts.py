"""Conversations in one string: guanaco's and hh-rlhf's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from form_rows import fault_of, records_of, rows_of, said, shared_rows

from luthier.data.formats import faults, to_records
from luthier.errors import DataError
from luthier.types import Completion, Conversation, Preference

GUANACO = {"text": "### Human: Hi### Assistant: Hello.\n### Human: And?\n### Assistant: Bye."}


def test_marks_of_human_and_assistant_become_messages() -> None:
    (record,) = records_of(GUANACO, form="guanaco")
    assert isinstance(record, Conversation)
    assert said(record.messages) == [
        ("user", "Hi", None),
        ("assistant", "Hello.", None),
        ("user", "And?", None),
        ("assistant", "Bye.", None),
    ]


def test_what_stands_before_the_first_mark_is_the_system_text_and_an_unanswered_question_is_left_off() -> None:
    text = "Be kind. ### Human: Hi ### Assistant: Hello. ### Human: And?"
    found = to_records(rows_of({"text": text}, GUANACO), "auto")
    record = found.records[0][0]
    assert isinstance(record, Conversation)
    assert [message.role for message in record.messages] == ["system", "user", "assistant"]
    assert found.notes == ("1 rows end with a question that nothing answers, which is left off.",)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("### Human: Hi", "no answer"),
        ("### Human: Hi ### Assistant: ", "the answer is empty: turn 2"),
        ("### Human: ### Assistant: x", "the human's turn is empty: turn 1"),
        ("", "the text is empty"),
    ],
)
def test_strings_that_are_no_conversation_are_faults_of_their_column(text: str, found: str) -> None:
    fault = fault_of(GUANACO, {"text": text})
    assert fault.field == "text"
    assert found in fault.found


def test_a_text_that_only_speaks_of_the_marks_is_plain_text() -> None:
    assert to_records(rows_of({"text": "Write ### Assistant: before each answer."}), "auto").name == "text"


# ── hh-rlhf ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def transcript(*turns: str) -> str:
    marks = ("Human", "Assistant")
    return "".join(f"\n\n{marks[index % 2]}: {turn}" for index, turn in enumerate(turns))


HH = {"chosen": transcript("Hi", "Hello", "Help", "Sure"), "rejected": transcript("Hi", "Hello", "Help", "No")}


def test_shared_turns_are_the_prompt_and_the_answers_that_differ_are_compared() -> None:
    (record,) = records_of(HH, takes="preferences", form="hh-rlhf")
    assert isinstance(record, Preference)
    asked = [("user", "Hi", None), ("assistant", "Hello", False), ("user", "Help", None)]
    assert isinstance(record.chosen, Conversation)
    assert isinstance(record.rejected, Conversation)
    assert said(record.chosen.messages) == [*asked, ("assistant", "Sure", None)]
    assert said(record.rejected.messages) == [*asked, ("assistant", "No", None)]


def test_where_sft_names_the_form_the_preferred_answer_is_learned_after_the_turns_that_both_share() -> None:
    found = to_records(rows_of(HH), "hh-rlhf", "text")
    ((record, _),) = found.records
    assert isinstance(record, Conversation)
    asked = [("user", "Hi", None), ("assistant", "Hello", False), ("user", "Help", None)]
    assert said(record.messages) == [*asked, ("assistant", "Sure", None)]
    assert "the other left out" in found.notes[0]


@pytest.mark.parametrize(("probability", "learned"), [(None, "Yes"), (0.8, "Yes"), (0.5, None), (0.2, "No")])
def test_of_pairs_that_were_voted_on_the_better_answer_is_learned_and_of_a_tie_neither(
    probability: float | None, learned: str | None
) -> None:
    pair = {"prompt": "Well?", "chosen": "Yes", "rejected": "No", "probability": probability}
    other = {"prompt": "And?", "chosen": "So", "rejected": "Not", "probability": 1.0}
    found = to_records(rows_of(pair, other), "preferences", "text")
    answers = [record.completion for record, _ in found.records if isinstance(record, Completion)]
    assert answers == ([] if learned is None else [learned]) + ["So"]


def test_where_nobody_names_the_form_sft_does_not_leave_out_half_of_a_pair() -> None:
    with pytest.raises(DataError) as caught:
        to_records(rows_of(HH), "auto", "text")
    assert "preference pairs" in caught.value.found
    assert "data.format: preferences, or hh-rlhf" in caught.value.mend


def test_where_the_two_part_earlier_all_turns_after_that_are_compared() -> None:
    (record,) = records_of(
        {"chosen": transcript("Hi", "Hello", "Help", "Sure"), "rejected": transcript("Hi", "Go")}, takes="preferences"
    )
    assert isinstance(record, Preference)
    assert isinstance(record.chosen, Conversation)
    assert [message.learn for message in record.chosen.messages] == [None, None, None, None]


@pytest.mark.parametrize(
    ("values", "field", "found"),
    [
        ({**HH, "rejected": HH["chosen"]}, "rejected", "the same"),
        ({**HH, "rejected": transcript("Other", "No")}, "chosen", "does not go on with an answer"),
        ({**HH, "rejected": transcript("Hi", "Hello", "Help")}, "rejected", "ends with a message of the user"),
        ({**HH, "chosen": transcript("Hi", "")}, "chosen", "the answer is empty: turn 2"),
        ({"chosen": HH["chosen"]}, "rejected", "missing"),
    ],
)
def test_pairs_that_cannot_be_compared_are_faults(values: dict[str, Any], field: str, found: str) -> None:
    fault = fault_of(HH, values, "preferences")
    assert (fault.field if fault.field in ("chosen", "rejected") else fault.field.partition("[")[0]) == field  # type: ignore[union-attr]
    assert found in fault.found


def test_real_pairs_are_their_transcripts_again(shared_data: Path) -> None:
    rows = shared_rows(shared_data / "hh_rlhf_harmless" / "harmless_base_test.jsonl.gz")
    at_fault = {fault.line for fault in faults(rows, "auto", "preferences")}
    well = [row for row in rows if row.origin.line not in at_fault]
    assert len(rows) - len(well) == 4  # their answers are empty
    names = {"user": "Human", "assistant": "Assistant"}
    for row, (record, _) in zip(well, to_records(well, "auto", "preferences").records, strict=True):
        assert isinstance(record, Preference)
        for column, side in (("chosen", record.chosen), ("rejected", record.rejected)):
            assert isinstance(side, Conversation)
            written = "".join(f"\n\n{names[message.role]}: {message.content}" for message in side.messages)
            given = re.sub(r"\s*\n\n\s*(Human|Assistant):\s*", r"\n\n\1: ", row.values[column]).rstrip()
            assert written == given
