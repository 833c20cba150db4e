"""Rows that an objective should not take as they look: preference pairs, labels, answers whose context would be lost.

`objection` speaks where a form was recognised but learning from it would teach something wrong; naming the form in
`data.format` overrules it. `evaluation` knows sets that are there to measure models with. `likeness` says what rows that fit
no form of text seem to be: those of another objective, or of a form with a slip in a name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import NamedTuple

from luthier.data.formats import choices, classification, scores, similar, tags
from luthier.data.formats.completion import ANSWERS, PROMPTS, candidates
from luthier.data.formats.preferences import PAIRS as PREFERENCES
from luthier.data.formats.table import Table
from luthier.data.formats.text import TEXTS
from luthier.data.formats.turns import TURN_COLUMNS, turn_column, turns_of
from luthier.data.formats.verdicts import verdict_column
from luthier.data.settings import FormatName
from luthier.types import Gives

OBJECTIVES: Mapping[Gives, str] = {
    "text": "sft",
    "labels": "classification",
    "scores": "regression",
    "tags": "token-classification",
    "choices": "multiple-choice",
    "similar": "embedding",
    "preferences": "dpo",
    "verdicts": "kto",
    "rankings": "reward",
    "prompts": "grpo",
}
"""The kind of objective that rows are made for by what they give."""

PAIRS = (*PREFERENCES, ("output_1", "output_2"))
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
OTHERS = (tags, choices, similar, classification, scores)
"""Forms whose rows are for other objectives than sft."""

_MEASURE = "Learn from rows that hold questions with answers, and keep these to measure a model with."
EVALUATION: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("prompt", "instruction_id_list"), "they are questions without answers, for evaluation.", _MEASURE),
    (("question_id", "turns"), "they are questions without answers, for evaluation.", _MEASURE),
    (
        ("answer_id", "choices"),
        "they are a model's answers without their questions, as references for evaluation.",
        "To learn these answers, join them with their questions by question_id and write messages.",
    ),
    (
        ("prompt_template", "output_format"),
        "they are templates for the prompts of a judge, for evaluation.",
        _MEASURE,
    ),
    (
        ("question", "answer_1", "answer_2", "verdict"),
        "they are a judge's verdicts on the answers of two models, for evaluation.",
        "To learn what was preferred, write the question as prompt, and the answers as chosen and rejected.",
    ),
    (
        ("model_1", "model_2", "verdict"),
        "they are a judge's verdicts on models, without questions and answers, for evaluation.",
        _MEASURE,
    ),
    (
        ("score_1", "score_2", "question_id"),
        "they are a judge's scores of models, without questions and answers, for evaluation.",
        _MEASURE,
    ),
    (
        ("message_id", "parent_id"),
        "they are single messages of conversation trees, which teach nothing apart.",
        "Leave data.format at auto, and give message_tree_id, text and role beside these; or give the file of whole trees.",
    ),
)
"""Sets that are recognised in order not to be learned: columns, what they are, what to do."""

ANSWERERS = ("assistant", "gpt", "chatgpt", "bing", "bard", "function_call")


class Doubt(NamedTuple):
    """What the rows seem to be, and what to do about it."""

    found: str
    mend: str


def objection(table: Table, name: FormatName, gives: Gives) -> Doubt | None:
    """Why rows recognised as a form should not be learned as that; None if nothing speaks against it."""
    media = _filled(table, MEDIA)
    if media:
        found = f"{media[0]} stands beside the text, which would be learned without it. Luthier learns from text alone."
        return Doubt(found, f"Leave out the rows that need {media[0]}, and the column.")
    if gives != "text":
        return None
    if name in ("chat", "sharegpt"):
        pair = _pair(table)
        if pair is not None and not _ends_with_answers(table):
            return _preference(*pair)
    if name in ("chat", "sharegpt", "alpaca", "completion"):
        verdict = verdict_column(table)
        if verdict is not None:
            found = f"{verdict} marks each answer as good or bad: preference data, which sft does not take."
            return Doubt(found, f"Keep the rows whose {verdict} is true, and remove the column.")
    if name in ("alpaca", "completion"):
        read = ("history", "system") if name == "alpaca" else ()
        contexts = [column for column in _filled(table, CONTEXTS) if column.lower() not in read]
        if contexts:
            found = f"the answers may rest on {contexts[0]}, which would not be part of the prompt."
            mend = f"Join {contexts[0]} into the prompt, or set data.format to {name} to go without it."
            return Doubt(found, mend)
    return _beside_text(table) if name == "text" else None


def _beside_text(table: Table) -> Doubt | None:
    """What stands beside a text that speaks against learning the text alone."""
    measures = evaluation(table)
    if measures is not None:
        return measures
    others = table.columns((*LABELS, *PROMPTS, *ANSWERS))
    if not others:
        return None
    found = f"{others[0]} stands beside the text: rows of classification or of another task, not plain text."
    mend = (
        f"{_send_to('labels')} To learn to write it instead, write prompt and completion (the {others[0]}) for that task, or "
        "set data.format to text to learn the text alone."
    )
    return Doubt(found, mend)


def likeness(table: Table) -> Doubt:
    """What rows that fit no form of text seem to be."""
    pair = _pair(table)
    if pair is not None:
        return _preference(*pair)
    other = _of_another_objective(table)
    if other is not None:
        return other
    prompts, answers = candidates(table)
    if len(prompts) + len(answers) > 2 and prompts and answers:
        found = f"prompt ({' or '.join(prompts)}) and answer ({' or '.join(answers)}) pair in more than one way."
        return Doubt(
            found,
            f"Rename the two columns that you mean to prompt and completion, or {_by_template(prompts[0], answers[0])}.",
        )
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
        mend = "Add the answers as completion; or set objective.kind to grpo, where the model writes them itself."
        return Doubt(f"there is {prompts[0]} but no answer to learn.", mend)
    labels = table.columns(LABELS)
    if labels and any(kind == "text" for column, kind in table.kinds.items() if column not in labels):
        found = f"with {labels[0]} they look like rows of classification or labelling."
        mend = f"{_send_to('labels')} To learn to write it, write the text as prompt and the {labels[0]} as completion."
        return Doubt(found, mend)
    texts = [column for column in table.usual if table.kinds[column] == "text"]
    if len(texts) == 2:
        return Doubt("", f"Rename the columns to those of one of the forms, or {_by_template(*texts)}.")
    return Doubt("", "Rename the columns to those of one of the forms.")


def evaluation(table: Table) -> Doubt | None:
    """That the rows are there to measure models with."""
    known = ((found, mend) for columns, found, mend in EVALUATION if len(table.columns(columns)) == len(columns))
    return next((Doubt(found, mend) for found, mend in known), None)


def _of_another_objective(table: Table) -> Doubt | None:
    """What another objective than sft would read the rows as."""
    for form in OTHERS:
        recognition = form.recognise(table)
        if recognition is not None:
            found = f"they look like rows of {form.NAME}: {recognition.reason}."
            example = '{prompt: "{…}\\n", completion: "{…}"}'
            return Doubt(
                found, f"{_send_to(form.GIVES)} To learn to write the answers, map them with data.template: {example}."
            )
    return None


def _send_to(gives: Gives) -> str:
    """Which objective to set."""
    to = {"labels": "tell classes apart", "scores": "give the numbers", "tags": "tag the words"}
    return f"To {to.get(gives, 'learn from them')}, set objective.kind to {OBJECTIVES[gives]}."


def _by_template(prompt: str, answer: str) -> str:
    return f'map them with data.template: {{prompt: "{{{prompt}}}\\n", completion: "{{{answer}}}"}}'


def _preference(preferred: str, other: str) -> Doubt:
    found = f"they are preference pairs ({preferred} and {other}), which sft does not take."
    mend = f"To learn which is better, set objective.kind to dpo. To learn the answers in {preferred} alone,"
    if (preferred, other) not in PREFERENCES:
        return Doubt(found, f"{mend} write them as prompt and completion, or as messages.")
    named = "name the form in data.format: preferences, or hh-rlhf for transcripts with Human: and Assistant:."
    return Doubt(found, f"{mend} {named}")


def _pair(table: Table) -> tuple[str, str] | None:
    for names in PAIRS:
        found = table.columns(names)
        if len(found) == 2:
            return found[0], found[1]
    return None


def _filled(table: Table, names: tuple[str, ...]) -> list[str]:
    """The columns among these names that hold something in any of the first rows."""
    return [column for column in table.columns(names) if any(row.values.get(column) for row in table.first)]


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
