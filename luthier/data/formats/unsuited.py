"""Rows that supervised tuning should not take as they look: preference pairs, labels, answers whose context would be lost.

`objection` speaks where a form was recognised but learning from it would teach something wrong; naming the form in
`data.format` overrules it. `likeness` says what rows that fit no form seem to be.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple

from luthier.data.formats.completion import ANSWERS, PROMPTS, candidates
from luthier.data.formats.table import Table
from luthier.data.formats.text import TEXTS
from luthier.data.formats.turns import TURN_COLUMNS, turn_column, turns_of
from luthier.data.settings import FormatName

PAIRS = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("response_j", "response_k"),
    ("output_1", "output_2"),
)
VERDICTS = ("label", "kto_tag")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
CONTEXTS = (
    "context",
    "contexts",
    "passage",
    "passages",
    "document",
    "documents",
    "article",
    "history",
    "system",
    "system_prompt",
)
LABELS = ("label", "labels", "category", "class", "intent", "sentiment", "summary", "tags", "ner_tags")
_CLASSES = "To tell classes apart, set objective.kind to classification."
ANSWERERS = ("assistant", "gpt", "chatgpt", "bing", "bard", "function_call")


class Doubt(NamedTuple):
    """What the rows seem to be, and what to do about it."""

    found: str
    mend: str


def objection(table: Table, name: FormatName) -> Doubt | None:
    """Why rows recognised as a form should not be learned as that; None if nothing speaks against it."""
    media = _filled(table, MEDIA)
    if media:
        found = f"{media[0]} stands beside the text, which would be learned without it. Luthier learns from text alone."
        return Doubt(found, f"Leave out the rows that need {media[0]}, and the column.")
    if name in ("chat", "sharegpt"):
        pair = _pair(table)
        if pair is not None and not _ends_with_answers(table):
            return _preference(*pair)
    if name not in ("text", "classification"):
        verdict = next((column for column in table.columns(VERDICTS) if _is_verdict(table, column)), None)
        if verdict is not None:
            found = f"{verdict} marks each answer as good or bad: preference data, which sft does not take."
            return Doubt(found, f"Keep the rows whose {verdict} is true, and remove the column.")
    if name == "completion":
        contexts = _filled(table, CONTEXTS)
        if contexts:
            found = f"the answers may rest on {contexts[0]}, which would not be part of the prompt."
            return Doubt(
                found, f"Join {contexts[0]} into the prompt, or set data.format to completion to go without it."
            )
    if name == "text":
        others = table.columns((*LABELS, *PROMPTS, *ANSWERS))
        if others:
            found = f"{others[0]} stands beside the text: rows of classification or of another task, not plain text."
            mend = (
                f"{_CLASSES} To learn to write it instead, write prompt and completion (the {others[0]}) for that task, or "
                "set data.format to text to learn the text alone."
            )
            return Doubt(found, mend)
    return None


def likeness(table: Table) -> Doubt:
    """What rows that fit no form seem to be."""
    pair = _pair(table)
    if pair is not None:
        return _preference(*pair)
    if any(isinstance(value, dict) and "replies" in value for row in table.first for value in row.values.values()):
        return Doubt(
            "they look like conversation trees (messages with replies).",
            "Write each thread as messages with role and content.",
        )
    prompts, answers = candidates(table)
    if len(prompts) + len(answers) > 2 and prompts and answers:
        found = f"prompt ({' or '.join(prompts)}) and answer ({' or '.join(answers)}) pair in more than one way."
        return Doubt(found, "Rename the two columns that you mean to prompt and completion.")
    headings = [column for column in table.usual if len(column) > 60 or column.replace(".", "").isdigit()]
    if headings:
        found = (
            f"the first line was taken as the names of the columns, and {headings[0][:40]!r} does not look like one."
        )
        return Doubt(found, "Put a line with the columns' names first.")
    near = _near_name(table)
    if near is not None:
        return Doubt(f"{near[0]!r} is close to {near[1]!r}.", f"Rename it to {near[1]!r} if you mean that.")
    if prompts and not answers:
        return Doubt(f"there is {prompts[0]} but no answer to learn.", "Add the answers as completion.")
    labels = table.columns(LABELS)
    if labels and any(kind == "text" for column, kind in table.kinds.items() if column not in labels):
        found = f"with {labels[0]} they look like rows of classification or labelling."
        return Doubt(
            found, f"{_CLASSES} To learn to write it, write the text as prompt and the {labels[0]} as completion."
        )
    return Doubt("", "Rename the columns to those of one of the forms.")


def _preference(preferred: str, other: str) -> Doubt:
    found = f"they are preference pairs ({preferred} and {other}), which sft does not take."
    return Doubt(
        found, f"To learn the answers in {preferred} alone, write them as prompt and completion, or as messages."
    )


def _pair(table: Table) -> tuple[str, str] | None:
    for names in PAIRS:
        found = table.columns(names)
        if len(found) == 2:
            return found[0], found[1]
    return None


def _filled(table: Table, names: tuple[str, ...]) -> list[str]:
    """The columns among these names that hold something in any of the first rows."""
    return [column for column in table.columns(names) if any(row.values.get(column) for row in table.first)]


def _is_verdict(table: Table, column: str) -> bool:
    values = [row.values.get(column) for row in table.first]
    return all(value is None or str(value).lower() in ("true", "false") for value in values)


def _ends_with_answers(table: Table) -> bool:
    """Whether at least half of the first conversations end with an answer."""
    column = turn_column(table)
    last = [turns[-1] for turns in turns_of(table.first, column)] if column is not None else []
    answered = sum(turn.get("role", turn.get("from")) in ANSWERERS for turn in last)
    return 2 * answered >= len(last)


def _near_name(table: Table) -> tuple[str, str] | None:
    """A column whose name is nearly one that a form has, and that name."""
    known = (*TURN_COLUMNS, *PROMPTS, *ANSWERS, *TEXTS)
    for column in table.usual:
        near = difflib.get_close_matches(column.lower(), known, n=1, cutoff=0.8)
        if near and near[0] != column.lower() and abs(len(near[0]) - len(column)) <= 2:  # not question_id
            return column, near[0]
    return None
