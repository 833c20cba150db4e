"""Trees of messages → threads and pairs, against a search through the trees by brute force."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
from form_rows import fault_of, records_of, rows_of, said, shared_rows

from luthier.cli.main import main
from luthier.data.formats import faults, to_records
from luthier.data.formats.message_trees import iter_whole_rows
from luthier.data.reading import Row
from luthier.data.settings import NO_WISHES, FormatName, RowTemplate, Wishes
from luthier.errors import DataError
from luthier.types import Conversation, Gives, PlainText, Preference, Ranking, Record

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


# ── single messages ─────────────────────────────────────────────────────────────────────────────────────────────────


def flat(node: dict[str, Any], tree_id: str, parent: str | None = None) -> Iterator[dict[str, Any]]:
    """A message and all below it as the hub has them: one a row, each with its parent's id and its tree's."""
    own = node.get("message_id") or f"{tree_id}/{node['text']}"
    beside = {key: value for key, value in node.items() if key not in ("replies", "message_id")}
    columns = {"message_id": own, "parent_id": parent, "message_tree_id": tree_id, "rank": None, "labels": {"name": []}}
    yield {**columns, **beside, "tree_state": "ready_for_export"}
    for reply in node["replies"]:
        yield from flat(reply, tree_id, own)


def message_row(own: str, parent: str | None, **beside: Any) -> dict[str, Any]:
    """A message of the tree t; its id's first letter tells its role."""
    role = "prompter" if own.startswith("p") else "assistant"
    return {"message_id": own, "parent_id": parent, "message_tree_id": "t", "text": own, "role": role, **beside}


def whole_rows(
    folder: Path, rows: list[dict[str, Any]], *, max_rows: int | None = None, format: FormatName = "auto",
    wishes: Wishes = NO_WISHES,
) -> list[Row]:  # fmt: skip
    file = folder / "messages.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(iter_whole_rows(str(file), lambda _: None, max_rows, format=format, wishes=wishes))


def contents(rows: list[Row], takes: Gives = "text", wishes: Wishes = NO_WISHES) -> list[Record]:
    return [record for record, _ in to_records(rows, "auto", takes, wishes).records]


def learned(threads: list[Record]) -> Counter[str]:
    """How often each answer is learned."""
    turns = [turn for thread in threads if isinstance(thread, Conversation) for turn in thread.messages]
    return Counter(turn.content for turn in turns if turn.role == "assistant" and turn.learn is not False)


def spoken(threads: list[Record]) -> Counter[tuple[str, ...]]:
    chats = [thread for thread in threads if isinstance(thread, Conversation)]
    return Counter(tuple(turn.content for turn in chat.messages) for chat in chats)


def answers(rankings: list[Record]) -> Counter[tuple[tuple[str, int], ...]]:
    """The prompts with the answers to them, from best to worst, each with its rank."""
    ranked = [ranking for ranking in rankings if isinstance(ranking, Ranking)]
    return Counter(tuple(zip(map(str, each.answers), each.places, strict=True)) for each in ranked)


def test_single_messages_are_the_trees_that_hold_them(tmp_path: Path) -> None:
    other = tree(message("p-other", message("a-other")))
    rows = [*flat(SAMPLE["prompt"], "x"), *flat(other["prompt"], "y")]
    assert contents(whole_rows(tmp_path, rows)) == contents(rows_of(SAMPLE, other))
    for takes in ("preferences", "rankings"):
        assert contents(whole_rows(tmp_path, rows), takes) == contents(rows_of(SAMPLE, other), takes)  # type: ignore[arg-type]
    mixed = [row for pair in zip(rows, reversed(rows), strict=True) for row in pair][::2]
    assert [row.values["message_tree_id"] for row in whole_rows(tmp_path, mixed)] == ["x", "y"]


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_real_trees_come_out_of_their_messages_in_any_order(
    shared_data: Path, tmp_path: Path, seed: int | None
) -> None:
    trees = shared_rows(shared_data / "oasst1_trees" / "en_100_tree.jsonl")
    rows = [each for row in trees for each in flat(row.values["prompt"], row.values["message_tree_id"])]
    if seed is not None:
        random.Random(seed).shuffle(rows)
    found = whole_rows(tmp_path, rows)
    assert spoken(contents(found)) == spoken(contents(trees))
    assert spoken(contents(found, wishes=ALL)) == spoken(contents(trees, wishes=ALL))
    assert learned(contents(found, wishes=ALL)) == learned(contents(trees, wishes=ALL))
    assert answers(contents(found, "rankings")) == answers(contents(trees, "rankings"))
    if seed is None:
        assert contents(found, wishes=ALL) == contents(trees, wishes=ALL)


def test_a_row_of_a_tree_stands_where_its_first_message_does_and_max_rows_counts_trees(tmp_path: Path) -> None:
    rows = [message_row("a1", "p1"), {**message_row("p2", None), "message_tree_id": "u"}, message_row("p1", None)]
    found = whole_rows(tmp_path, rows)
    assert [(row.values["message_tree_id"], row.origin.line) for row in found] == [("t", 3), ("u", 2)]
    (first,) = whole_rows(tmp_path, rows, max_rows=1)
    assert first == found[0]


def test_a_recipe_that_says_otherwise_reads_messages_as_they_are(tmp_path: Path) -> None:
    rows = [message_row("p1", None), message_row("a1", "p1")]
    (first, _) = to_records(whole_rows(tmp_path, rows, format="text"), "text").records
    assert first[0] == PlainText("p1")
    wishes = Wishes(template=RowTemplate(text="{text}"))
    assert len(whole_rows(tmp_path, rows, wishes=wishes)) == 2


def test_a_fault_of_a_message_is_told_at_its_own_line(tmp_path: Path) -> None:
    rows = [message_row("a1", "p1", text=" "), message_row("p1", None)]
    (fault,) = faults(whole_rows(tmp_path, rows), "auto")
    assert (fault.line, fault.field) == (1, "text")
    rows = [message_row("p1", None), message_row("a1", "p1", rank=0.5)]
    (fault,) = faults(whole_rows(tmp_path, rows), "auto")
    assert (fault.line, fault.field) == (2, "rank")


WELL = [message_row("p1", None), message_row("a2", "p1")]
CIRCLE = [message_row("p3", "a4"), message_row("a4", "p3"), message_row("p5", "a4")]
OUT_OF_PLACE: list[tuple[list[dict[str, Any]], int, str, str]] = [
    ([message_row("p3", "a9"), message_row("a4", "p3")], 3, "parent_id", "there is no message a9"),
    ([message_row("p3", None), message_row("a4", "p3")], 3, "parent_id", "begins in line 1 already"),
    ([message_row("a2", "p1")], 3, "message_id", "stands in line 2 already"),
    (CIRCLE, 3, "parent_id", "from which 3 messages"),
    ([message_row("p3", "p3")], 3, "parent_id", "from which 1 messages"),
    ([message_row("a3", "p1", parent_id=7)], 3, "parent_id", "found a number"),
    ([message_row("a3", "p1", deleted="False")], 3, "deleted", "expected true or false"),
    (
        [message_row(f"{'ap'[n % 2]}{n}", f"{'pa'[n % 2]}{n - 1}") for n in range(3, 300)],
        101,
        "parent_id",
        "levels deep",
    ),
]


@pytest.mark.parametrize(("rows", "line", "field", "found"), OUT_OF_PLACE)
def test_a_message_without_a_place_in_its_tree_is_a_fault_at_its_line_and_the_rest_is_read(
    tmp_path: Path, rows: list[dict[str, Any]], line: int, field: str, found: str
) -> None:
    with pytest.raises(DataError) as raised:
        whole_rows(tmp_path, [*WELL, *rows])
    assert (raised.value.line, raised.value.field) == (line, field)
    assert found in raised.value.found
    told: list[DataError] = []
    (row,) = iter_whole_rows(str(tmp_path / "messages.jsonl"), lambda _: None, on_fault=told.append)
    assert [str(each) for each in told] == [str(raised.value)]
    (record,) = contents([row])
    assert isinstance(record, Conversation)
    assert [turn.content for turn in record.messages[:2]] == ["p1", "a2"]


def test_check_of_messages_tells_their_form_and_mends_them_as_trees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        each
        for number in range(30)
        for each in flat(message(f"p{number} asks this?", message(f"a{number} is what it is.")), str(number))
    ]
    rows[5]["text"] = "It caf\u00c3\u00a9 is."
    random.Random(0).shuffle(rows)
    line = next(number for number, row in enumerate(rows, start=1) if "caf" in row["text"])
    whole_rows(tmp_path, rows)
    out = tmp_path / "mended.jsonl"
    main(["check", str(tmp_path / "messages.jsonl"), "--fix", str(out), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["form"], told["rows"]) == ("oasst", 30)
    assert told["reason"] == "rows are single messages, of which parent_id and message_tree_id make trees"
    (finding,) = [finding for finding in told["findings"] if finding["kind"] == "mojibake"]
    assert (finding["line"], finding["field"]) == (line, "text")
    assert "It caf\u00e9 is." in out.read_text(encoding="utf-8")
