"""Rankings: several answers to the same prompt, and which are better.

    {"prompt": "Hi", "answers": ["Hello!", "What?", "Hi."], "ranks": [1, 3, 2]}
    {"prompt": "Hi", "answers": [{"text": "Hello!", "score": 8.5}, {"text": "What?", "score": 2}]}

The form of InstructGPT's comparisons (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155). The prompt is a text or a list of
messages. Ranks count from the best, scores rise to it; each stands in a list of its own or beside its answer. Answers of
equal rank are as good. A column `ranked_answers` needs neither: its answers stand in their order, the best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.formats import chat
from luthier.data.formats.table import (
    Recognition,
    Table,
    as_filled_text,
    as_list,
    as_number,
    as_object,
    fault,
    one,
    required,
)
from luthier.data.formats.turns import unlearned
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Answered, Completion, Conversation, Gives, Message, Ranking

NAME: FormatName = "rankings"
GIVES: Gives = "rankings"
COLUMNS = "prompt, answers (a list) and ranks (1 is the best) or scores; or prompt and ranked_answers (the best first)"

PROMPTS = ("prompt", "question", "instruction", "query")
RANKED = ("ranked_answers", "ranked_responses")
ANSWERS = ("answers", "responses", "completions", "candidates")
RANKS = ("ranks", "rank", "ranking")
SCORES = ("scores", "score", "ratings", "rating", "overall_score")
TEXTS = ("text", "content", "response", "answer", "completion")


@dataclass(frozen=True)
class Columns:
    """Where a row's parts are. ranks, scores: None where the row has no such list."""

    prompt: str
    answers: str
    ranks: str | None = None
    scores: str | None = None


def recognise(table: Table) -> Recognition | None:
    """Rows with a prompt, a list of answers, and ranks or scores in lists of their own or beside the answers."""
    prompt = table.named(PROMPTS, ("text", "a list"))
    in_order = table.named(RANKED, ("a list",))
    answers = in_order or table.named(ANSWERS, ("a list",))
    if prompt is None or answers is None:
        return None
    ranks, scores = (table.named(names, ("a list",)) for names in (RANKS, SCORES))
    if in_order is None and ranks is None and scores is None and not table.mostly(answers, _tells_worth):
        return None
    columns = Columns(prompt, answers, ranks, scores)
    reads = frozenset(column for column in (prompt, answers, ranks, scores) if column is not None)
    by = ranks or scores or ("the list" if in_order else "what stands beside each")
    return Recognition(f"{answers} are answers to {prompt}, ordered by {by}", reads, one(to_record, columns=columns))


def _tells_worth(value: object) -> bool:
    """Whether a list has answers with a rank or a score beside each."""
    known = {*RANKS, *SCORES}
    return (
        isinstance(value, list) and bool(value) and all(isinstance(each, dict) and known & set(each) for each in value)
    )


def to_record(row: Row, columns: Columns = Columns("prompt", "answers", "ranks", "scores")) -> Ranking:
    """The row's answers, each after what was asked, and their places."""
    listed = as_list(row, columns.answers, required(row, row.values, columns.answers, columns.answers), "answers")
    if len(listed) < 2:
        found = f"there is {'one answer' if listed else 'no answer'}, so there is nothing to compare."
        raise fault(row, columns.answers, found, "Give two answers or more, or leave this row out.")
    texts = [_text(row, f"{columns.answers}[{index}]", value) for index, value in enumerate(listed)]
    places = _places(row, columns, listed)
    of_text: dict[str, int] = {}
    for index, (text, place) in enumerate(zip(texts, places, strict=True)):
        if of_text.setdefault(text, place) != place:
            found = "the same answer stands at two places of the ranking."
            raise fault(row, f"{columns.answers}[{index}]", found, "Leave one of them out.")
    if len(set(places)) == 1:
        raise fault(row, columns.answers, "all answers are as good.", "Leave this row out: it teaches nothing.")
    answers = _answered(row, columns.prompt, texts)
    return Ranking(answers, tuple(places))


def _answered(row: Row, column: str, texts: Sequence[str]) -> tuple[Answered, ...]:
    """Each answer behind the row's prompt."""
    prompt = required(row, row.values, column, column)
    if isinstance(prompt, str):
        asked = as_filled_text(row, column, prompt, "the prompt")
        return tuple(Completion(asked, text) for text in texts)
    turns = as_list(row, column, prompt, "messages")
    objects = [as_object(row, f"{column}[{index}]", turn, chat.SUCH_AS) for index, turn in enumerate(turns)]
    messages = unlearned([chat.message(row, f"{column}[{index}]", turn) for index, turn in enumerate(objects)])
    if not messages or messages[-1].role == "assistant":
        raise fault(row, column, "the prompt does not end with a question.", "Let a message of the user come last.")
    return tuple(Conversation((*messages, Message("assistant", text))) for text in texts)


def _text(row: Row, field: str, value: Any) -> str:
    """An answer: a text, or an object with one."""
    if not isinstance(value, dict):
        return as_filled_text(row, field, value, "the answer")
    key = next((name for name in TEXTS if name in value), None)
    if key is None:
        found = f"an answer should have a text; there is {', '.join(map(repr, value)) or 'nothing'}."
        raise fault(row, field, found, 'Write {"text": "…", "rank": 1}.')
    return as_filled_text(row, f"{field}.{key}", value[key], "the answer")


def _places(row: Row, columns: Columns, listed: Sequence[Any]) -> list[int]:
    """The place of each answer, 0 being the best; those of the same rank or score share one."""
    for column, names, sign in ((columns.ranks, RANKS, 1.0), (columns.scores, SCORES, -1.0)):
        worths = _worths(row, columns.answers, column, names, listed)
        if worths is not None:
            order = sorted({sign * worth for worth in worths})
            return [order.index(sign * worth) for worth in worths]
    return list(range(len(listed)))


def _worths(
    row: Row, answers: str, column: str | None, names: tuple[str, ...], listed: Sequence[Any]
) -> list[float] | None:
    """The numbers of a list of its own, or those beside the answers; None where there are neither."""
    if column is not None and row.values.get(column) is not None:
        numbers = as_list(row, column, row.values[column], "numbers")
        if len(numbers) != len(listed):
            found = f"there are {len(numbers)} numbers for {len(listed)} answers."
            raise fault(row, column, found, "Give one for each answer.")
        return [as_number(row, f"{column}[{index}]", number) for index, number in enumerate(numbers)]
    beside = [next((name for name in names if isinstance(each, dict) and name in each), None) for each in listed]
    if all(name is None for name in beside):
        return None
    worths = []
    for index, (each, name) in enumerate(zip(listed, beside, strict=True)):
        if name is None:
            found = f"other answers have a {names[0].removesuffix('s')}, and this one has none."
            raise fault(row, f"{answers}[{index}]", found, "Give every answer one.")
        worths.append(as_number(row, f"{answers}[{index}].{name}", each[name]))
    return worths
