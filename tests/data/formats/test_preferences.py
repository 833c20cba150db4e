"""Pairs of answers and single answers with a verdict, in all the ways in which tools write them."""

from __future__ import annotations

from typing import Any

import pytest
from form_rows import fault_of, records_of, rows_of

from luthier.data.formats import recognise_any
from luthier.types import Answered, Completion, Conversation, Message, Preference, Verdict

USER = {"role": "user", "content": "Hi"}
OTHER = {"role": "user", "content": "Ho"}
GOOD = {"role": "assistant", "content": "Hello"}
BAD = {"role": "assistant", "content": "Go"}
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now"}}


def asked(answer: str, *before: Message, tools: tuple[dict[str, Any], ...] = ()) -> Conversation:
    return Conversation((*before, Message("user", "Hi"), Message("assistant", answer)), tools)


TEXTS = Completion("Hi", "Hello"), Completion("Hi", "Go")
CHATS = asked("Hello"), asked("Go")

WAYS: list[tuple[str, dict[str, Any], tuple[Answered, Answered]]] = [
    ("texts", {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}, TEXTS),
    ("question", {"question": "Hi", "response_j": "Hello", "response_k": "Go"}, TEXTS),
    (
        "instruction",
        {"instruction": "Hi", "input": "there", "chosen": "Hello", "rejected": "Go"},
        (Completion("Hi\n\nthere", "Hello"), Completion("Hi\n\nthere", "Go")),
    ),
    ("empty input", {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "Go"}, TEXTS),
    (
        "texts that begin alike",
        {"chosen": "The sky is blue.", "rejected": "The sky is blond."},
        (Completion("The sky is ", "blue."), Completion("The sky is ", "blond.")),
    ),
    ("messages", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, CHATS),
    ("messages that begin alike", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}, CHATS),
    ("a prompt told twice", {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, CHATS),
    ("a prompt in text", {"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]}, CHATS),
    (
        "openai",
        {"input": {"messages": [USER], "tools": [WEATHER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        (asked("Hello", tools=(WEATHER,)), asked("Go", tools=(WEATHER,))),
    ),
    (
        "turns",
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "Go"}, "system": "Be kind."},
        (asked("Hello", Message("system", "Be kind.")), asked("Go", Message("system", "Be kind."))),
    ),
    ("turns with roles", {"messages": [USER], "chosen": GOOD, "rejected": BAD}, CHATS),
]


@pytest.mark.parametrize(("values", "pair"), [way[1:] for way in WAYS], ids=[way[0] for way in WAYS])
def test_every_way_of_writing_a_pair_gives_the_two_answers(
    values: dict[str, Any], pair: tuple[Answered, Answered]
) -> None:
    assert recognise_any(rows_of(values))[:2] == ("preferences", "preferences")
    assert records_of(values, takes="preferences", form="preferences") == [Preference(*pair)]


def test_answers_before_those_that_are_compared_are_not_learned() -> None:
    before = [USER, GOOD, USER]
    (record,) = records_of({"prompt": before, "chosen": [GOOD], "rejected": [BAD]}, takes="preferences")
    assert isinstance(record, Preference)
    assert isinstance(record.chosen, Conversation)
    assert [message.learn for message in record.chosen.messages] == [None, False, None, None]


@pytest.mark.parametrize(
    ("columns", "margin"),
    [({"margin": 0.5}, 0.5), ({"score_chosen": 9, "score_rejected": "7.5"}, 1.5), ({"score_chosen": 9}, None)],
)
def test_a_margin_is_read_or_reckoned(columns: dict[str, Any], margin: float | None) -> None:
    (record,) = records_of({"prompt": "Hi", "chosen": "Hello", "rejected": "Go", **columns}, takes="preferences")
    assert isinstance(record, Preference)
    assert record.margin == margin


WELL_TEXT = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}
WELL_CHAT = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
BROKEN: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    (WELL_TEXT, {"prompt": "Hi", "chosen": "Go", "rejected": "Go"}, "rejected", "the same"),
    (WELL_TEXT, {"prompt": "Hi", "chosen": "", "rejected": "Go"}, "chosen", "the answer is empty"),
    (WELL_TEXT, {"prompt": " ", "chosen": "Hello", "rejected": "Go"}, "prompt", "the prompt is empty"),
    (WELL_TEXT, {"chosen": "Hello", "rejected": "Go"}, "prompt", "missing"),
    (WELL_TEXT, {**WELL_TEXT, "margin": "wide"}, "margin", "expected a number, found 'wide'"),
    (WELL_TEXT, {**WELL_TEXT, "margin": float("nan")}, "margin", "found nan"),
    ({"chosen": "a b", "rejected": "a c"}, {"chosen": "x b", "rejected": "a c"}, "chosen", "share no beginning"),
    ({"chosen": "a b", "rejected": "a c"}, {"chosen": "a b", "rejected": "a "}, "rejected", "the answer is empty"),
    (WELL_CHAT, {**WELL_CHAT, "chosen": [OTHER]}, "chosen", "no answer"),
    (WELL_CHAT, {**WELL_CHAT, "chosen": [OTHER, GOOD]}, "chosen[0].role", "a message of the user"),
    (WELL_CHAT, {**WELL_CHAT, "chosen": []}, "chosen", "empty"),
    (WELL_CHAT, {**WELL_CHAT, "prompt": []}, "prompt", "empty"),
    (WELL_CHAT, {**WELL_CHAT, "chosen": ["x"]}, "chosen[0]", "found text"),
    (WELL_CHAT, {**WELL_CHAT, "rejected": [{"role": "assistant", "content": ""}]}, "rejected[0].content", "empty"),
    (
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [OTHER, BAD]},
        "chosen",
        "begin with different messages",
    ),
]


@pytest.mark.parametrize(("well", "values", "field", "found"), BROKEN)
def test_pairs_at_fault_name_the_field(well: dict[str, Any], values: dict[str, Any], field: str, found: str) -> None:
    fault = fault_of(well, values, "preferences")
    assert fault.field == field
    assert found in fault.found
    assert fault.mend


# ── verdicts ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "answered"),
    [
        ({"prompt": "Hi", "completion": "Hello", "label": True}, Completion("Hi", "Hello")),
        ({"prompt": "Hi", "completion": "Hello", "label": "True"}, Completion("Hi", "Hello")),
        ({"prompt": [USER], "completion": [GOOD], "label": True}, asked("Hello")),
        ({"messages": [USER, GOOD], "label": True}, asked("Hello")),
        ({"conversations": [HUMAN, GPT], "kto_tag": True}, asked("Hello")),
    ],
)
def test_an_answer_with_true_or_false_beside_it_is_a_verdict(values: dict[str, Any], answered: Answered) -> None:
    assert recognise_any(rows_of(values))[:2] == ("verdicts", "verdicts")
    label = "label" if "label" in values else "kto_tag"
    bad = {**values, label: False}
    assert records_of(values, bad, takes="verdicts") == [Verdict(answered, True), Verdict(answered, False)]


def test_of_a_conversation_the_last_answer_is_judged() -> None:
    (record,) = records_of({"messages": [USER, GOOD, USER, BAD], "label": False}, takes="verdicts")
    assert isinstance(record, Verdict)
    assert isinstance(record.answered, Conversation)
    assert [message.learn for message in record.answered.messages] == [None, False, None, None]


@pytest.mark.parametrize(
    ("values", "field", "found"),
    [
        ({"messages": [USER, GOOD], "label": None}, "label", "found null"),
        ({"messages": [USER, GOOD]}, "label", "missing"),
        ({"messages": [USER], "label": True}, "messages", "no answer"),
    ],
)
def test_verdicts_at_fault_name_the_field(values: dict[str, Any], field: str, found: str) -> None:
    fault = fault_of({"messages": [USER, GOOD], "label": True}, values, "verdicts")
    assert fault.field == field
    assert found in fault.found
