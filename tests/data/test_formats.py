"""Rows → records."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.formats import alpaca, completion, faults, sharegpt, text, to_records
from luthier.data.formats import chat as chat_form
from luthier.data.reading import Row, read_rows
from luthier.errors import DataError
from luthier.types import Completion, Conversation, Message, Origin, PlainText

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
HUMAN = {"from": "human", "value": "Hi"}
GPT = {"from": "gpt", "value": "Hello"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
SCHEMA = {"name": "weather", "description": "Weather now", "parameters": {"type": "object", "properties": {}}}


def rows_of(*values: dict[str, Any]) -> list[Row]:
    return [Row(value, Origin("rows.jsonl", line)) for line, value in enumerate(values, start=1)]


def record_of(values: dict[str, Any], format: Any = "auto") -> Any:
    return to_records(rows_of(values), format).records[0][0]


def chat(*messages: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


def shared_gpt(*turns: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"conversations": list(turns), **columns}


def turns(record: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in record.messages]


# ── which form ──────────────────────────────────────────────────────────────────────────────────────────────────────

RECOGNISED: list[tuple[dict[str, Any], str, str]] = [
    (chat(USER, ANSWER), "chat", "messages holds turns with role and content"),
    ({"conversations": [USER, ANSWER]}, "chat", "conversations holds"),
    ({"conversation": [USER, ANSWER]}, "chat", "conversation holds"),
    ({"messages": json.dumps([USER, ANSWER])}, "chat", "messages holds"),
    (chat(USER, ANSWER, prompt="Hi", completion="Hello", text="Hi Hello"), "chat", "messages"),
    (shared_gpt(HUMAN, GPT), "sharegpt", "conversations holds turns with from and value"),
    ({"messages": [HUMAN, GPT]}, "sharegpt", "messages holds turns with from and value"),
    (
        {"instruction": "Greet", "input": "", "output": "Hi", "text": "Greet Hi"},
        "alpaca",
        "instruction, input and output",
    ),
    ({"instruction": "Greet", "output": "Hi"}, "alpaca", "instruction and output"),
    ({"instruction": "Greet", "output": "Hi", "chosen": "a", "rejected": "b"}, "alpaca", "instruction and output"),
    (
        {"prompt": "Hi", "completion": "Hello", "question": "x", "text": "y"},
        "completion",
        "prompt is followed by completion",
    ),
    ({"Prompt": "Hi", "Completion": "Hello"}, "completion", "Prompt is followed by Completion"),
    ({"question": "Hi", "answer": "Hello", "id": 3}, "completion", "question is followed by answer"),
    ({"input": "Hi", "output": "Hello"}, "completion", "input is followed by output"),
    ({"query": "Hi", "response": "Hello"}, "completion", "query is followed by response"),
    ({"instruction": "Hi", "target": "Hello"}, "completion", "instruction is followed by target"),
    ({"prompt": [USER], "completion": [ANSWER]}, "completion", "prompt is followed by completion"),
    ({"text": "Once upon a time", "url": "a", "meta": {}}, "text", "a column text"),
    ({"content": "Once upon a time"}, "text", "a column content"),
    ({"sentence": "Once upon a time", "id": 7}, "text", "sentence is the only column of text"),
]


@pytest.mark.parametrize(("values", "name", "reason"), RECOGNISED)
def test_a_form_is_recognised_and_the_reason_is_said(values, name, reason):
    found = to_records(rows_of(values), "auto")
    assert found.name == name
    assert reason in found.reason


def test_a_few_faulty_rows_do_not_hide_the_form():
    good = {"prompt": "Hi", "completion": "Hello"}
    with pytest.raises(DataError) as caught:
        to_records(rows_of({"wrong": 1}, good, good, {"prompt": 5, "completion": "x"}), "auto")
    assert (caught.value.line, caught.value.field) == (1, "prompt")


def test_rows_after_the_first_200_do_not_change_the_form():
    rows = rows_of(
        *[{"question": "Hi", "answer": "Hello"}] * 200, *[{"question": "Hi", "answer": "Hello", "output": "x"}] * 300
    )
    found = to_records(rows, "auto")
    assert found.name == "completion"
    assert found.notes == ("Ignored columns: output.",)  # though only later rows have it


def test_what_is_not_read_is_said():
    found = to_records(rows_of(chat({**USER, "time": 3}, {**ANSWER, "name": None, "mood": None}, id=1)), "auto")
    assert found.notes == ("Ignored columns: id.", "Ignored keys of messages: time.")
    assert to_records(rows_of(chat(USER, ANSWER, tools=None, functions=[], system="")), "auto").notes == ()
    found = to_records(rows_of({"instruction": "a", "output": "b", "chosen": "c", "rejected": "d"}), "auto")
    assert found.notes == ("Ignored columns: chosen, rejected.",)


def test_each_record_keeps_the_origin_of_its_row():
    rows = rows_of({"text": "one"}, {"text": "two"})
    assert to_records(rows, "auto").records == [(PlainText("one"), rows[0].origin), (PlainText("two"), rows[1].origin)]


# ── what a row becomes ──────────────────────────────────────────────────────────────────────────────────────────────


def test_chat_keeps_roles_weights_names_and_tools():
    record = record_of(
        chat(
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Weather?", "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", **CALL}], "weight": 0},
            {"role": "tool", "content": "rain", "tool_call_id": "c1"},
            {"role": "assistant", "content": "It rains.", "weight": 1},
            tools=[{"type": "function", "function": SCHEMA}],
        )
    )
    assert record.messages == (
        Message("system", "Be brief."),
        Message("user", "Weather?", None, (("name", "ann"),)),
        Message("assistant", "", False, (("tool_calls", [{"id": "c1", **CALL}]),)),
        Message("tool", "rain", None, (("tool_call_id", "c1"),)),
        Message("assistant", "It rains.", True),
    )
    assert record.tools == ({"type": "function", "function": SCHEMA},)


def test_old_function_calls_become_tool_calls():
    called = {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'},
    }
    given = {"role": "function", "name": "weather", "content": "rain"}
    record = record_of(chat(USER, called, given, ANSWER, functions=[SCHEMA]))
    assert dict(record.messages[1].extra) == {"tool_calls": [CALL]}
    assert record.messages[2] == Message("tool", "rain", None, (("name", "weather"),))
    assert record.tools == ({"type": "function", "function": SCHEMA},)


def test_keys_that_are_null_count_as_absent_as_parquet_writes_them():
    padded = {"weight": None, "name": None, "tool_calls": None, "tool_call_id": None}
    record = record_of(chat({**USER, **padded}, {**ANSWER, **padded}, tools=None))
    assert record == Conversation((Message("user", "Hi"), Message("assistant", "Hello")))


def test_text_parts_are_joined_line_by_line():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "value": "two"}, "three"]
    assert turns(record_of(chat({"role": "user", "content": parts}, ANSWER)))[0] == ("user", "one\ntwo\nthree")


def test_reasoning_and_calls_given_as_parts_are_kept():
    parts = [
        {"type": "reasoning", "value": "They ask for weather."},
        {"type": "text", "value": "Let me see."},
        {"type": "tool_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
    ]
    found = to_records(rows_of(chat(USER, {"role": "assistant", "content": parts})), "auto")
    conversation = found.records[0][0]
    assert isinstance(conversation, Conversation)
    assert conversation.messages[1].content == "<think>\nThey ask for weather.\n</think>\n\nLet me see."
    assert dict(conversation.messages[1].extra) == {"tool_calls": [CALL]}
    assert "<think>" in found.notes[0]


@pytest.mark.parametrize("make", [chat, shared_gpt])
def test_a_system_column_goes_first(make):
    user, answer = (USER, ANSWER) if make is chat else (HUMAN, GPT)
    assert turns(record_of(make(user, answer, system="Be brief.")))[0] == ("system", "Be brief.")


def test_alpaca_joins_instruction_and_input_and_puts_history_before():
    values = {"instruction": "Add", "input": "2+2", "output": "4", "system": "Count.", "history": [["Hi", "Hello"]]}
    expected = [
        ("system", "Count."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Add\n\n2+2"),
        ("assistant", "4"),
    ]
    assert turns(record_of(values)) == expected


@pytest.mark.parametrize("rest", [{}, {"input": ""}, {"input": None}, {"input": " "}])
def test_alpaca_without_an_input_is_the_instruction_alone(rest):
    assert turns(record_of({"instruction": "Greet", "output": "Hi", **rest})) == [
        ("user", "Greet"),
        ("assistant", "Hi"),
    ]


def test_completion_text_is_kept_to_the_last_space():
    assert record_of({"prompt": "Paris is in ", "completion": " France.\n"}) == Completion("Paris is in ", " France.\n")


def test_prompt_and_completion_as_messages_learn_the_completion_alone():
    record = record_of({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]})
    assert [(message.role, message.learn) for message in record.messages] == [
        ("user", None),
        ("assistant", False),
        ("user", None),
        ("assistant", None),
    ]


def test_sharegpt_speakers_become_roles():
    record = record_of(
        shared_gpt(
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "It rains."},
            tools=json.dumps([SCHEMA]),
        )
    )
    assert [message.role for message in record.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert record.messages[2] == Message("assistant", "", None, (("tool_calls", [CALL]),))
    assert record.tools == ({"type": "function", "function": SCHEMA},)


@pytest.mark.parametrize("text", ["weather(Oslo)", "7", '{"city": "Oslo"}'])
def test_a_function_call_that_names_no_function_stays_text(text):
    record = record_of(shared_gpt(HUMAN, {"from": "function_call", "value": text}))
    assert record.messages[1] == Message("assistant", text)


# ── broken rows ─────────────────────────────────────────────────────────────────────────────────────────────────────

WELL = {"chat": chat(USER, ANSWER), "sharegpt": shared_gpt(HUMAN, GPT)} | {
    "alpaca": {"instruction": "Greet", "input": "", "output": "Hi"},
    "completion": {"prompt": "Hi", "completion": "Hello"},
    "text": {"text": "Once"},
}


def asked(content: Any, **keys: Any) -> dict[str, Any]:
    return chat({"role": "user", "content": content, **keys}, ANSWER)


def answered(content: Any, **keys: Any) -> dict[str, Any]:
    return chat(USER, {"role": "assistant", "content": content, **keys})


BROKEN: list[tuple[str, dict[str, Any], str, str, str]] = [
    # form, row, field, a fragment of what was found, a fragment of the mend
    ("chat", {"mesages": [USER, ANSWER]}, "messages", "'mesages'", "Did you mean 'messages'"),
    ("chat", {"messages": None}, "messages", "found null", "Write a list of messages"),
    ("chat", {"messages": "Hi"}, "messages", "not JSON", "as JSON in a string"),
    ("chat", {"messages": {"role": "user"}}, "messages", "found an object", "list of messages"),
    ("chat", chat(), "messages", "empty", "an answer"),
    ("chat", chat(USER, "Hello"), "messages[1]", "found text", '"role"'),
    ("chat", chat({"rol": "user", "content": "Hi"}, ANSWER), "messages[0].role", "missing", "Did you mean 'role'"),
    ("chat", chat({"role": "User", "content": "Hi"}, ANSWER), "messages[0].role", "'User'", "Did you mean 'user'"),
    ("chat", chat({"role": "human", "content": "Hi"}, ANSWER), "messages[0].role", "'human'", "'user'"),
    ("chat", chat({"role": 1, "content": "Hi"}, ANSWER), "messages[0].role", "a number", "string"),
    ("chat", chat({"role": "user"}, ANSWER), "messages[0].content", "missing", "Add 'content'"),
    ("chat", chat(USER), "messages", "no answer", "Add the answer"),
    ("chat", chat(USER, ANSWER, USER), "messages[2].role", "ends with a message of the user", "End it with"),
    ("chat", chat(USER, {"role": "system", "content": "x"}, ANSWER), "messages[1].role", "only stand first", "Move it"),
    ("chat", chat({"role": "system", "content": "x"}, USER, ANSWER, system="y"), "system", "another", "Keep one"),
    ("chat", answered(""), "messages[1].content", "the answer is empty", "Fill it in"),
    ("chat", answered(" \n"), "messages[1].content", "the answer is empty", "leave this row out"),
    ("chat", answered(None), "messages[1].content", "found null", "string"),
    ("chat", answered([]), "messages[1].content", "the answer is empty", "Fill it in"),
    ("chat", asked(" "), "messages[0].content", "the user's message is empty", "Fill it in"),
    ("chat", asked(None), "messages[0].content", "found null", "string"),
    ("chat", asked(5), "messages[0].content", "a number", "string"),
    ("chat", asked([{"type": "image_url", "image_url": {}}]), "messages[0].content[0].type", "text alone", "images"),
    ("chat", asked([{"type": "input_audio"}]), "messages[0].content[0].type", "text alone", "audio"),
    ("chat", asked([{"type": "text"}]), "messages[0].content[0]", "no 'text'", '{"type": "text"'),
    ("chat", asked([{"text": "Hi"}]), "messages[0].content[0].type", "missing", "'type'"),
    ("chat", asked([7]), "messages[0].content[0]", "a number", '{"type": "text"'),
    ("chat", asked("Hi", weight=1), "messages[0].weight", "only answers", "Remove the weight"),
    ("chat", answered("Hi", weight=-0.5), "messages[1].weight", "-0.5", "Write 1"),
    ("chat", answered("Hi", weight="much"), "messages[1].weight", "'much'", "number"),
    ("chat", answered("Hi", weight=float("nan")), "messages[1].weight", "nan", "number"),
    ("chat", answered("Hi", name=3), "messages[1].name", "a number", "string"),
    ("chat", asked("Hi", tool_calls=[CALL]), "messages[0].tool_calls", "only answers do", "'assistant'"),
    ("chat", answered(None, tool_calls=["x"]), "messages[1].tool_calls[0]", "found text", '"function"'),
    (
        "chat",
        answered(None, tool_calls=[{"function": {"name": "f", "arguments": "{"}}]),
        "messages[1].tool_calls[0].function.arguments",
        "found text",
        "JSON",
    ),
    (
        "chat",
        answered(None, tool_calls=[{"function": {"arguments": {}}}]),
        "messages[1].tool_calls[0].function.name",
        "missing",
        "Add 'name'",
    ),
    ("chat", chat(USER, ANSWER, tools="x"), "tools", "not JSON", "JSON in a string"),
    (
        "chat",
        chat(USER, ANSWER, tools=[{"type": "function", "function": {}}]),
        "tools[0].function.name",
        "missing",
        "Add 'name'",
    ),
    ("chat", chat(USER, ANSWER, tools=["x"]), "tools[0]", "found text", '"function"'),
    ("sharegpt", shared_gpt(HUMAN), "conversations", "no answer", "Add the answer"),
    ("sharegpt", shared_gpt(HUMAN, GPT, HUMAN), "conversations[2].from", "ends with", "End it with"),
    ("sharegpt", shared_gpt(GPT, HUMAN, GPT), "conversations[0].from", "begins with an answer", "before the first one"),
    (
        "sharegpt",
        shared_gpt(HUMAN, {"from": "chatgtp", "value": "x"}),
        "conversations[1].from",
        "'chatgtp'",
        "'chatgpt'",
    ),
    ("sharegpt", shared_gpt(HUMAN, {"from": "gpt", "value": ""}), "conversations[1].value", "empty", "Fill it in"),
    ("sharegpt", shared_gpt(HUMAN, {"from": "gpt"}), "conversations[1].value", "missing", "Add 'value'"),
    ("sharegpt", shared_gpt(HUMAN, {"from": "gpt", "value": None}), "conversations[1].value", "null", "string"),
    ("sharegpt", {"id": "7"}, "conversations", "missing", "Add 'conversations'"),
    ("alpaca", {"instruction": "Greet", "input": ""}, "output", "missing", "Add 'output'"),
    ("alpaca", {"instruction": "Greet", "input": "", "output": ""}, "output", "the answer is empty", "Fill it in"),
    ("alpaca", {"instruction": "", "input": " ", "output": "Hi"}, "instruction", "empty", "Fill it in"),
    ("alpaca", {"instruction": "a", "input": ["b"], "output": "c"}, "input", "a list", "string"),
    (
        "alpaca",
        {"instruction": "a", "output": "c", "history": [["b"]]},
        "history[0]",
        "1 elements",
        "[question, answer]",
    ),
    ("alpaca", {"instruction": "a", "output": "c", "history": [["b", ""]]}, "history[0][1]", "empty", "Fill it in"),
    ("completion", {"prompt": "Hi"}, "completion", "missing; there is 'prompt'", "Add 'completion'"),
    ("completion", {"prompt": "", "completion": "Hello"}, "prompt", "the prompt is empty", "Fill it in"),
    ("completion", {"prompt": "Hi", "completion": "  "}, "completion", "the answer is empty", "Fill it in"),
    ("completion", {"prompt": "Hi", "completion": 42}, "completion", "a number", "string"),
    ("completion", {"prompt": "Hi", "completion": [ANSWER]}, "prompt", "list of messages", "both as text"),
    ("completion", {"prompt": [USER], "completion": [USER]}, "completion", "no answer", "Add the answer"),
    ("completion", {"prompt": [], "completion": [ANSWER]}, "prompt", "empty", "message of the user"),
    ("text", {"text": ""}, "text", "the text is empty", "Fill it in"),
    ("text", {"text": None}, "text", "null", "string"),
]


@pytest.mark.parametrize(("form", "values", "field", "found", "mend"), BROKEN)
def test_broken_rows_name_the_line_the_field_and_the_mend(form, values, field, found, mend):
    well = WELL[form]
    rows = rows_of(well, well, values, well)
    assert to_records(rows[:2], "auto").name == form
    with pytest.raises(DataError) as caught:
        to_records(rows, "auto")
    error = caught.value
    assert (error.file, error.line, error.field) == ("rows.jsonl", 3, field)
    assert found in error.found
    assert mend in error.mend
    assert error.exit_code == 3


def test_all_faulty_rows_are_counted_and_all_are_given_by_faults():
    bad = {"prompt": "", "completion": "x"}
    rows = rows_of(*[bad, WELL["completion"]] * 30)
    with pytest.raises(DataError, match=r"In all 30 of 60 rows .*lines 1, 3, .*, 39, …\)") as caught:
        to_records(rows, "auto")
    assert caught.value.line == 1
    assert [error.line for error in faults(rows, "auto")] == list(range(1, 60, 2))
    assert faults(rows[1:2], "auto") == []
    assert "--drop-faulty" not in caught.value.mend


def test_where_few_rows_are_at_fault_the_mend_is_one_command():
    rows = rows_of(*[{"prompt": "", "completion": "x"}] * 2, *[WELL["completion"]] * 18)
    with pytest.raises(DataError) as caught:
        to_records(rows, "auto")
    assert "luthier check rows.jsonl --fix OUT --drop-faulty" in caught.value.mend


def test_faults_over_several_files_name_the_files():
    rows = [Row({"text": ""}, Origin("a.jsonl", 4)), Row({"text": ""}, Origin("b.jsonl", 9))]
    with pytest.raises(DataError, match=r"a\.jsonl, line 4, b\.jsonl, line 9"):
        to_records(rows, "text")


KEYS = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "output",
    "input",
    "text",
    "tools",
    "system",
]
KEYS += ["history", "label", "chosen", "rejected", "context"]
INNER = ["role", "content", "weight", "from", "value", "type", "text", "tool_calls", "function", "name", "arguments"]
WORDS = [
    "",
    "user",
    "assistant",
    "system",
    "human",
    "gpt",
    "function_call",
    "text",
    "tool_call",
    "[1]",
    "{}",
    "null",
    "hi",
]
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-1, 2), st.floats(), st.sampled_from(WORDS))
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=4)
)


@given(
    st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5), min_size=1, max_size=3),
    st.sampled_from(["auto", *WELL]),
)
def test_rows_of_any_content_become_records_or_are_refused_in_words(values, format):
    rows = rows_of(*values)
    found = faults(rows, format)
    if not found:
        assert len(to_records(rows, format).records) == len(rows)
    for error in found:
        assert error.found
        assert error.mend


# ── what sft does not take ──────────────────────────────────────────────────────────────────────────────────────────

UNFIT: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}, "preference pairs (chosen and rejected)", "chosen alone"),
    ({"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "Go"}, "preference pairs", "chosen alone"),
    ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "preference pairs", "chosen alone"),
    ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "preferred_output", "alone"),
    (shared_gpt(HUMAN, chosen=GPT, rejected=GPT), "preference pairs", "chosen alone"),
    (chat(USER, chosen=ANSWER, rejected=ANSWER), "preference pairs", "chosen alone"),
    (chat(USER, ANSWER, label=False), "label marks each answer as good or bad", "Keep the rows whose label is true"),
    ({"prompt": "Hi", "completion": "Hello", "label": True}, "preference data", "Keep the rows"),
    ({"message_id": "x", "parent_id": "y", "text": "Hi", "role": "prompter"}, "single messages", "whole trees"),
    ({"text": "Nice film", "label": 1}, "label stands beside the text", "data.format to text"),
    ({"text": "Nice film? yes", "answer": "yes"}, "answer stands beside", "data.format to text"),
    ({"sentence": "Nice film", "label": 1}, "label stands beside", "data.format to text"),
    ({"utterance": "Hi", "intent": "greet"}, "classification", "completion"),
    ({"prompt": "Who?", "context": "Ann did.", "completion": "Ann"}, "may rest on context", "Join context"),
    ({"instruction": "Who?", "input": "", "context": "Ann did.", "output": "Ann"}, "may rest on context", "to alpaca"),
    ({"question": "Who?", "answer": "Ann", "output": "Ann"}, "question) and answer (answer or output)", "Rename"),
    ({"instruction": "Who?", "input": "x", "response": "Ann"}, "(input or instruction)", "Rename"),
    ({"prompt": "Hi"}, "no answer to learn", "Add the answers"),
    ({"id": 3, "question": "Hi", "parts": []}, "no answer to learn", "Add the answers"),
    ({"promt": "Hi", "completion": "Hello"}, "'promt' is close to 'prompt'", "Rename it"),
    ({"facts": "name[Eagle]", "says": "The Eagle"}, "facts (text), says (text)", 'completion: "{says}"'),
    ({"tokens": ["Ann"], "tags": ["B-person"]}, "rows of tags", "objective.kind to token-classification"),
    ({"sentence1": "a", "sentence2": "b", "score": 0.5}, "rows of scores", "objective.kind to regression"),
    ({"anchor": "a", "positive": "b"}, "rows of similar", "objective.kind to embedding"),
    ({"question": "a", "choices": ["b", "c"], "answer": 1}, "rows of choices", "objective.kind to multiple-choice"),
    ({"sentence1": "a", "sentence2": "b", "label": "no"}, "rows of classification", "objective.kind to classification"),
    ({"question": "2+2", "answer": 4}, "answer (a number)", "Add the answers"),
    ({"3": "x", "Wall St. falls": "y"}, "first line was taken as the names", "Put a line"),
    (chat(USER, ANSWER, images=["a.png"]), "images stands beside", "Leave out the rows"),
]


@pytest.mark.parametrize(("values", "found", "mend"), UNFIT)
def test_rows_that_sft_does_not_take_are_refused_with_what_they_seem_to_be(values, found, mend):
    rows = rows_of(values, values)
    with pytest.raises(DataError) as caught:
        to_records(rows, "auto")
    assert found in caught.value.found
    assert mend in caught.value.mend
    assert [str(error) for error in faults(rows, "auto")] == [str(caught.value)]


def test_where_nothing_fits_the_columns_the_common_forms_and_a_template_are_told():
    rows = rows_of({"facts": "a", "says": "b"}, {"facts": "a", "says": "b", "n": 1})
    with pytest.raises(DataError, match=r"Columns found: facts \(text\), says \(text\), n \(a number\)\.") as caught:
        to_records(rows, "auto")
    for form in (alpaca, chat_form, completion, sharegpt, text):
        assert f"{form.NAME}: {form.COLUMNS}" in caught.value.mend
    assert 'data.template: {prompt: "{facts}\\n", completion: "{says}"}' in caught.value.mend


def test_a_form_that_was_asked_for_and_is_not_there_is_named_alone():
    with pytest.raises(DataError, match=r"data\.format is chat, but .* Columns found: prompt") as caught:
        to_records(rows_of({"prompt": "a", "completion": "b"}), "chat")
    assert "messages: [" in caught.value.mend
    assert "alpaca" not in caught.value.mend


@pytest.mark.parametrize(
    ("values", "format", "record"),
    [
        ({"text": "Nice film", "label": 1}, "text", PlainText("Nice film")),
        ({"question": "Who?", "context": "Ann did.", "answer": "Ann"}, "completion", Completion("Who?", "Ann")),
        ({"instruction": "Hi", "target": "x", "text": "all"}, "text", PlainText("all")),
    ],
)
def test_naming_the_form_overrules_doubts_and_recognition(values, format, record):
    found = to_records(rows_of(values), format)
    assert (found.name, found.records[0][0]) == (format, record)
    assert found.notes[0].startswith("Ignored columns")


def test_no_rows_is_an_error():
    with pytest.raises(DataError, match="at least one row"):
        to_records([], "auto")


# ── real files ──────────────────────────────────────────────────────────────────────────────────────────────────────

REAL = [
    ("alpaca_demo/alpaca_en_demo.json", "alpaca", 999),
    ("alpaca_demo/alpaca_zh_sample.jsonl", "alpaca", 200),
    ("chat_toolcall/glaive_toolcall_en_demo.json", "sharegpt", 300),
    ("chat_toolcall/reason_tool_use_demo_50.jsonl", "chat", 50),
    ("sharegpt_dummy/dummy_conversation.json", "sharegpt", 500),
    ("gsm8k/train_1500.jsonl", "rationale", 1500),
    ("flan_cot/cot_mixture.jsonl", "rationale", 2000),
    ("wikisql_text/train.jsonl", "sql", 1000),
    ("c4_demo/c4_demo.jsonl", "text", 300),
    ("tinystories_sample/tinystories.txt", "text", 1),
]
REAL_UNFIT = [
    ("dpo_kto_demo/dpo_en_demo.json", "preference pairs"),
    ("dpo_kto_demo/kto_en_demo.json", "good or bad"),
    ("stack_exchange_paired_tiny/stack_exchange_paired_tiny.json", "preference pairs"),
    ("banking77/test.csv", "classification"),
    ("bitext_support/test.csv", "classification"),
    ("ifeval/input_data.jsonl", "questions without answers"),
]


@pytest.mark.parametrize(("name", "form", "num_records"), REAL)
def test_real_files_are_recognised(name, form, num_records, shared_data):
    found = to_records(read_rows(str(shared_data / name), lambda _: None), "auto")
    assert (found.name, len(found.records)) == (form, num_records)


@pytest.mark.parametrize(("name", "seems"), REAL_UNFIT)
def test_real_files_of_other_kinds_are_refused_for_what_they_are(name, seems, shared_data):
    with pytest.raises(DataError) as caught:
        to_records(read_rows(str(shared_data / name), lambda _: None), "auto")
    assert seems in caught.value.found


def test_every_call_in_a_real_tool_file_is_kept(shared_data):
    rows = read_rows(str(shared_data / "chat_toolcall/glaive_toolcall_en_demo.json"), lambda _: None)
    records = [record for record, _ in to_records(rows, "auto").records if isinstance(record, Conversation)]
    calls = [message for record in records for message in record.messages if dict(message.extra).get("tool_calls")]
    assert len(calls) == sum(turn["from"] == "function_call" for row in rows for turn in row.values["conversations"])


def test_an_empty_answer_in_a_real_file_is_found_at_its_line(shared_data):
    with pytest.raises(DataError) as caught:
        to_records(
            read_rows(str(shared_data / "alpaca_eval_subset/text_davinci_003_outputs.jsonl"), lambda _: None), "auto"
        )
    assert (caught.value.line, caught.value.field) == (161, "output")
