"""Questions about a text: the text, a question, and its answer.

    {"context": "Ann built the bridge in 1901.", "question": "Who built the bridge?", "answer": "Ann"}

Read are answers in a column of their own, and SQuAD (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250) as published:
articles with paragraphs, each with questions and with answers that say where in the text they stand, which is checked. Of
several answers the first is learned, and a model's is measured against all. A question that SQuAD 2.0 marks as having none is answered
`unanswerable`. Rows with a class for an answer (BoolQ's label, PubMedQA's final_decision) can be learned as text too: true
and false are then written yes and no.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from luthier.data.formats.table import (
    FurtherForm,
    Recognition,
    Table,
    as_filled_text,
    as_joined_text,
    as_list,
    as_object,
    fault,
    one,
    required,
)
from luthier.data.reading import Row, kind_of
from luthier.data.settings import FormatName
from luthier.types import Completion, Gives, answered

NAME: FormatName = "qa"
GIVES: Gives = "text"
COLUMNS = "context, question and answer (or SQuAD's paragraphs, or context, question and answers)"

CONTEXTS = ("context", "contexts", "passage", "passages", "document", "documents", "article", "paragraph")
QUESTIONS = ("question", "query", "instruction")
ANSWERS = ("answers", "answer", "response", "output")
DECISIONS = ("final_decision", "label", "answer")
UNANSWERABLE = "unanswerable"
WORDS = {True: "yes", False: "no"}


def recognise(table: Table) -> Recognition | None:
    """SQuAD's articles, or rows with a text, a question about it and an answer."""
    paragraphs = table.named(("paragraphs",), ("a list",))
    if paragraphs is not None and table.mostly(paragraphs, _is_article):
        reason = f"{paragraphs} have texts, and questions with answers"
        return Recognition(reason, frozenset({paragraphs, "title"}), lambda row: _of_article(row, paragraphs))
    context, question = table.texts(CONTEXTS), table.named(QUESTIONS)
    answer = table.named(ANSWERS, ("text", "a list", "an object"))
    if context is None or question is None or answer is None or table.column("input") is not None:
        return None
    reason = f"{answer} answers {question} about {context}"
    make = one(to_record, context=context, question=question, answer=answer)
    return Recognition(reason, frozenset({context, question, answer}), make)


def _recognise_decisions(table: Table) -> Recognition | None:
    """Rows with a text, a question about it, and a class that answers."""
    context, question = table.texts(CONTEXTS), table.named(QUESTIONS)
    answer = table.named(DECISIONS, ("text", "true or false", "a number"))
    if context is None or question is None or answer is None or table.column("input") is not None:
        return None
    reason = f"{answer} decides {question} about {context}"
    make = one(to_record, context=context, question=question, answer=answer)
    return Recognition(reason, frozenset({context, question, answer}), make)


DECIDED = FurtherForm(NAME, GIVES, "context (or passage), question and label (or final_decision)", _recognise_decisions)


def to_record(row: Row, context: str = "context", question: str = "question", answer: str = "answer") -> Completion:
    """The row's text (where it has one) and question with a line break, and the first answer."""
    given = row.values.get(context)
    text = as_joined_text(row, context, given, "the text") if given not in (None, "", []) else ""
    asked = as_filled_text(row, question, required(row, row.values, question, question), "the question").strip()
    value = required(row, row.values, answer, answer)
    return answered(_prompt(text.strip(), asked), _answers(row, answer, value, text))


def _prompt(text: str, asked: str) -> str:
    return f"{text}\n\n{asked}\n" if text else f"{asked}\n"


def _answers(row: Row, field: str, value: Any, text: str) -> tuple[str, ...]:
    """The answers in any of the ways in which they are written: one, several, or with their places in the text."""
    if isinstance(value, bool):
        return (WORDS[value],)
    if isinstance(value, int):
        return (str(value),)
    if isinstance(value, dict):
        return _with_places(row, field, value, text)
    if isinstance(value, list) and not any(isinstance(part, dict) for part in value):
        if not value:
            raise fault(row, field, "there is no answer.", "Add one, or leave this row out.")
        return tuple(as_filled_text(row, f"{field}[{i}]", part, "the answer").strip() for i, part in enumerate(value))
    if isinstance(value, list):
        return tuple(answer for i, part in enumerate(value) for answer in _placed(row, f"{field}[{i}]", part, text))
    return (as_filled_text(row, field, value, "the answer").strip(),)


def _with_places(row: Row, field: str, value: dict[str, Any], text: str) -> tuple[str, ...]:
    """SQuAD's answers as the hub has them: a list of texts, and one of their places."""
    listed = as_list(row, f"{field}.text", required(row, value, "text", f"{field}.text"), "answers")
    starts = value.get("answer_start")
    if not listed:
        return (UNANSWERABLE,)
    places: Sequence[Any] = (
        [None] * len(listed) if starts is None else as_list(row, f"{field}.answer_start", starts, "places")
    )
    if len(places) != len(listed):
        found = f"there are {len(listed)} answers and {len(places)} places."
        raise fault(row, f"{field}.answer_start", found, "Give every answer one place.")
    return tuple(
        _in_place(row, f"{field}.text[{i}]", f"{field}.answer_start[{i}]", part, place, text)
        for i, (part, place) in enumerate(zip(listed, places, strict=True))
    )


# ── articles ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _is_article(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(part, dict) and "qas" in part for part in value)


def _of_article(row: Row, column: str) -> tuple[Completion, ...]:
    """Every question of the article with its paragraph."""
    listed = as_list(row, column, required(row, row.values, column, column), "paragraphs")
    records = tuple(record for i, part in enumerate(listed) for record in _of_paragraph(row, f"{column}[{i}]", part))
    if not records:
        raise fault(row, column, "there is no question.", "Leave this row out.")
    return records


def _of_paragraph(row: Row, field: str, value: Any) -> Iterator[Completion]:
    paragraph = as_object(row, field, value, '{"context": "…", "qas": [{"question": "…", "answers": []}]}')
    text = as_filled_text(row, f"{field}.context", required(row, paragraph, "context", f"{field}.context"), "the text")
    for i, part in enumerate(
        as_list(row, f"{field}.qas", required(row, paragraph, "qas", f"{field}.qas"), "questions")
    ):
        place = f"{field}.qas[{i}]"
        pair = as_object(row, place, part, '{"question": "…", "answers": [{"text": "…", "answer_start": 0}]}')
        asked = as_filled_text(
            row, f"{place}.question", required(row, pair, "question", f"{place}.question"), "the question"
        )
        answers = as_list(row, f"{place}.answers", required(row, pair, "answers", f"{place}.answers"), "answers")
        if not answers and not pair.get("is_impossible"):
            found = "there is no answer, and is_impossible is not true."
            raise fault(row, f"{place}.answers", found, "Add an answer, or say that the question has none.")
        found_answers = [
            answer for j, one_of in enumerate(answers) for answer in _placed(row, f"{place}.answers[{j}]", one_of, text)
        ]
        yield answered(_prompt(text.strip(), asked.strip()), found_answers or [UNANSWERABLE])


def _placed(row: Row, field: str, value: Any, text: str) -> tuple[str]:
    """The text of one of SQuAD's answers."""
    answer = as_object(row, field, value, '{"text": "…", "answer_start": 0}')
    said = required(row, answer, "text", f"{field}.text")
    return (_in_place(row, f"{field}.text", f"{field}.answer_start", said, answer.get("answer_start"), text),)


def _in_place(row: Row, field: str, start_field: str, said: Any, start: Any, text: str) -> str:
    """The answer, if it stands in the text where it says; a place is not asked for."""
    answer = as_filled_text(row, field, said, "the answer")
    if start is None:
        return answer.strip()
    if isinstance(start, bool) or not isinstance(start, int):
        raise fault(
            row,
            start_field,
            f"expected a place in the text, found {kind_of(start)}.",
            "Write its number of characters.",
        )
    if not text.startswith(answer, start) or start < 0:
        where = text.find(answer)
        mend = f"It first stands at {where}." if where >= 0 else "Copy the answer from the text, or leave this row out."
        raise fault(row, start_field, f"the answer {answer[:60]!r} does not stand at {start} of the text.", mend)
    return answer.strip()
