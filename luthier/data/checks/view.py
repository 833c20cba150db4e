"""A row as the checks see it: its texts by field, each with the part that it plays; and what the set's rows are like.

The parts are told by the names of columns, by who speaks, and, where names say nothing, by the values of the first rows.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from luthier.data.reading import Row, kind_of
from luthier.data.reading.content import PACKINGS
from luthier.data.settings import RowTemplate
from luthier.types import Origin

Part = Literal["prompt", "answer", "system", "tool", "text", "label", "id", "other"]

SAMPLE = 2_000
"""Rows at the beginning from which a set's ways are learned."""


def named(words: str) -> frozenset[str]:
    """The words of a text as a set."""
    return frozenset(words.split())


_PROMPTS = named(
    "prompt question input query instruction instructions source mr user context contexts passage passages document "
    "article premise problem task_input history sql_prompt schema text_a"
)
_ANSWERS = named(
    "completion answer output response target ref reference summary tldr chosen rejected response_j response_k rationale "
    "long_answer solution answer_1 answer_2 output_1 output_2 preferred_output non_preferred_output assistant hypothesis "
    "label_text translation canonical_solution sql best_answer explanation reply"
)
_LABELS = named(
    "label labels category class intent sentiment final_decision entailment_judgment gold_label judgment verdict tag "
    "is_classification kto_tag stance topic"
)
_IDS = re.compile(
    r"(?i)(^|_)(id|ids|idx|uuid|guid|index|key|hash|sha\d*|url|link|tstamp|timestamp|date|pmid|version|file)$|Id$|ID$"
)
_SPEAKERS: dict[str, Part] = {
    "user": "prompt",
    "human": "prompt",
    "prompter": "prompt",
    "assistant": "answer",
    "gpt": "answer",
    "model": "answer",
    "bot": "answer",
    "chatgpt": "answer",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "tool",
    "tool_call": "tool",
}
TEXT_ENDINGS = tuple(f"{ending}{packed}" for ending in (".txt", ".text", ".md") for packed in ("", *PACKINGS))
_CONTENT_KEYS = ("content", "value", "text")


@dataclass(frozen=True)
class Cell:
    """A text of a row. peer: the field without its indices and with who speaks; what is compared with its like."""

    field: str
    peer: str
    part: Part
    text: str


@dataclass(frozen=True)
class Leaf:
    """A value of a row that is not text, or an object or list that holds others."""

    field: str
    peer: str
    value: Any


@dataclass(frozen=True)
class RowView:
    """One row: its texts, its other values, and where it came from."""

    values: dict[str, Any]
    origin: Origin
    cells: tuple[Cell, ...]
    leaves: tuple[Leaf, ...]

    def texts(self, *parts: Part) -> Iterator[Cell]:
        """The cells that play one of these parts."""
        return (cell for cell in self.cells if cell.part in parts)


@dataclass
class Layout:
    """What the first rows of a set are like.

    parts: the part that each column plays. closed: peers whose texts are of a small set (labels, options).
    numbering: columns that give each row a name of its own. is_prose: the rows are the paragraphs of a text.
    """

    parts: dict[str, Part] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    numbering: frozenset[str] = frozenset()
    is_prose: bool = False
    num_sampled: int = 0


def learn_layout(rows: Sequence[Row], template: RowTemplate | None = None) -> Layout:
    """The layout of a set, from its first rows, and from what a template makes of its columns."""
    columns = dict.fromkeys(column for row in rows for column in row.values)
    named = {} if template is None else dict(_parts_in(template))
    parts: dict[str, Part] = {}
    for column in columns:
        values = [row.values[column] for row in rows if row.values.get(column) is not None]
        parts[column] = named[column] if column in named else _part_of_column(column, values)
    _settle_text_and_label(parts, rows)
    numbering = frozenset(column for column, part in parts.items() if part == "id" and _names_rows(column, rows))
    is_prose = bool(rows) and rows[0].origin.file.lower().endswith(TEXT_ENDINGS) and [*columns] == ["text"]
    layout = Layout(parts, numbering=numbering, is_prose=is_prose, num_sampled=len(rows))
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        for cell in view_of(row, layout).cells:
            seen[cell.peer][cell.text.strip().casefold()] += 1
    layout.closed = frozenset(peer for peer, counts in seen.items() if _is_closed(counts))
    return layout


def _parts_in(template: RowTemplate) -> Iterator[tuple[str, Part]]:
    """The part of each column that a template names; of one that it names twice, the last."""
    for name, column in template.columns:
        yield column.partition(".")[0], _TEMPLATE_PARTS.get(name, "text")


_TEMPLATE_PARTS: dict[str, Part] = {
    "prompt": "prompt", "user": "prompt", "system": "system", "completion": "answer", "assistant": "answer",
    "chosen": "answer", "rejected": "answer", "label": "label", "score": "other",
}  # fmt: skip


def _part_of_column(column: str, values: Sequence[Any]) -> Part:
    name = column.strip().lower().replace(" ", "_").replace("-", "_")
    if name in _LABELS and values and not any(isinstance(value, list | dict) for value in values[:20]):
        return "label"
    if name in _ANSWERS:
        return "answer"
    if name in _PROMPTS:
        return "prompt"
    if _IDS.search(column) or _is_numbering(values):
        return "id"
    return "text" if any(isinstance(value, str) for value in values[:50]) else "other"


def _names_rows(column: str, rows: Sequence[Row]) -> bool:
    """Whether nearly each row has a value of its own in a column."""
    values = [str(row.values[column]) for row in rows if row.values.get(column) is not None]
    return len(set(values)) >= 0.9 * len(rows)


def _is_numbering(values: Sequence[Any]) -> bool:
    """Whether the values name the rows: whole numbers or words without a space, each of them once."""
    if len(values) < 20 or any(isinstance(value, list | dict | float | bool) for value in values):
        return False
    words = [str(value) for value in values]
    return len(set(words)) == len(words) and all(
        word.isascii() and len(word) < 80 and re.fullmatch(r"[\w\-./:]*\d[\w\-./:]*", word) for word in words
    )


def _settle_text_and_label(parts: dict[str, Part], rows: Sequence[Row]) -> None:
    """Where no column is named as a label or an answer: a column with few short values beside a longer text is one."""
    if len(rows) < 20 or any(part in ("label", "answer") for part in parts.values()):
        return
    texts = [column for column, part in parts.items() if part in ("text", "other")]
    for column in texts:
        values = [row.values.get(column) for row in rows]
        words = _repeated(Counter(str(value) for value in values if isinstance(value, str | int | bool)))
        is_small = 2 <= len(words) <= max(2, len(rows) // 20) and max(map(len, words)) <= 40
        if is_small and len(texts) > 1 and sum(words.values()) > 0.9 * len(rows):
            parts[column] = "label"


def _is_closed(counts: Counter[str]) -> bool:
    """Whether texts are drawn from a small set."""
    total, often = counts.total(), _repeated(counts)
    if total < 20 or not often or often.total() < 0.95 * total:
        return False
    return len(counts) <= max(2, total // 10) and max(map(len, often)) <= 120


def _repeated(counts: Counter[str]) -> Counter[str]:
    """Those that come more than once: what is there once in a set of labels may be a slip."""
    return Counter({value: count for value, count in counts.items() if count > 1})


# ── one row ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def view_of(row: Row, layout: Layout) -> RowView:
    """The row's texts and other values, with the parts that the layout gives them."""
    cells: list[Cell] = []
    leaves: list[Leaf] = []
    for column, value in row.values.items():
        part = layout.parts.get(column, "text")
        _walk(value, str(column), str(column), part, "", cells, leaves)
    return RowView(row.values, row.origin, tuple(cells), tuple(leaves))


def _walk(value: Any, place: str, peer: str, part: Part, speaker: str, cells: list[Cell], leaves: list[Leaf]) -> None:
    if isinstance(value, str):
        cells.append(Cell(place, f"{peer} ({speaker})" if speaker else peer, part, value))
        return
    leaves.append(Leaf(place, peer, value))
    if isinstance(value, list):
        for index, element in enumerate(value):
            _walk(element, f"{place}[{index}]", f"{peer}[]", part, speaker, cells, leaves)
    elif isinstance(value, dict):
        spoken = speaker_of(value)
        for key, element in value.items():
            own, said = _part_of_key(str(key), spoken, part), spoken or speaker
            who = said if key in _CONTENT_KEYS or own == part else ""
            _walk(element, f"{place}.{key}", f"{peer}.{key}", own, who, cells, leaves)


def speaker_of(turn: dict[str, Any]) -> str:
    """Who speaks in an object that is a turn; nothing for other objects."""
    for key in ("role", "from"):
        name = turn.get(key)
        if isinstance(name, str) and any(content in turn for content in _CONTENT_KEYS):
            return name.strip().lower()
    return ""


def _part_of_key(key: str, speaker: str, above: Part) -> Part:
    """The part of what stands under a key of a nested object."""
    if speaker and key in _CONTENT_KEYS:
        return _SPEAKERS.get(speaker, "text")
    name = key.lower()
    if key in ("role", "from", "type", "name", "lang") or _IDS.search(key):
        return "id"
    if name in _ANSWERS:
        return "answer"
    if name in _PROMPTS:
        return "prompt"
    return above


def turns_in(view: RowView) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The columns of a row that hold turns, with their turns; also those written as JSON in a string."""
    for column, value in view.values.items():
        listed = value
        if isinstance(value, str) and value.startswith("[{") and ('"role"' in value or '"from"' in value):
            try:
                listed = json.loads(value)
            except (ValueError, RecursionError):
                continue
        if not isinstance(listed, list) or not listed:
            continue
        turns = [turn for turn in listed if isinstance(turn, dict)]
        if len(turns) == len(listed) and any(("role" in turn or "from" in turn) for turn in turns):
            yield column, turns


# ── what a row asks and what it answers ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Halves:
    """What a row gives, piece by piece, and what it wants for it. answer_field is where the answer stands; None where there is
    none."""

    pieces: tuple[str, ...]
    answer: str
    answer_field: str | None
    is_closed: bool

    @property
    def given(self) -> str:
        """The pieces together."""
        return "\n".join(self.pieces)


def halves_of(view: RowView, layout: Layout) -> Halves:
    """The row's input and its answer or label: the label where there is one, else the answers, else all is input."""
    labels = [
        (column, view.values.get(column))
        for column, part in layout.parts.items()
        if part == "label" and column in view.values
    ]
    if labels:
        column, _ = labels[0]
        given = tuple(cell.text for cell in view.cells if cell.part not in ("label", "id"))
        numbers = "\n".join(
            str(leaf.value)
            for leaf in view.leaves
            if isinstance(leaf.value, int | float) and layout.parts.get(leaf.field) == "other"
        )
        label = json.dumps([value for _, value in labels], default=str)
        return Halves((*given, numbers) if numbers else given, label, column, True)
    answers = [cell for cell in view.cells if cell.part == "answer"]
    given = tuple(cell.text for cell in view.cells if cell.part not in ("answer", "id", "label"))
    if not answers or not any(map(str.strip, given)):
        return Halves(tuple(cell.text for cell in view.cells if cell.part != "id"), "", None, False)
    last = answers[-1]
    is_closed = len(answers) == 1 and last.peer in layout.closed
    return Halves(given, "\n".join(cell.text for cell in answers), last.field, is_closed)


def normal(text: str) -> str:
    """The text without what two copies of it may differ in: capitals, and how much white space there is."""
    return " ".join(text.split()).casefold()


def described(value: object) -> str:
    """The kind of a value, for comparing it with its peers'."""
    return "a number" if isinstance(value, float) else kind_of(value)
