"""Conversations out of order, calls of tools that cannot be made, marks of templates that stayed behind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

from bench.planted_faults.faults import Change, Draw, Plant, Way, edited, inserted
from bench.planted_faults.forms import Values
from bench.planted_faults.sources import (
    ALPACA,
    BITEXT,
    COT,
    DPO,
    DUMMY,
    GLAIVE,
    GSM8K,
    KTO,
    REASONING,
    SCITLDR,
    Chat,
    value_at,
    with_value,
)  # fmt: skip

Turns = list[dict[str, Any]]
Spoil = Callable[[Turns, Chat, Random], int | None]
"""Changes turns in place; the number of the turn that is wrong then, or None where these cannot be spoilt so."""


def _reordered(what: str, spoil: Spoil) -> Plant:
    def plant(draw: Draw) -> Change | None:
        chat = draw.source.chat
        assert chat is not None
        row: Values = copy.deepcopy(draw.values)
        number = spoil(row[chat.turns], chat, draw.rng)
        if number is None:
            return None
        neighbours = tuple(f"{chat.turns}[{near}]" for near in range(max(0, number - 1), number + 2))
        return Change(f"{chat.turns}[{number}].{chat.role}", what, row, also=neighbours)

    return plant


def _roles(turns: Turns, chat: Chat) -> list[str]:
    return [turn[chat.role] for turn in turns]


def _two_of_the_user(turns: Turns, chat: Chat, rng: Random) -> int | None:
    """An answer between two turns of the user is lost."""
    roles = _roles(turns, chat)
    places = [
        place
        for place in range(1, len(turns) - 1)
        if roles[place - 1 : place + 2] == [chat.user, chat.assistant, chat.user]
    ]
    if not places:
        return None
    place = rng.choice(places)
    del turns[place]
    return place


def _two_of_the_assistant(turns: Turns, chat: Chat, rng: Random) -> int | None:
    roles = _roles(turns, chat)
    places = [
        place
        for place in range(1, len(turns) - 1)
        if roles[place - 1 : place + 2] == [chat.assistant, chat.user, chat.assistant]
    ]
    if not places:
        return None
    place = rng.choice(places)
    del turns[place]
    return place


def _without_beginning(turns: Turns, chat: Chat, rng: Random) -> int | None:
    if _roles(turns, chat)[:2] != [chat.user, chat.assistant]:
        return None
    del turns[0]
    return 0


def _without_end(turns: Turns, chat: Chat, rng: Random) -> int | None:
    if len(turns) < 4 or _roles(turns, chat)[-2:] != [chat.user, chat.assistant]:
        return None
    del turns[-1]
    return len(turns) - 1


def _roles_exchanged(turns: Turns, chat: Chat, rng: Random) -> int | None:
    if set(_roles(turns, chat)) != {chat.user, chat.assistant}:
        return None
    for turn in turns:
        turn[chat.role] = chat.assistant if turn[chat.role] == chat.user else chat.user
    return 0


def _system_inside(turns: Turns, chat: Chat, rng: Random) -> int | None:
    if len(turns) < 4 or chat.system in _roles(turns, chat):
        return None
    place = rng.randrange(1, len(turns) - 1)
    turns.insert(place, _system_turn(turns, chat, "Keep your answers short from here on."))
    return place


def _two_systems(turns: Turns, chat: Chat, rng: Random) -> int | None:
    if chat.system in _roles(turns, chat):
        return None
    turns.insert(0, _system_turn(turns, chat, "You are a helpful assistant."))
    turns.insert(1, _system_turn(turns, chat, "You answer in full sentences and stay polite."))
    return 1


def _system_turn(turns: Turns, chat: Chat, text: str) -> dict[str, Any]:
    """With its keys in the order that the file has."""
    return {key: {chat.role: chat.system, chat.text: text}[key] for key in turns[0]}


def _misnamed(turns: Turns, chat: Chat, rng: Random) -> int | None:
    place = rng.randrange(len(turns))
    name = turns[place][chat.role]
    wrong = {chat.user: ("usr", "customer", "humam"), chat.assistant: ("asistant", "model_answer", "gtp")}
    turns[place][chat.role] = rng.choice(wrong.get(name, (f"{name}s", f"_{name}")))
    return place


def _user_alone(turns: Turns, chat: Chat, rng: Random) -> int | None:
    if chat.assistant not in _roles(turns, chat):
        return None
    turns[:] = [turn for turn in turns if turn[chat.role] == chat.user][:1]
    return 0


_CHATS = (KTO, DUMMY, GLAIVE)

ROLE_ORDER = (
    Way(_reordered("two turns of the user in a row", _two_of_the_user), (KTO, DUMMY, DPO)),
    Way(_reordered("the assistant begins", _without_beginning), _CHATS),
    Way(_reordered("the user has the last word", _without_end), _CHATS),
    Way(_reordered("user and assistant are exchanged", _roles_exchanged), _CHATS),
    Way(_reordered("a system message in the middle", _system_inside), _CHATS),
    Way(_reordered("two system messages", _two_systems), _CHATS),
    Way(_reordered("a role that no one has", _misnamed), (*_CHATS, DPO)),
    Way(_reordered("two turns of the assistant in a row", _two_of_the_assistant), (KTO, DUMMY, DPO)),
    Way(_reordered("no answer at all", _user_alone), _CHATS),
    Way(_reordered("two turns of the user in a row", _two_of_the_user), (KTO, DUMMY, DPO)),
    Way(_reordered("a role that no one has", _misnamed), _CHATS),
    Way(_reordered("the user has the last word", _without_end), _CHATS),
)


# ── calls of tools ──────────────────────────────────────────────────────────────────────────────────────────────────

Call = dict[str, Any]
SpoilCall = Callable[[str, Random], str | None]
"""From the call as it is written to one that cannot be made."""


def _calls(draw: Draw) -> list[str]:
    """The path of each call."""
    if draw.source is GLAIVE:
        turns = enumerate(draw.values["conversations"])
        return [f"conversations[{number}].value" for number, turn in turns if turn["from"] == "function_call"]
    return [
        f"messages[{number}].content[{place}].value"
        for number, message in enumerate(draw.values["messages"])
        for place, part in enumerate(message["content"])
        if part["type"] == "tool_call"
    ]


def _called(what: str, spoil: SpoilCall) -> Plant:
    def plant(draw: Draw) -> Change | None:
        calls = _calls(draw)
        if not calls:
            return None
        path = draw.rng.choice(calls)
        was = value_at(draw.values, path)
        new = spoil(was, draw.rng)
        return None if new is None or new == was else Change(path, what, with_value(draw.values, path, new))

    return plant


def _rewritten(change: Callable[[Call, Random], bool]) -> SpoilCall:
    """The call read, changed and written again; None where `change` says no."""

    def spoil(text: str, rng: Random) -> str | None:
        call = json.loads(text)
        return json.dumps(call) if isinstance(call, dict) and change(call, rng) else None

    return spoil


def _renamed_tool(call: Call, rng: Random) -> bool:
    call["name"] = rng.choice(("fetch_", "lookup_", "do_")) + call["name"]
    return True


def _no_name(call: Call, rng: Random) -> bool:
    return call.pop("name", None) is not None


def _arguments_as_list(call: Call, rng: Random) -> bool:
    had = bool(call["arguments"])
    call["arguments"] = list(call["arguments"].values())
    return had


def _pythonic(text: str, rng: Random) -> str | None:
    return repr(json.loads(text))


def _call_cut(text: str, rng: Random) -> str | None:
    return text[: rng.randint(len(text) // 2, len(text) - 1)]


def _spoken_around(text: str, rng: Random) -> str | None:
    return f"Sure, I will call it now: {text}"


def _trailing_comma(text: str, rng: Random) -> str | None:
    return text[:-1] + ",}" if text.endswith("}") else None


def _arguments_lost(draw: Draw) -> Change | None:
    """A call without arguments, of a tool that cannot do without."""
    needy = {tool["name"] for tool in json.loads(draw.values["tools"]) if tool["parameters"].get("required")}
    calls = [(path, json.loads(value_at(draw.values, path))) for path in _calls(draw)]
    fitting = [(path, call) for path, call in calls if call["name"] in needy and call["arguments"]]
    if not fitting:
        return None
    path, call = draw.rng.choice(fitting)
    row = with_value(draw.values, path, json.dumps(call | {"arguments": {}}))
    return Change(path, "arguments that must be given are missing", row)


def _tools_cut(draw: Draw) -> Change | None:
    tools = draw.values["tools"]
    if len(tools) < 20:
        return None
    row = dict(draw.values) | {"tools": tools[: draw.rng.randint(len(tools) // 3, len(tools) - 2)]}
    return Change("tools", "the list of tools breaks off", row)


def _tools_lost(draw: Draw) -> Change | None:
    calls = _calls(draw)
    if not calls:
        return None
    return Change("tools", "tools are called, none is described", dict(draw.values) | {"tools": "[]"}, also=(calls[0],))


_TOOLS = (GLAIVE, REASONING)

TOOL_CALL = (
    Way(_called("the call breaks off: not JSON", _call_cut), _TOOLS),
    Way(_called("the call as Python prints it: not JSON", _pythonic), _TOOLS),
    Way(_called("a tool that is not described", _rewritten(_renamed_tool)), _TOOLS),
    Way(_called("no name", _rewritten(_no_name)), _TOOLS),
    Way(_arguments_lost, (GLAIVE,)),
    Way(_called("the arguments are a list", _rewritten(_arguments_as_list)), _TOOLS),
    Way(_tools_cut, _TOOLS),
    Way(_called("words around the call: not JSON", _spoken_around), _TOOLS),
    Way(_called("a comma after the last field: not JSON", _trailing_comma), _TOOLS),
    Way(_tools_lost, _TOOLS),
)


# ── marks of templates ──────────────────────────────────────────────────────────────────────────────────────────────


def _ended_with(piece: str) -> Callable[[str, Random], str | None]:
    return lambda text, rng: text + piece


def _begun_with(piece: str) -> Callable[[str, Random], str | None]:
    return lambda text, rng: piece + text


def _holding(piece: str) -> Callable[[str, Random], str | None]:
    return lambda text, rng: inserted(text, piece, rng)


_MARKED = (ALPACA, GSM8K, SCITLDR, COT, DUMMY, DPO, KTO, GLAIVE)

TEMPLATE_MARKER = (
    Way(edited("a turn's end of ChatML", _ended_with("<|im_end|>")), _MARKED),
    Way(edited("an unfilled slot in double braces", _holding("{{customer_name}}")), (*_MARKED, BITEXT)),
    Way(edited("the marks of Llama 2", _begun_with("[INST] ")), _MARKED),
    Way(edited("an unfilled slot in braces", _holding("{product_name}")), (DUMMY, BITEXT, KTO)),
    Way(edited("the next turn of ChatML", _ended_with("<|im_end|>\n<|im_start|>user\n")), _MARKED),
    Way(edited("the next heading of Alpaca", _ended_with("\n\n### Instruction:\n")), _MARKED),
    Way(edited("the end of a text as GPT-2 marks it", _ended_with("<|endoftext|>")), _MARKED),
    Way(edited("the marks of Llama 3", _begun_with("<|start_header_id|>assistant<|end_header_id|>\n\n")), _MARKED),
    Way(edited("an end of sequence", _ended_with("</s>")), _MARKED),
    Way(edited("the marks of Gemma", _ended_with("<end_of_turn>\n<start_of_turn>model\n")), _MARKED),
    Way(edited("text to be replaced", _holding("Lorem ipsum dolor sit amet, consectetur adipiscing elit.")), _MARKED),
    Way(edited("a note of the author", _holding("[INSERT EXAMPLE HERE]")), _MARKED),
)

WAYS = {"role_order": ROLE_ORDER, "tool_call": TOOL_CALL, "template_marker": TEMPLATE_MARKER}
