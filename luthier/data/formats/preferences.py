"""Preferences: two answers to the same prompt, the better and the worse.

    {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}

The forms of direct preference optimization (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290) as tools write them:

- TRL (https://huggingface.co/docs/trl/dataset_formats): texts, or lists of messages; without a prompt it is what both
  begin with. Alpaca's `instruction` and `input` may be the prompt.
- OpenAI: `input` with messages and tools, `preferred_output` and `non_preferred_output`, lists of messages.
- LLaMA-Factory: `conversations` (or `messages`), and one turn each in `chosen` and `rejected`.
- Stack Exchange paired: `question`, `response_j` (the better) and `response_k`.

`margin`, or the difference of `score_chosen` and `score_rejected`, says by how much the first is better. `probability`, or
`votes_chosen` and `votes_rejected`, says how many of those asked find it better: a reward model learns from that, and from
ties (a half); other objectives refuse rows whose first answer is not the better one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.formats import chat, sharegpt
from luthier.data.formats.table import (
    Recognise,
    Recognition,
    Table,
    as_filled_text,
    as_list,
    as_number,
    as_object,
    as_text,
    fault,
    one,
    required,
)
from luthier.data.formats.turns import check_order, tools_of, turn_column, unlearned, with_system
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Completion, Conversation, Gives, Message, Preference, Record

NAME: FormatName = "preferences"
GIVES: Gives = "preferences"
COLUMNS = "prompt, chosen and rejected (or input, preferred_output and non_preferred_output)"

PAIRS = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"), ("response_j", "response_k"))
SHARES = ("probability", "votes_chosen", "votes_rejected")
PROMPTS = ("prompt", "question", "instruction", "query")


@dataclass(frozen=True)
class Columns:
    """Where a row's parts are. prompt: None where chosen and rejected begin with it. turns: the turns before both."""

    chosen: str
    rejected: str
    prompt: str | None = None
    given: str | None = None
    turns: str | None = None


@dataclass(frozen=True)
class Known:
    """What a row says of its pair beside the order: `Preference` has the fields."""

    margin: float | None
    probability: float


def recognise(table: Table) -> Recognition | None:
    """Rows with a column of better and one of worse answers, and what they answer."""
    pair = next((found for names in PAIRS if len(found := table.columns(names)) == 2), None)
    if pair is None:
        return None
    chosen, rejected = pair
    if table.kinds[chosen] != table.kinds[rejected]:
        return None
    turns = turn_column(table)
    prompt = table.named(("input",), ("an object",)) or table.named(PROMPTS, ("text", "a list"))
    given = table.named(("input",)) if prompt is not None and prompt.lower() == "instruction" else None
    columns = Columns(chosen, rejected, prompt if turns is None else None, given, turns)
    asked = turns or columns.prompt
    reason = f"{chosen} and {rejected} are answers to {asked}" if asked else f"{chosen} and {rejected} begin alike"
    beside = ("system", "tools", "functions", "margin", "score_chosen", "score_rejected", *SHARES)
    reads = {column for column in (*pair, turns, columns.prompt, given, *beside) if column is not None}
    return Recognition(reason, frozenset(reads), one(to_record, columns=columns))


def recognise_preferred(recognise_pairs: Recognise, table: Table) -> Recognition | None:
    """How the better answers of pairs are read, for what learns to write them; of a tie, neither."""
    found = recognise_pairs(table)
    note = "Of each pair the better answer is learned, and the other left out."
    return None if found is None else found.remade(_better, notes=(note, *found.notes))


def _better(pair: Record) -> Completion | Conversation | None:
    assert isinstance(pair, Preference), "pairs were asked for"
    if pair.probability == 0.5:
        return None
    return pair.chosen if pair.probability > 0.5 else pair.rejected


def to_record(row: Row, columns: Columns = Columns("chosen", "rejected", "prompt")) -> Preference:
    """The row's two answers, each after what was asked."""
    better, worse = (required(row, row.values, column, column) for column in (columns.chosen, columns.rejected))
    if better == worse:
        found = f"{columns.chosen} and {columns.rejected} are the same, so there is nothing to prefer."
        raise fault(row, columns.rejected, found, "Leave this row out.")
    known = Known(_margin(row), _probability(row))
    if isinstance(better, str) and isinstance(worse, str) and columns.turns is None:
        if columns.prompt is not None:
            return _texts(row, columns, better, worse, known)
        return _texts_that_begin_alike(row, columns, better, worse, known)
    return _conversations(row, columns, better, worse, known)


# ── texts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _texts(row: Row, columns: Columns, better: str, worse: str, known: Known) -> Preference:
    assert columns.prompt is not None
    prompt = as_filled_text(
        row, columns.prompt, required(row, row.values, columns.prompt, columns.prompt), "the prompt"
    )
    given = None if columns.given is None else row.values.get(columns.given)
    if columns.given is not None and given is not None and as_text(row, columns.given, given).strip():
        prompt = f"{prompt}\n\n{given}"
    return Preference(
        Completion(prompt, as_filled_text(row, columns.chosen, better, "the answer")),
        Completion(prompt, as_filled_text(row, columns.rejected, worse, "the answer")),
        known.margin,
        known.probability,
    )


def _texts_that_begin_alike(row: Row, columns: Columns, better: str, worse: str, known: Known) -> Preference:
    """The beginning that both share, up to the last white space in it, as the prompt."""
    length = next(
        (i for i, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), min(len(better), len(worse))
    )
    while length > 0 and not better[length - 1].isspace():
        length -= 1
    prompt = better[:length]
    if not prompt.strip():
        found = f"there is no prompt: {columns.chosen} and {columns.rejected} share no beginning."
        raise fault(row, columns.chosen, found, "Add a column prompt, or leave this row out.")
    return Preference(
        Completion(prompt, as_filled_text(row, columns.chosen, better[length:], "the answer")),
        Completion(prompt, as_filled_text(row, columns.rejected, worse[length:], "the answer")),
        known.margin,
        known.probability,
    )


# ── conversations ───────────────────────────────────────────────────────────────────────────────────────────────────


def _conversations(row: Row, columns: Columns, better: Any, worse: Any, known: Known) -> Preference:
    ends = [_messages(row, column, value) for column, value in ((columns.chosen, better), (columns.rejected, worse))]
    before = _asked(row, columns, ends)
    tools = _tools(row, columns)
    made = []
    for column, end in zip((columns.chosen, columns.rejected), ends, strict=True):
        answers = end[len(before) :] if end[: len(before)] == before else end
        check_order(row, column, answers)
        if answers[0].role != "assistant":
            found = f"an answer should follow what was asked, found a message of the {answers[0].role}."
            raise fault(row, f"{column}[0].role", found, "Both must be the same up to an answer of the assistant.")
        made.append(Conversation(with_system(row, column, (*unlearned(before), *answers)), tools))
    return Preference(made[0], made[1], known.margin, known.probability)


def _asked(row: Row, columns: Columns, ends: Sequence[tuple[Message, ...]]) -> tuple[Message, ...]:
    """The messages before both answers: from their own column, or those that both begin with."""
    if columns.turns is not None:
        return _messages(row, columns.turns, required(row, row.values, columns.turns, columns.turns))
    shared = next((i for i, (a, b) in enumerate(zip(*ends, strict=False)) if a != b), min(map(len, ends)))
    if shared or columns.prompt is None:
        if shared == 0:
            found = f"nothing is asked: {columns.chosen} and {columns.rejected} begin with different messages."
            raise fault(row, columns.chosen, found, "Add a column prompt, or begin both with the same messages.")
        return ends[0][:shared]
    value = required(row, row.values, columns.prompt, columns.prompt)
    if isinstance(value, str):
        return (Message("user", as_filled_text(row, columns.prompt, value, "the prompt")),)
    if isinstance(value, dict):
        field = f"{columns.prompt}.messages"
        return _messages(row, field, required(row, value, "messages", field))
    return _messages(row, columns.prompt, value)


def _tools(row: Row, columns: Columns) -> tuple[dict[str, Any], ...]:
    """The functions offered to the model: the row's, or those of OpenAI's input."""
    value = None if columns.prompt is None else row.values.get(columns.prompt)
    if isinstance(value, dict) and value.get("tools") is not None:
        return tools_of(Row({"tools": value["tools"]}, row.origin))
    return tools_of(row)


def _messages(row: Row, field: str, value: Any) -> tuple[Message, ...]:
    """The messages of a list, or of one turn alone, by role and content or by from and value."""
    listed = [value] if isinstance(value, dict) else as_list(row, field, value, "messages")
    if not listed:
        raise fault(row, field, "the list of messages is empty.", "Fill it, or leave this row out.")
    places = [field] if isinstance(value, dict) else [f"{field}[{index}]" for index in range(len(listed))]
    turns = [as_object(row, place, turn, chat.SUCH_AS) for place, turn in zip(places, listed, strict=True)]
    make: Callable[[Row, str, Any], Message] = sharegpt.message if "from" in turns[0] else chat.message
    return tuple(make(row, place, turn) for place, turn in zip(places, turns, strict=True))


# ── margins ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _margin(row: Row) -> float | None:
    """By how much the first answer is better, where the row says so."""
    values = row.values
    if values.get("margin") is not None:
        return as_number(row, "margin", values["margin"])
    scores = [values.get(column) for column in ("score_chosen", "score_rejected")]
    if None in scores:
        return None
    return as_number(row, "score_chosen", scores[0]) - as_number(row, "score_rejected", scores[1])


def _probability(row: Row) -> float:
    """How many of those asked find the first answer better; 1 where the row does not say."""
    values = row.values
    if values.get("probability") is not None:
        share = as_number(row, "probability", values["probability"])
        if not 0 <= share <= 1:
            raise fault(row, "probability", f"{share:g} is no probability.", "Write a number from 0 to 1.")
        return share
    if None in (values.get("votes_chosen"), values.get("votes_rejected")):
        return 1.0
    votes = [as_number(row, column, values[column]) for column in SHARES[1:]]
    if min(votes) < 0 or sum(votes) == 0:
        found = f"{votes[0]:g} votes for the first answer and {votes[1]:g} for the second say nothing."
        raise fault(row, SHARES[1], found, "Write how many votes each has, or leave this row out.")
    return votes[0] / sum(votes)
