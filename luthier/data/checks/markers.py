"""What templates leave behind: tokens of chat formats, headings of prompts, places that were never filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping

from luthier.data.checks.findings import Finding, Notes, Severity, excerpt
from luthier.data.checks.view import Cell, Layout, RowView

KINDS: Mapping[str, Severity] = {
    "template-marker": "error",
    "unfilled-placeholder": "error",
    "null-word": "error",
}

_TOKENS = re.compile(
    r"<\|[A-Za-z][\w ]{0,40}\|>|<｜[^｜<>]{1,40}｜>|\[/?INST\]|<</?SYS>>|</?s>(?![a-z])|<(?:bos|eos|pad|unk|mask|sep|cls)>|\[(?:PAD|CLS|SEP|MASK|UNK|EOS|BOS)\]"
    r"|<(?:start|end)_of_turn>|<\|?(?:im_start|im_end|endoftext|eot_id)\|?>|</?(?:think|tool_call|tool_response)>(?=\s*$)"
    r"|^[ \t]*#{2,3} ?(?:Human|Assistant|User|Instruction|Response|Input|System|Question|Answer|Output|Prompt|Completion) ?:",
    re.MULTILINE,
)
_SPEAKERS = re.compile(
    r"\n\n(?:Human|Assistant): |^(?:USER|ASSISTANT|SYSTEM|Human|Assistant|AI|Bot): |(?<=\s)(?:USER|ASSISTANT|Human|Assistant): (?=[A-Z])",
    re.MULTILINE,
)
_SPOKEN = ("Human:", "Assistant:", "USER:", "ASSISTANT:", "SYSTEM:", "AI:", "Bot:")
_PLACEHOLDERS = re.compile(
    r"\{\{ ?[A-Za-z_][\w.| ]{0,40} ?\}\}|\{%[^%\n]{1,60}%\}|(?<![\w$\\}{\"'`^~])\{[A-Za-z_][A-Za-z_0-9. ]{0,30}\}(?!\{)|(?:(?<=\s)|^)\{\d?\}(?=[\s.,!?]|$)"
    r"|<(?:[A-Z]{2,}(?:[_ ][A-Z0-9]{2,})*)>|<(?i:your|insert|enter|name|placeholder|answer here|user|company)[^<>\n]{0,40}>"
    r"|\[(?i:insert|your|enter|add|fill|placeholder|todo|tbd|name|company|date|answer)\b[^\]\n]{0,40}\]|\[[A-Z]+(?:_[A-Z\d]+)+\]|\[(?:[A-Z]+ ){0,3}(?:NAMES?|DATE|TIME|COMPANY|ADDRESS|E-?MAIL|PHONE|CITY|STATE|COUNTRY|TITLE|NUMBER|ID|URL|LINK|PRODUCT|PERSON|AMOUNT|PRICE|TOPIC|USER|CUSTOMER|AGE|YEAR|TEXT|LOCATION|PLACEHOLDER|REDACTED)\]"
    r"|\$\{[A-Za-z_]\w{0,40}\}|%\([a-z_]+\)s|(?<!\w)%s(?!\w)|<%=? ?\w+ ?%>|__[A-Z]{3,}(?:_[A-Z]+)*__"
    r"|(?i:lorem ipsum)|(?<![\w/])(?<!// )(?<!# )(?<!\* )(?<!-- )(?:TODO|FIXME|TBD|XXX+|PLACEHOLDER)(?::|\b)(?![\w/])"
)
_MAY_BE_OPEN = ("{", "<", "[", "%", "__", "orem", "OREM", "TODO", "FIXME", "TBD", "XXX", "PLACEHOLDER")
_NULLS = frozenset(
    {
        "nan",
        "none",
        "null",
        "n/a",
        "#n/a",
        "undefined",
        "nil",
        "[object object]",
        "<na>",
        "#ref!",
        "#value!",
        "na",
        "-",
        "--",
        "?",
        "missing",
        "todo",
        "tbd",
    }
)
_CODE = re.compile(
    r"```|[;{}]\s*\n|\bdef \w+\(|</\w+>|\bfunction\b|\bimport \w|=>|\bf\"|printf|format\(|\\(?:frac|text|begin|mathbb|left)"
)

_MEND_MARKER = "Take it out: the template of the model adds its own marks. If it parts turns, write them as messages."


def look(view: RowView, layout: Layout, notes: Notes) -> None:
    """Note marks of templates in a row's texts, and words that stand for nothing."""
    for cell in view.cells:
        if cell.part == "id":
            continue
        text = cell.text
        if len(text) < 20 and text.strip().casefold() in _NULLS and not _is_quoted(view, cell):
            found = f"{text.strip()!r} stands for no value."
            _suspect(view, cell, notes, "null-word", found, "Fill it in, or leave this row out.", 0.005)
        match = _TOKENS.search(text) if "<" in text or "[" in text or "##" in text else None
        if match is None and ": " in text and any(map(text.__contains__, _SPOKEN)):
            match = _SPEAKERS.search(text)
        if match is not None:
            found = f"{match[0].strip()!r} is a mark of a chat template or of a prompt: {_around(text, match)}."
            _suspect(view, cell, notes, "template-marker", found, _MEND_MARKER, 0.05)
        if not any(map(text.__contains__, _MAY_BE_OPEN)) or any(_CODE.search(each.text) for each in view.cells):
            continue
        if match := _PLACEHOLDERS.search(text):
            level, limit = (0, 0.02) if match[0][0] in "{$%_" else (1, 0.008)
            found = f"{match[0]!r} was never filled in: {_around(text, match)}."
            _suspect(
                view, cell, notes, "unfilled-placeholder", found, "Fill it in, or leave this row out.", limit, level
            )


def _is_quoted(view: RowView, cell: Cell) -> bool:
    """Whether the word is an answer taken from a longer text of the row."""
    word = cell.text.strip()
    return (
        cell.part == "answer"
        and len(word) > 2
        and any(each.part != "answer" and len(each.text) > 40 and word in each.text for each in view.cells)
    )


def _around(text: str, match: re.Match[str]) -> str:
    return excerpt(text, match.start(), match.end())


def _suspect(
    view: RowView, cell: Cell, notes: Notes, kind: str, found: str, mend: str, limit: float, level: int = 0
) -> None:
    finding = Finding(kind, KINDS[kind], view.origin.file, view.origin.line, cell.field, found, mend)
    notes.suspect(cell.peer, finding, limit, level)
