"""Rationale: a question, its answer, and the reasoning that leads there.

    {"question": "What is 2 + 3 · 4?", "rationale": "3 · 4 = 12, and 2 + 12 = 14.", "answer": "14"}
    {"question": "What is 2 + 3 · 4?", "answer": "3 · 4 = 12, and 2 + 12 = 14.\\n#### 14"}

Chain-of-thought tuning (Wei et al. 2022, https://arxiv.org/abs/2201.11903; Chung et al. 2022,
https://arxiv.org/abs/2210.11416), in columns of its own or as GSM8K writes it (Cobbe et al. 2021,
https://arxiv.org/abs/2110.14168). With `data.rationale: learn` the rationale is learned and after it, on a line of its own,
`#### ` and the answer, as GSM8K has it; with `leave_out` the answer alone. `final_answer` finds the answer in a text.
"""

from __future__ import annotations

import re

from luthier.data.formats.completion import ANSWERS, PROMPTS
from luthier.data.formats.table import Recognition, Table, as_filled_text, fault, one, required
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Completion, Gives

NAME: FormatName = "rationale"
GIVES: Gives = "text"
COLUMNS = 'question, answer and rationale (or question and answer, which ends with "#### " and the result)'

RATIONALES = ("rationale", "reasoning", "explanation", "chain_of_thought", "cot")
MARK = "####"
_MARKED = re.compile(r"^####[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_SAID = re.compile(r"\banswer(?:\s+is|:)[ \t]*:?[ \t]*(\S.*?)[ \t]*(?=\.(?:\s|$)|$)", re.MULTILINE | re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_AMOUNT = re.compile(r"[$€£]?\s*(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)\s*%?")


def final_answer(text: str) -> str | None:
    """What a text says its answer is: after its last ####, in its last \\boxed{}, or after its last "answer is".

    An amount comes without its sign and without commas: "$1,250" is "1250". None where nothing is marked as the answer.
    """
    for way in (_MARKED, _BOXED, _SAID):
        found = way.findall(text)
        if found:
            answer = str(found[-1]).strip()
            amount = _AMOUNT.fullmatch(answer)
            return amount[1].replace(",", "") if amount else answer
    return None


def recognise(table: Table) -> Recognition | None:
    """Rows with a question, an answer and a rationale, or with a question and answers that end as GSM8K's."""
    found = columns_of(table)
    if found is None:
        return None
    question, answer, rationale = found
    reads = frozenset(column for column in found if column is not None)
    learns = table.wishes.rationale == "learn"
    if rationale is None:
        reason = f"{answer} reasons, and ends with {MARK} and the answer to {question}"
    else:
        reason = f"{rationale} gives the reasoning that leads from {question} to {answer}"
    what = "The rationale is learned, and the answer after it" if learns else "The answer alone is learned"
    note = f"{what}; data.rationale says which."
    make = one(to_record, question=question, answer=answer, rationale=rationale, learns=learns)
    return Recognition(reason, reads, make, (note,))


def columns_of(table: Table) -> tuple[str, str, str | None] | None:
    """The columns of the question, of the answer and of the rationale, which may be within the answer."""
    if table.is_headerless:
        return _numbered(table)
    questions = [column for column in table.columns(PROMPTS) if table.kinds[column] == "text"]
    answers = [column for column in table.columns(ANSWERS) if table.kinds[column] == "text"]
    if len(questions) != 1 or len(answers) != 1:
        return None
    rationale = table.named(RATIONALES)
    if rationale is None and not table.mostly(answers[0], _is_marked):
        return None
    return questions[0], answers[0], rationale


def _numbered(table: Table) -> tuple[str, str, str] | None:
    """The three columns of FLAN's files, which have no header: questions, short answers, and reasoning of some words."""
    columns = tuple(table.usual)
    if len(columns) != 3 or any(table.kinds[column] != "text" for column in columns):
        return None
    question, answer, rationale = columns
    asks = table.mostly(question, lambda value: str(value).rstrip().endswith("?") or "Options:" in str(value))
    is_short = table.mostly(answer, lambda value: len(str(value).split()) <= 3)
    reasons = table.mostly(rationale, lambda value: len(str(value).split()) >= 5)
    return (question, answer, rationale) if asks and is_short and reasons else None


def to_record(
    row: Row, question: str = "question", answer: str = "answer", rationale: str | None = None, learns: bool = True
) -> Completion:
    """The row's question with a line break, and what is learned of the rest. learns: the rationale too."""
    asked = as_filled_text(row, question, required(row, row.values, question, question), "the question")
    answered = as_filled_text(row, answer, required(row, row.values, answer, answer), "the answer")
    prompt = f"{asked.rstrip()}\n"
    if rationale is not None:
        if not learns:
            return Completion(prompt, answered.strip())
        reasons = as_filled_text(row, rationale, required(row, row.values, rationale, rationale), "the rationale")
        return Completion(prompt, f"{reasons.rstrip()}\n{MARK} {answered.strip()}")
    marked = _MARKED.findall(answered)
    if not marked:
        found = f"no line of the answer begins with {MARK} and the result, as those of other rows do."
        raise fault(row, answer, found, f"End it with a line such as {MARK} 42, or leave this row out.")
    return Completion(prompt, answered if learns else marked[-1])


def _is_marked(value: object) -> bool:
    return isinstance(value, str) and _MARKED.search(value) is not None
