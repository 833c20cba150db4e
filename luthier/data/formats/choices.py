"""Choices: a question, the options to choose from, and which one is right.

    {"question": "What melts ice?", "choices": ["salt", "snow"], "answer": 0}

Read are lists of options (`choices`, `options`, `endings`; on the hub also as {"text": […], "label": […]}) and options in
columns of their own (`choice1` and `choice2` of COPA, `ending0` to `ending3`, `A` to `D`). The right one is given by its
number, its letter or its text. What stands in `premise`, `passage` or `article` comes before the question. TruthfulQA (Lin et
al. 2022, https://arxiv.org/abs/2109.07958) is read from its CSV: the best answer and the wrong ones, in the order of their
letters, so that their places tell nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.formats.table import Recognition, Table, as_filled_text, as_list, fault, one, required
from luthier.data.reading import Row, kind_of
from luthier.data.settings import FormatName
from luthier.types import Choice, Gives

NAME: FormatName = "choices"
GIVES: Gives = "choices"
COLUMNS = "question, choices (a list, or choice1, choice2, …) and answer (number, letter or text of the right one)"

LISTS = ("choices", "options", "endings")
STEMS = ("choice", "option", "ending", "sol", "alternative", "answer")
SERIES = (
    *(tuple(f"{stem}{start + number}" for number in range(10)) for stem in STEMS for start in (0, 1)),
    tuple("abcdefgh"),
)
"""Names of columns that hold one option each."""

ANSWERS = ("label", "answer", "answerkey", "answer_key", "answer_index", "correct", "gold")
QUESTIONS = ("question", "ctx", "sentence", "goal", "stem", "prompt", "query")
CONTEXTS = ("premise", "passage", "article", "context", "startphrase")
ASKED = {"cause": "What was the cause?", "effect": "What was the effect?"}
"""COPA's column question holds one of these words."""

TRUTHFUL = ("question", "best answer", "incorrect answers")


@dataclass(frozen=True)
class Columns:
    """Where a row's parts are. options: one column that lists them, or one for each. start: the number of the first."""

    asked: tuple[str, ...]
    options: tuple[str, ...]
    answer: str
    start: int


def recognise(table: Table) -> Recognition | None:
    """Rows with options, which one is right, and a question or what they go on from."""
    truthful = table.columns(TRUTHFUL)
    if len(truthful) == len(TRUTHFUL):
        question, best, wrong = truthful
        reason = f"{best} and {wrong} are options for {question}"
        return Recognition(reason, frozenset(truthful), one(_truthful, question=question, best=best, wrong=wrong))
    options = _option_columns(table)
    asked = (*table.columns(CONTEXTS)[:1], *table.columns(QUESTIONS)[:1])
    answer = next((column for column in table.columns(ANSWERS) if column not in options), None)
    if not options or not asked or answer is None or table.kinds[answer] not in ("text", "a number", "true or false"):
        return None
    columns = Columns(asked, options, answer, _start(table, options, answer))
    reason = f"{answer} says which of {', '.join(options)} is right"
    notes = (f"The answers in {answer} count from 1.",) if columns.start == 1 else ()
    return Recognition(reason, frozenset({*asked, *options, answer}), one(to_record, columns=columns), notes)


def to_record(row: Row, columns: Columns = Columns(("question",), ("choices",), "answer", 0)) -> Choice:
    """The row's question, options and answer."""
    if len(columns.options) == 1:
        options, letters = _listed(row, columns.options[0])
    else:
        filled = [column for column in columns.options if row.values.get(column) not in (None, "")]
        options = [as_filled_text(row, column, row.values[column], "the option") for column in filled]
        letters = filled
    field = columns.options[0]
    if len(options) < 2:
        raise fault(row, field, "there are fewer than two options.", "Give at least two, or leave this row out.")
    twice = next((option for option in options if options.count(option) > 1), None)
    if twice is not None:
        raise fault(row, field, f"the option {twice[:60]!r} is there twice.", "Give each option once.")
    return Choice(_question(row, columns.asked), tuple(options), _answer(row, columns, options, letters))


def _truthful(row: Row, question: str, best: str, wrong: str) -> Choice:
    asked = as_filled_text(row, question, required(row, row.values, question, question), "the question").strip()
    right = as_filled_text(row, best, required(row, row.values, best, best), "the best answer").strip()
    listed = as_filled_text(row, wrong, required(row, row.values, wrong, wrong), "the list of wrong answers")
    others = [part.strip() for part in listed.split(";") if part.strip()]
    if right in others:
        raise fault(row, wrong, "the best answer is among the wrong ones.", "Take it out there, or leave this row out.")
    options = sorted({right, *others})
    if len(options) < 2:
        raise fault(row, wrong, "there is no wrong answer.", "Give one, or leave this row out.")
    return Choice(asked, tuple(options), options.index(right))


# ── the parts of a row ──────────────────────────────────────────────────────────────────────────────────────────────


def _option_columns(table: Table) -> tuple[str, ...]:
    """The column that lists the options, or the columns that hold one each."""
    listed = next((column for column in table.columns(LISTS) if table.mostly(column, _is_list)), None)
    if listed is not None:
        return (listed,)
    for names in SERIES:
        found = [column for name in names if (column := table.named((name,))) is not None]
        if len(found) >= 2 and found[0].lower() == names[0]:
            return tuple(found)
    return ()


def _is_list(value: object) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("text"), list)
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


def _listed(row: Row, column: str) -> tuple[list[str], list[str]]:
    """The options of a list, and what each is called."""
    value = required(row, row.values, column, column)
    names: Sequence[Any] = ()
    if isinstance(value, dict):
        names, value = value.get("label") or (), required(row, value, "text", f"{column}.text")
    parts = as_list(row, column, value, "options")
    options = [as_filled_text(row, f"{column}[{index}]", part, "the option") for index, part in enumerate(parts)]
    return options, [str(name) for name in names] if len(names) == len(options) else []


def _question(row: Row, asked: tuple[str, ...]) -> str:
    parts = [
        as_filled_text(row, column, required(row, row.values, column, column), f"the {column}") for column in asked
    ]
    if len(parts) == 2 and parts[1] in ASKED:
        return f"{parts[0]} {ASKED[parts[1]]}"
    return "\n\n".join(parts)


def _start(table: Table, options: tuple[str, ...], answer: str) -> int:
    """Whether the answers count from 0 or from 1: from 1 if none is 0 and one is the number of the options."""
    if table.kinds[answer] == "true or false":
        return 0
    counts = (how_many(row, options) for row in table.rows)
    pairs = [
        (number, count)
        for row, count in zip(table.rows, counts, strict=True)
        if (number := number_in(row.values.get(answer))) is not None
    ]
    return counted_from(pairs)


def counted_from(pairs: Sequence[tuple[int, int]]) -> int:
    """What the answers of rows count from, by each one's number and how many options its row has."""
    from_one = bool(pairs) and min(number for number, _ in pairs) == 1
    return int(from_one and any(number == count for number, count in pairs))


def how_many(row: Row, options: tuple[str, ...]) -> int:
    """How many options a row has."""
    if len(options) > 1:
        return sum(row.values.get(column) not in (None, "") for column in options)
    value = row.values.get(options[0])
    listed = value.get("text") if isinstance(value, dict) else value
    return len(listed) if isinstance(listed, list) else 0


def number_in(value: object) -> int | None:
    """The whole number that a value is, or that its digits spell."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() else None


def _answer(row: Row, columns: Columns, options: list[str], letters: list[str]) -> int:
    """The index of the right option, by its name, its text, its letter or its number."""
    value = required(row, row.values, columns.answer, columns.answer)
    word = value.strip() if isinstance(value, str) else None
    ways: tuple[Callable[[], int | None], ...] = (
        lambda: letters.index(word) if word in letters else None,
        lambda: options.index(word) if word in options else None,
        lambda: _letter(word),
        lambda: None if (number := number_in(value)) is None else number - columns.start,
    )
    index = next((place for way in ways if (place := way()) is not None), None)
    if index is None or not 0 <= index < len(options):
        said = f"{value!r}"[:40] if isinstance(value, str | int | float) else kind_of(value)
        wrong = f"the answer {said} is none of the {len(options)} options."
        raise fault(row, columns.answer, wrong, "Give the number, the letter or the text of the right one.")
    return index


def _letter(word: str | None) -> int | None:
    """Which letter a word is, counted from A: A, a, (A) and A. are the first."""
    bare = (word or "").strip("().: ")
    return ord(bare.upper()) - ord("A") if len(bare) == 1 and bare.isascii() and bare.isalpha() else None
