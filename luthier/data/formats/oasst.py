"""OASST: trees of messages, in which every message may have several replies, ranked by people.

    {"message_tree_id": "…", "prompt": {"text": "Hi", "role": "prompter", "replies": [
        {"text": "Hello!", "role": "assistant", "rank": 0, "replies": []},
        {"text": "What?", "role": "assistant", "rank": 1, "replies": []}]}}

The form in which Open Assistant's conversations are published (Köpf et al. 2023, https://arxiv.org/abs/2304.07327), or
`message_trees.py` has made of single messages; rank 0 is the best of a message's replies. One tree gives, as `data.threads` and the objective say,

- its best thread: at each level the best reply, as Guanaco was trained (Dettmers et al. 2023,
  https://arxiv.org/abs/2305.14314). Best is the lowest rank; without ranks, as replies of prompters are, the reply with most
  messages below it, and of those the first.
- all threads, down to each last answer. An answer that several threads share is learned in the first of them.
- pairs of answers to the same message, the first ranked better: every two that have different ranks;
- or all ranked answers to a message together, for objectives that learn from rankings.

A thread ends with an answer: a last question that nothing answers is left off. Deleted messages are left out with all
below them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from luthier.data.formats.table import (
    FurtherForm,
    Recognition,
    Table,
    as_filled_text,
    as_list,
    as_object,
    fault,
    required,
)
from luthier.data.formats.turns import unlearned
from luthier.data.reading import Row, kind_of
from luthier.data.settings import FormatName
from luthier.types import Conversation, Gives, Message, Preference, Ranking, Record

NAME: FormatName = "oasst"
GIVES: Gives = "text"
COLUMNS = 'prompt: {"text": "…", "role": "prompter", "replies": [{"text": "…", "role": "assistant", "rank": 0, "replies": []}]}'

ROLES = {"prompter": "user", "user": "user", "assistant": "assistant"}
SUCH_AS = '{"text": "…", "role": "prompter", "replies": []}'


@dataclass(frozen=True)
class Node:
    """A message of a tree, with its replies in the order of the file. rank: 0 is the best among its siblings."""

    message: Message
    rank: int | None
    replies: tuple[Node, ...]

    @property
    def num_below(self) -> int:
        """Messages below this one."""
        return sum(1 + reply.num_below for reply in self.replies)

    @property
    def is_answer(self) -> bool:
        """Whether the assistant wrote it."""
        return self.message.role == "assistant"


def recognise(table: Table) -> Recognition | None:
    """Rows with a column of messages that have replies."""
    column = next((column for column in table.usual if table.mostly(column, _is_tree)), None)
    if column is None:
        return None
    reason = f"{column} is a message with replies, which have replies in turn"
    if any(row.parts for row in table.first):
        reason = "rows are single messages, of which parent_id and message_tree_id make trees"
    kept = "all threads are" if table.wishes.threads == "all" else "the thread of the best replies is"
    note = f"Of each tree {kept} learned; data.threads says which."
    make = _all_threads if table.wishes.threads == "all" else _best_thread
    return Recognition(reason, frozenset({column}), lambda row: make(row, column), (note,))


def _by_siblings(read: Callable[[Row, str], Sequence[Record]], table: Table) -> Recognition | None:
    """How trees are read for what their ranked siblings say."""
    found = recognise(table)
    if found is None:
        return None
    (column,) = found.reads
    return Recognition(found.reason, found.reads, lambda row: read(row, column), ())


def _recognise_pairs(table: Table) -> Recognition | None:
    return _by_siblings(sibling_pairs, table)


def _recognise_rankings(table: Table) -> Recognition | None:
    return _by_siblings(sibling_rankings, table)


PAIRS = FurtherForm(NAME, "preferences", COLUMNS, _recognise_pairs)
RANKINGS = FurtherForm(NAME, "rankings", COLUMNS, _recognise_rankings)


def _is_tree(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("replies"), list) and "text" in value


# ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _best_thread(row: Row, column: str = "prompt") -> tuple[Conversation, ...]:
    """The tree's best thread, in a list of one."""
    thread = [_tree(row, column)]
    while thread[-1].replies:
        thread.append(min(thread[-1].replies, key=_worth))
    while not thread[-1].is_answer:
        thread.pop()
    return (Conversation(tuple(node.message for node in thread)),)


def _all_threads(row: Row, column: str = "prompt") -> tuple[Conversation, ...]:
    """Every thread down to a last answer, in the order of the file; each answer is learned once."""
    threads = []
    learned: set[int] = set()
    for nodes in _ending_in_answers((), _tree(row, column)):
        threads.append(Conversation(tuple(_once(node, learned) for node in nodes)))
    return tuple(threads)


def _worth(node: Node) -> tuple[bool, int, int]:
    """The better a reply, the smaller; of equal ones the first is taken."""
    return node.rank is None, node.rank or 0, -node.num_below


def _ending_in_answers(before: tuple[Node, ...], node: Node) -> Iterator[tuple[Node, ...]]:
    """The paths through a node to answers that no other answer follows."""
    path = (*before, node)
    below = [thread for reply in node.replies for thread in _ending_in_answers(path, reply)]
    yield from below
    if node.is_answer and not below:
        yield path


def _once(node: Node, learned: set[int]) -> Message:
    """The node's message, not to be learned if it was before."""
    if not node.is_answer:
        return node.message
    was_learned = id(node) in learned
    learned.add(id(node))
    return replace(node.message, learn=False) if was_learned else node.message


# ── pairs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def sibling_pairs(row: Row, column: str = "prompt") -> tuple[Preference, ...]:
    """Every two answers to the same message that have different ranks, the better one first."""
    return tuple(_pairs_below((), _tree(row, column)))


def sibling_rankings(row: Row, column: str = "prompt") -> tuple[Ranking, ...]:
    """All answers to a message that have ranks, the best first, for every message with two of different ranks or more."""
    return tuple(_rankings_below((), _tree(row, column)))


def _rankings_below(before: tuple[Message, ...], node: Node) -> Iterator[Ranking]:
    path = (*before, node.message)
    of_each = {reply.message.content: reply for reply in reversed(_ranked(node))}  # of two that say the same the better
    ranked = sorted(of_each.values(), key=_worth)
    ranks = sorted({reply.rank or 0 for reply in ranked})
    if len(ranks) > 1:
        answers = tuple(Conversation((*unlearned(path), reply.message)) for reply in ranked)
        yield Ranking(answers, tuple(ranks.index(reply.rank or 0) for reply in ranked))
    for reply in node.replies:
        yield from _rankings_below(path, reply)


def _ranked(node: Node) -> list[Node]:
    """The answers to a message that have ranks, the best first."""
    return sorted((reply for reply in node.replies if reply.is_answer and reply.rank is not None), key=_worth)


def _pairs_below(before: tuple[Message, ...], node: Node) -> Iterator[Preference]:
    path = (*before, node.message)
    asked = unlearned(path)
    for better, worse in combinations(_ranked(node), 2):
        if better.rank != worse.rank and better.message.content != worse.message.content:
            yield Preference(Conversation((*asked, better.message)), Conversation((*asked, worse.message)))
    for reply in node.replies:
        yield from _pairs_below(path, reply)


# ── trees ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _tree(row: Row, column: str) -> Node:
    """The row's tree. Raises DataError for one without an answer."""
    value = required(row, row.values, column, column)
    try:
        root = _node(row, column, value, parent="assistant")
    except RecursionError as error:
        found = "replies stand in replies hundreds of levels deep."
        raise fault(row, column, found, "Leave this row out.") from error
    if not any(reply.is_answer for reply in root.replies):
        found = "nothing answers the first message, so there is nothing to learn."
        raise fault(row, f"{column}.replies", found, "Leave this row out.")
    return root


def _node(row: Row, field: str, value: Any, parent: str) -> Node:
    message = as_object(row, field, value, SUCH_AS)
    role = required(row, message, "role", f"{field}.role")
    if not isinstance(role, str) or role not in ROLES:
        found = f"the role is {role!r}, expected 'prompter' or 'assistant'."
        raise fault(row, f"{field}.role", found, "Questions have the role 'prompter', answers 'assistant'.")
    if ROLES[role] == parent:
        found = f"the role is {role!r}, where it is the other's turn: the prompter begins, then both take turns."
        raise fault(row, f"{field}.role", found, "Correct the role, or leave this row out.")
    what = "the answer" if role == "assistant" else "the prompter's message"
    text = as_filled_text(row, f"{field}.text", required(row, message, "text", f"{field}.text"), what)
    replies = message.get("replies")
    listed = [] if replies is None else as_list(row, f"{field}.replies", replies, "messages")
    kept = [(i, reply) for i, reply in enumerate(listed) if not (isinstance(reply, dict) and reply.get("deleted"))]
    return Node(
        Message(ROLES[role], text),
        _rank(row, f"{field}.rank", message.get("rank")),
        tuple(_node(row, f"{field}.replies[{i}]", reply, ROLES[role]) for i, reply in kept),
    )


def _rank(row: Row, field: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        found = f"expected the rank as a whole number, found {kind_of(value)}."
        raise fault(row, field, found, "Write 0 for the best reply, 1 for the next.")
    return int(value)
