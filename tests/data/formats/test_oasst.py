"""Trees of messages → threads and pairs, against a search through the trees by brute force."""

from __future__ import annotations

from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
from form_rows import fault_of, records_of, rows_of, said, shared_rows

from luthier.data.formats import to_records
from luthier.data.settings import Wishes
from luthier.errors import DataError
from luthier.types import Conversation, Preference

ALL = Wishes(threads="all")


def message(text: str, *replies: dict[str, Any], rank: int | None = None, **keys: Any) -> dict[str, Any]:
    """A message whose role its first letter tells: p for a prompter's, a for an answer."""
    role = "prompter" if text.startswith("p") else "assistant"
    ranked = {} if rank is None else {"rank": rank}
    return {"text": text, "role": role, "replies": list(replies), **ranked, **keys}


def tree(root: dict[str, Any]) -> dict[str, Any]:
    return {"message_tree_id": "x", "tree_state": "ready_for_export", "prompt": root}


SAMPLE = tree(
    message(
        "p1",
        message("a-second", message("p-b", message("a-b")), rank=1),
        message(
            "a-best",
            message("p-short"),
            message("p-long", message("a-end", message("p-unanswered"))),
            rank=0,
        ),
        message("a-unranked", rank=None),
    )
)


# ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_best_thread_follows_ranks_then_the_most_messages_below_and_ends_with_an_answer() -> None:
    (record,) = records_of(SAMPLE, form="oasst")
    assert isinstance(record, Conversation)
    assert said(record.messages) == [
        ("user", "p1", None),
        ("assistant", "a-best", None),
        ("user", "p-long", None),
        ("assistant", "a-end", None),
    ]


def test_of_replies_that_are_equally_good_the_first_is_taken() -> None:
    (record,) = records_of(tree(message("p", message("a1"), message("a2"))))
    assert isinstance(record, Conversation)
    assert record.messages[1].content == "a1"


def test_all_threads_end_in_every_last_answer_and_learn_each_answer_once() -> None:
    records = records_of(SAMPLE, wishes=ALL)
    threads = [[(message.content, message.learn) for message in record.messages] for record in records]  # type: ignore[union-attr]
    assert threads == [
        [("p1", None), ("a-second", None), ("p-b", None), ("a-b", None)],
        [("p1", None), ("a-best", None), ("p-long", None), ("a-end", None)],
        [("p1", None), ("a-unranked", None)],
    ]
    shared = tree(message("p", message("a", message("p1", message("a1")), message("p2", message("a2")))))
    learned = [
        [message.learn for message in record.messages if message.role == "assistant"]
        for record in records_of(shared, wishes=ALL)
    ]  # type: ignore[union-attr]
    assert learned == [[None, None], [False, None]]


def test_deleted_messages_are_left_out_with_all_below_them() -> None:
    gone = message("a-gone", message("p", message("a")), rank=0, deleted=True)
    (record,) = records_of(tree(message("p1", gone, message("a-kept", rank=1))))
    assert isinstance(record, Conversation)
    assert [turn.content for turn in record.messages] == ["p1", "a-kept"]


# ── pairs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pairs_are_siblings_of_different_ranks_after_what_both_answer() -> None:
    second = message("p2", message("a3", rank=2), message("a1", rank=0), message("a1b", rank=0), message("a-none"))
    records = records_of(tree(message("p1", message("a0", second))), takes="preferences", form="oasst")
    pairs = []
    for record in records:
        assert isinstance(record, Preference)
        assert isinstance(record.chosen, Conversation)
        assert isinstance(record.rejected, Conversation)
        for side in (record.chosen, record.rejected):
            assert said(side.messages[:-1]) == [("user", "p1", None), ("assistant", "a0", False), ("user", "p2", None)]
        pairs.append((record.chosen.messages[-1].content, record.rejected.messages[-1].content))
    assert pairs == [("a1", "a3"), ("a1b", "a3")]


def test_trees_without_a_pair_are_counted_and_without_any_pair_refused() -> None:
    alone = tree(message("p", message("a", rank=0)))
    two = tree(message("p", message("a", rank=0), message("a2", rank=1)))
    found = to_records(rows_of(alone, two, alone), "auto", "preferences")
    assert [origin.line for _, origin in found.records] == [2]
    assert "2 rows hold nothing of what is to be learned." in found.notes
    with pytest.raises(DataError, match="none of them holds what is to be learned"):
        to_records(rows_of(alone), "auto", "preferences")


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────

BROKEN: list[tuple[dict[str, Any], str, str, str]] = [
    (message("p"), "prompt.replies", "nothing answers", "Leave"),
    (
        message("p", message("a ", message("p", message("")))),
        "prompt.replies[0].replies[0].replies[0].text",
        "empty",
        "Fill",
    ),
    (message("a", message("p")), "prompt.role", "the prompter begins", "Correct"),
    (message("p", message("p2")), "prompt.replies[0].role", "the prompter begins", "Correct"),
    (message("p", message("a", rank=0.5)), "prompt.replies[0].rank", "whole number", "0 for the best"),  # type: ignore[arg-type]
    (message("p", message("a"), "x"), "prompt.replies[1]", "found text", '"replies"'),  # type: ignore[arg-type]
    ({"text": "p", "replies": []}, "prompt.role", "missing", "Add 'role'"),
    ({"text": "p", "role": "user?", "replies": []}, "prompt.role", "'user?'", "'prompter'"),
    ({"text": "p", "role": "prompter", "replies": 3}, "prompt.replies", "found a number", "list"),
]


@pytest.mark.parametrize(("root", "field", "found", "mend"), BROKEN)
def test_a_broken_tree_names_the_message_and_the_mend(root: dict[str, Any], field: str, found: str, mend: str) -> None:
    fault = fault_of(tree(message("p", message("a"))), tree(root))
    assert fault.field == field
    assert found in fault.found
    assert mend in fault.mend


def test_a_tree_of_hundreds_of_levels_is_refused_in_words() -> None:
    deep = message("a")
    for level in range(1999):
        deep = message("p" if level % 2 == 0 else "a", deep)
    fault = fault_of(tree(message("p", message("a"))), tree(deep))
    assert (fault.field, "levels deep" in fault.found) == ("prompt", True)


# ── the real trees ──────────────────────────────────────────────────────────────────────────────────────────────────


def every_path(node: dict[str, Any], before: tuple[dict[str, Any], ...] = ()) -> list[tuple[dict[str, Any], ...]]:
    """Every path from the root down to any message."""
    path = (*before, node)
    return [path, *(found for reply in node["replies"] for found in every_path(reply, path))]


def size(node: dict[str, Any]) -> int:
    return len(every_path(node))


def is_best(path: tuple[dict[str, Any], ...]) -> bool:
    """Whether no sibling of any message on the path is better."""
    for parent, child in pairwise(path):
        place = [reply is child for reply in parent["replies"]].index(True)
        for index, other in enumerate(parent["replies"]):
            mine = (child.get("rank", 99), -size(child), place)
            if other is not child and (other.get("rank", 99), -size(other), index) < mine:
                return False
    return True


def test_best_threads_of_the_real_trees_are_those_of_a_brute_force(shared_data: Path) -> None:
    rows = shared_rows(shared_data / "oasst1_trees" / "en_100_tree.jsonl")
    records = [record for record, _ in to_records(rows, "auto").records]
    assert len(records) == len(rows) == 100
    for row, record in zip(rows, records, strict=True):
        paths = every_path(row.values["prompt"])
        answered = [path for path in paths if is_best(path) and path[-1]["role"] == "assistant"]
        longest = max(answered, key=len)
        assert isinstance(record, Conversation)
        assert [message.content for message in record.messages] == [node["text"] for node in longest]


def test_all_threads_of_the_real_trees_hold_every_answer_learned_once(shared_data: Path) -> None:
    rows = shared_rows(shared_data / "oasst1_trees" / "en_100_tree.jsonl")
    for row in rows:
        paths = every_path(row.values["prompt"])
        answers = [path for path in paths if path[-1]["role"] == "assistant"]
        ends = [path for path in answers if not any(other[: len(path)] == path and other != path for other in answers)]
        records = [record for record, _ in to_records([row], "auto", "text", ALL).records]
        assert len(records) == len(ends)
        learned = [m for record in records for m in record.messages if m.role == "assistant" and m.learn is None]  # type: ignore[union-attr]
        assert sorted(m.content for m in learned) == sorted(path[-1]["text"] for path in answers)


def test_pairs_of_the_real_trees_are_all_siblings_by_their_ranks(shared_data: Path) -> None:
    rows = shared_rows(shared_data / "oasst1_trees" / "en_100_tree.jsonl")
    for row in rows:
        expected = set()
        for path in every_path(row.values["prompt"]):
            asked = tuple(node["text"] for node in path)
            answers = [reply for reply in path[-1]["replies"] if reply["role"] == "assistant"]
            for better, worse in permutations(answers, 2):
                if better.get("rank", 99) < worse.get("rank", -1):
                    expected.add((asked, better["text"], worse["text"]))
        found = []
        for record, _ in to_records([row], "auto", "preferences").records:
            assert isinstance(record, Preference)
            chosen, rejected = record.chosen, record.rejected
            assert isinstance(chosen, Conversation)
            assert isinstance(rejected, Conversation)
            assert chosen.messages[:-1] == rejected.messages[:-1]
            asked = tuple(message.content for message in chosen.messages[:-1])
            found.append((asked, chosen.messages[-1].content, rejected.messages[-1].content))
        assert sorted(found) == sorted(expected)
