"""Prompts of rows: what comes before the last answer, and nothing of the answer."""

from __future__ import annotations

import pytest
from form_rows import rows_of

from luthier.data.facts import has_extras
from luthier.data.formats import to_records
from luthier.data.formats.prompts import asked_of
from luthier.data.split import prompt_key
from luthier.data.tokens.record_json import record_line, record_of
from luthier.errors import DataError
from luthier.types import Completion, Conversation, Message, PlainText, Preference, Prompt


def prompts_of(*rows: dict[str, object]) -> list[Prompt]:
    records = [record for record, _ in to_records(rows_of(*rows), "auto", "prompts").records]
    assert all(isinstance(record, Prompt) for record in records)
    return records  # type: ignore[return-value]


def chat(*turns: tuple[str, str]) -> Prompt:
    return Prompt(Conversation(tuple(Message(role, content) for role, content in turns)))


def test_an_answer_beside_the_prompt_is_left_to_the_graders() -> None:
    assert prompts_of({"question": "1 + 1?", "answer": "2"}) == [Prompt("1 + 1?")]
    assert prompts_of({"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}) == [Prompt("Hi")]


def test_a_chat_asks_up_to_its_last_answer() -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "2+2?"},
    ]
    asked = chat(("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?"))
    assert prompts_of({"messages": turns}) == [asked]
    assert prompts_of({"messages": [*turns, {"role": "assistant", "content": "4"}]}) == [asked]
    assert prompts_of({"prompt": turns}) == [asked]


def test_an_instruction_keeps_its_input() -> None:
    rows = {"instruction": "Translate.", "input": "Good morning.", "output": "Bonjour."}
    (asked,) = prompts_of(rows)
    assert isinstance(asked.asked, Conversation)
    (message,) = asked.asked.messages
    assert (message.role, message.content) == ("user", "Translate.\n\nGood morning.")
    assert dict(message.extra) == {"input": "Good morning."}


def test_a_text_asks_nothing() -> None:
    with pytest.raises(DataError, match="the rows ask nothing") as caught:
        prompts_of({"text": "Once upon a time."})
    assert "data.template" in caught.value.mend
    assert asked_of(PlainText("a")) is None


@pytest.mark.parametrize("prompt", [Prompt("Hi"), chat(("system", "Be brief."), ("user", "Hi"))])
def test_a_prompt_is_kept_as_it_is_and_split_as_what_it_asks(prompt: Prompt) -> None:
    assert record_of(record_line(prompt)) == prompt
    answered = (
        Completion(prompt.asked, "Hello!")
        if isinstance(prompt.asked, str)
        else Conversation((*prompt.asked.messages, Message("assistant", "Hello!")))
    )
    assert prompt_key(prompt) == prompt_key(answered) == prompt_key(Preference(answered, answered))
    assert asked_of(answered) == prompt
    assert not has_extras(prompt)
