"""Verdicts: an answer, and whether it is a good one.

    {"prompt": "Hi", "completion": "Hello!", "label": true}
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "label": false}

The form of Kahneman-Tversky optimization (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306) in TRL, whose prompts
and completions may be lists of messages, and in LLaMA-Factory, which also calls the verdict `kto_tag`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from luthier.data.formats import chat, completion, sharegpt
from luthier.data.formats.table import Recognition, Table, fault, required
from luthier.data.formats.turns import unlearned
from luthier.data.reading import Row, kind_of
from luthier.data.settings import FormatName
from luthier.types import Conversation, Gives, Record, Verdict

NAME: FormatName = "verdicts"
GIVES: Gives = "verdicts"
COLUMNS = "prompt, completion and label true or false (or messages and label)"

LABELS = ("label", "kto_tag")
WORDS = {"true": True, "false": False}


def recognise(table: Table) -> Recognition | None:
    """Rows with a label that is true or false beside a conversation, or a prompt and a completion."""
    label = verdict_column(table)
    form = next((found for form in (chat, sharegpt, completion) if (found := form.recognise(table))), None)
    if label is None or form is None:
        return None
    reason = f"{label} says whether the answer is good, and {form.reason}"
    answered = form.to_records
    return Recognition(reason, form.reads | {label}, lambda row: (_verdict(row, answered, label),), form.notes)


def verdict_column(table: Table) -> str | None:
    """The column that says true or false of every answer."""
    labels = table.columns(LABELS)
    return next((column for column in labels if all(_is_verdict(value) for value in table.values(column))), None)


def _is_verdict(value: object) -> bool:
    return str(value).lower() in WORDS


def _verdict(row: Row, answered: Callable[[Row], Any], label: str) -> Verdict:
    """The row's answer with its verdict; of a conversation the last answer is judged."""
    (record,) = answered(row)
    value = required(row, row.values, label, label)
    if not _is_verdict(value):
        found = f"expected true or false, found {kind_of(value)}: {str(value)[:40]!r}."
        raise fault(row, label, found, "Write true for a good answer, false for a bad one.")
    return Verdict(_only_last_learned(record), WORDS[str(value).lower()])


def _only_last_learned(record: Record) -> Any:
    if not isinstance(record, Conversation):
        return record
    *before, last = record.messages
    return replace(record, messages=(*unlearned(before), last))
