"""Messages of conversation trees, one a row → one row for each tree, as files of whole trees hold them.

    {"message_id": "m1", "parent_id": null, "message_tree_id": "m1", "text": "Hi", "role": "prompter"}
    {"message_id": "m2", "parent_id": "m1", "message_tree_id": "m1", "text": "Hello!", "role": "assistant", "rank": 0}

So Open Assistant's conversations lie on the hub (OpenAssistant/oasst1), and in `oasst_ready.messages.jsonl.gz`. The messages of a
tree may stand anywhere, so all are read before the first tree is given; of each is held what the form `oasst` reads. Trees come
in the order in which their first messages stand, replies in the order of their rows.

A message that has no place in its tree is a fault at its own line: its id stands twice, its parent is not there, the tree has a
first message already, or parents lead around in a circle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from luthier.data.formats.table import ROWS_TO_RECOGNISE, fault
from luthier.data.reading import Announce, OnFault, Row, iter_rows, kind_of
from luthier.data.settings import NO_WISHES, FormatName, Wishes
from luthier.errors import DataError
from luthier.types import Origin

COLUMNS = ("message_id", "message_tree_id", "text", "role")
"""What single messages have, beside `parent_id`, which the first of a tree may lack."""

_HELD = ("message_id", "text", "role", "lang", "rank", "deleted")
_MOST_LEVELS = 100
_LEAVE_OUT = "Give the file of whole trees, or leave this row out with all that answers it."


def iter_whole_rows(
    source: str | tuple[str, ...],
    announce: Announce,
    max_rows: int | None = None,
    on_fault: OnFault | None = None,
    *,
    format: FormatName = "auto",
    wishes: Wishes = NO_WISHES,
) -> Iterator[Row]:
    """The rows of `iter_rows`; but single messages of conversation trees, where a recipe takes them for these, as trees.

    max_rows: of messages, the number of trees; all messages are read.
    Raises: as `iter_rows`; DataError for a message that has no place in its tree.
    """
    rows = iter_rows(source, announce, max_rows, on_fault)
    head = list(islice(rows, ROWS_TO_RECOGNISE))
    if wishes.template is not None or format not in ("auto", "oasst") or not _are_messages(head):
        yield from chain(head, rows)
        return
    if max_rows is not None:
        head, rows = [], iter_rows(source, lambda text: None, None, on_fault)
    yield from islice(_trees(chain(head, rows), announce, on_fault), max_rows)


def _are_messages(rows: Sequence[Row]) -> bool:
    """Whether at least half of the rows are messages without their replies."""
    num_messages = sum("replies" not in row.values and row.values.keys() >= {*COLUMNS} for row in rows)
    return bool(rows) and 2 * num_messages >= len(rows)


class _Message(NamedTuple):
    """A message: its id, its parent's (None of a tree's first), what of it is held, and where it stands."""

    own: str
    parent: str | None
    held: dict[str, Any]
    row: Row


def _trees(rows: Iterator[Row], announce: Announce, on_fault: OnFault | None) -> Iterator[Row]:
    """The trees, after all rows are read."""

    def tell(error: DataError) -> None:
        if on_fault is None:
            raise error
        on_fault(error)

    trees: dict[str, list[_Message]] = {}
    for row in rows:
        try:
            trees.setdefault(_id(row, "message_tree_id"), []).append(_message(row))
        except DataError as error:
            tell(error)
    num_messages = sum(map(len, trees.values()))
    announce(f"{num_messages:,} messages, one a row, are put together into conversation trees: {len(trees):,} rows.")
    for name in list(trees):
        found, faults = _tree(name, trees.pop(name))
        for each in faults:
            tell(each)
        if found is not None:
            yield found


def _message(row: Row) -> _Message:
    values = row.values
    deleted = values.get("deleted")
    if deleted is not None and not isinstance(deleted, bool):
        found = f"expected true or false, found {kind_of(deleted)}."
        raise fault(row, "deleted", found, "Give the rows as JSONL or Parquet.")
    parent = _id(row, "parent_id") if values.get("parent_id") not in (None, "") else None
    held = {key: values[key] for key in _HELD if values.get(key) is not None}
    return _Message(_id(row, "message_id"), parent, {**held, "replies": []}, Row({}, row.origin))


def _id(row: Row, column: str) -> str:
    value = row.values.get(column)
    if not isinstance(value, str) or not value:
        raise fault(row, column, f"expected an id as text, found {kind_of(value)}.", _LEAVE_OUT)
    return value


# ── one tree ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Place(NamedTuple):
    """Where a message stands in its tree: the field that leads there, and its level, of which the first message has 1."""

    message: _Message
    path: str
    level: int


def _tree(name: str, messages: Sequence[_Message]) -> tuple[Row | None, list[DataError]]:
    """The row of a tree, None without a first message; and what is wrong with messages that have no place in it."""
    by_id, faults = _by_id(messages)
    replies: dict[str | None, list[_Message]] = {}
    for message in by_id.values():
        replies.setdefault(message.parent, []).append(message)
    roots = replies.pop(None, [])
    for message in roots[1:]:
        found = f"this message has no parent, and the tree {name} begins in line {roots[0].row.origin.line} already."
        faults.append(fault(message.row, "parent_id", found, _LEAVE_OUT))
    lost = [message for message in by_id.values() if message.parent is not None and message.parent not in by_id]
    for message in lost:
        found = f"there is no message {message.parent} in the tree {name}."
        faults.append(fault(message.row, "parent_id", found, _LEAVE_OUT))
    parts: dict[str, Origin] = {}
    for place in _from(roots[:1], replies):
        if place.level == _MOST_LEVELS + 1:
            found = f"replies stand in replies more than {_MOST_LEVELS} levels deep."
            faults.append(fault(place.message.row, "parent_id", found, _LEAVE_OUT))
        if place.level > _MOST_LEVELS:
            continue
        parts[place.path] = place.message.row.origin
        below = replies.get(place.message.own, []) if place.level < _MOST_LEVELS else []
        place.message.held["replies"] = [answer.held for answer in below]
    placed = {place.message.own for place in _from([*roots, *lost], replies)}
    circling = [message for own, message in by_id.items() if own not in placed]
    if circling:
        found = f"parents lead around in a circle, from which {len(circling)} messages of the tree {name} hang."
        faults.append(fault(circling[0].row, "parent_id", found, _LEAVE_OUT))
    if not roots:
        return None, faults
    return Row({"message_tree_id": name, "prompt": roots[0].held}, roots[0].row.origin, parts=parts), faults


def _by_id(messages: Sequence[_Message]) -> tuple[dict[str, _Message], list[DataError]]:
    """Each message by its id; and those whose id another has already."""
    by_id: dict[str, _Message] = {}
    faults: list[DataError] = []
    for message in messages:
        first = by_id.setdefault(message.own, message)
        if first is not message:
            found = f"the message {message.own} stands in line {first.row.origin.line} already."
            faults.append(fault(message.row, "message_id", found, "Leave one of the two out."))
    return by_id, faults


def _from(first: Sequence[_Message], replies: Mapping[str | None, Sequence[_Message]]) -> Iterator[_Place]:
    """The messages and all below them."""
    waiting = [_Place(message, "prompt", 1) for message in first]
    while waiting:
        message, path, level = place = waiting.pop()
        yield place
        below = enumerate(replies.get(message.own, ()))
        waiting += [_Place(answer, f"{path}.replies[{index}]", level + 1) for index, answer in below]
