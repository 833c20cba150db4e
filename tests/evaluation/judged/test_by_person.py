"""A person's judgments: blind, in orders that the pair decides, on the disk at once, and what they come to."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from luthier.data.formats import to_records
from luthier.data.reading import Row, read_rows
from luthier.errors import DataError, RunMismatch
from luthier.evaluation.judged.blind import Asked, Pair, Question, Response, pairs_of
from luthier.evaluation.judged.by_person import preference_rows, summary_of
from luthier.evaluation.judged.judgments import judged_from
from luthier.evaluation.judged.questions import prompts_in, questions_in
from luthier.evaluation.judged.records import JudgmentFile, Record
from luthier.evaluation.judged.session import Annotator, Move, Said, Shown, judge
from luthier.evaluation.judged.tournament import hold
from luthier.types import Conversation, Message, Origin, Preference

ADA = Annotator("ada", "Which is kinder?")


def pair(number: int, prompt: Asked | None = None, models: tuple[str, str] = ("base", "tuned")) -> Pair:
    texts = (f"one of {number}", f"other of {number}")
    first, second = (
        Response(str(i), text, model) for i, (text, model) in enumerate(zip(texts, models, strict=True), 1)
    )
    return Pair(f"question {number}" if prompt is None else prompt, (first, second))


PAIRS = [pair(number) for number in range(8)]


def saying(*moves: Move, seen: list[Shown | None] | None = None) -> Callable[[Shown | None], Said]:
    """Who says these, one after another, and then quits."""
    left: Iterator[Move] = itertools.chain(moves, itertools.repeat("quit"))

    def ask(shown: Shown | None) -> Said:
        if seen is not None:
            seen.append(shown)
        return Said(next(left), 1)

    return ask


def quiet(sentence: str) -> None:
    """Hear nothing."""


def judged(path: Path, *moves: Move, seen: list[Shown | None] | None = None, who: Annotator = ADA) -> int:
    """What is left of the pairs after a fresh start on a file."""
    return judge(PAIRS, JudgmentFile.opened(path, quiet), who, saying(*moves, seen=seen), quiet)


def read(path: Path) -> list[Record]:
    return JudgmentFile.opened(path, quiet).records


# ── what is shown ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_that_is_shown_tells_who_wrote_an_answer() -> None:
    seen: list[Shown | None] = []
    named = [pair(number, models=("secret-a", "secret-b")) for number in range(4)]
    judge(named, JudgmentFile(Path("unused")), ADA, saying(seen=seen), quiet)
    (shown,) = seen
    assert shown is not None
    assert "secret" not in repr(shown)
    assert {field.name for field in fields(Shown)} == {"number", "total", "prompt", "first", "second", "guideline"}


def test_the_order_is_that_of_the_pair_and_the_seed_wherever_the_pair_stands() -> None:
    orders = {each.id: each.shown(3) for each in PAIRS}
    assert all(each.shown(3) == orders[each.id] for each in reversed([pair(number) for number in range(8)]))
    many = [pair(number) for number in range(400)]
    first = [each.shown(0)[0].id == "1" for each in many]
    assert 150 < sum(first) < 250
    other = [each.shown(1)[0].id == "1" for each in many]
    assert 150 < sum(a == b for a, b in zip(first, other, strict=True)) < 250


def test_more_pairs_of_a_prompt_keep_those_that_were_drawn_before_and_alike_answers_are_counted() -> None:
    answers = tuple(Response(str(number), f"text {number}", f"m{number}") for number in range(4))
    same = (Response("1", "x", "a"), Response("2", "x", "b"))
    questions = [Question("q", answers), Question("same", same), Question("q", answers)]
    told: list[str] = []
    few, more = (pairs_of(questions, number, told.append) for number in (2, 5))
    assert [each.id for each in few] == [each.id for each in more[:2]]
    assert len({each.id for each in more}) == 5
    assert "Left out: 1 prompts that have no two different answers." in told
    assert "Left out: 2 pairs that are there already, word for word." in told
    assert any("2 of their pairs are judged" in each for each in told)
    with pytest.raises(DataError, match="nothing to judge: none of 1 prompts"):
        pairs_of(questions[1:2], 1, quiet)


# ── going on ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("after", range(1, 8))
def test_a_start_after_any_choice_goes_on_with_the_next_pair_and_ends_as_one_sitting(
    tmp_path: Path, after: int
) -> None:
    moves: list[Move] = ["first", "second", "tie", "skip", "both bad", "first", "second", "first"]
    at_once, apart = tmp_path / "at-once.jsonl", tmp_path / "apart.jsonl"
    assert judged(at_once, *moves) == 0
    assert judged(apart, *moves[:after]) == 8 - after
    seen: list[Shown | None] = []
    assert judged(apart, *moves[after:], seen=seen) == 0
    assert seen[0] is not None
    assert (seen[0].number, seen[0].total, seen[0].prompt) == (after + 1, 8, f"question {after}")
    without_time = [
        [{**json.loads(line), "seconds": 0} for line in path.read_text().splitlines()] for path in (at_once, apart)
    ]
    assert without_time[0] == without_time[1]


def test_a_choice_is_in_the_file_before_the_next_pair_is_shown(tmp_path: Path) -> None:
    path, lines = tmp_path / "judgments.jsonl", []

    def ask(shown: Shown | None) -> Said:
        lines.append(len(path.read_text().splitlines()) if path.exists() else 0)
        return Said("quit" if len(lines) == 4 else "tie")

    judge(PAIRS, JudgmentFile(path), ADA, ask, quiet)
    assert lines == [0, 1, 2, 3]


def test_seconds_are_from_showing_to_choice(tmp_path: Path) -> None:
    clock = iter([10.0, 12.5, 100.0, 107.0, 200.0, 200.0])
    judge(PAIRS, JudgmentFile(tmp_path / "j.jsonl"), ADA, saying("first", "tie"), quiet, lambda: next(clock))
    assert [each.seconds for each in read(tmp_path / "j.jsonl")] == [2.5, 7.0]


def test_the_last_choice_is_taken_back_within_a_sitting_after_it_and_after_all(tmp_path: Path) -> None:
    path = tmp_path / "judgments.jsonl"
    assert judged(path, "first", "second", "undo", "tie") == 6
    assert [each.tie for each in read(path)] == [False, True]
    assert judged(path, "undo", "undo", "undo", "second") == 7  # the third finds nothing
    assert [each.outcome for each in read(path)] == [0.0]
    seen: list[Shown | None] = []
    assert judged(path, *["first"] * 7, "undo", seen=seen) == 1
    assert seen[7] is None
    assert seen[8] is not None
    assert len(read(path)) == 7


def test_several_people_judge_into_one_file_and_each_takes_back_their_own(tmp_path: Path) -> None:
    path, bob = tmp_path / "judgments.jsonl", Annotator("bob", seed=1)
    judged(path, "first", "second")
    assert judged(path, "second", "second", "tie", who=bob) == 5
    assert judged(path, "undo") == 7
    assert [each.annotator for each in read(path)] == ["ada", "bob", "bob", "bob"]
    held = hold(judged_from(read_rows(str(path), quiet)), orders=10)
    assert [(one.left, one.right, one.num_pairs) for one in held.judges] == [("ada", "bob", 1)]


def test_judgments_of_other_pairs_or_orders_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "judgments.jsonl"
    judged(path, "first", "first", "first")
    file = JudgmentFile.opened(path, quiet)
    with pytest.raises(RunMismatch, match=r"1 of its 3 judgments are of other pairs than these 7"):
        judge(PAIRS[1:], file, ADA, saying("first"), quiet)
    with pytest.raises(RunMismatch, match="other orders"):
        judge(PAIRS, file, Annotator("ada", seed=next(s for s in range(1, 99) if _differs(s))), saying("first"), quiet)
    assert judge([*PAIRS, pair(8)], file, ADA, saying(), quiet) == 6, "a file that grew is the same file"


def _differs(seed: int) -> bool:
    return any(each.shown(seed) != each.shown(0) for each in PAIRS[:3])


def test_a_last_line_that_was_cut_off_is_removed_aloud_and_asked_again(tmp_path: Path) -> None:
    path, told = tmp_path / "judgments.jsonl", []
    judged(path, "first", "second")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    file = JudgmentFile.opened(path, told.append)
    assert "its last line was cut off" in told[0]
    assert path.read_bytes() == whole[: whole.index(b"\n") + 1]
    assert [each.pair for each in file.records] == PAIRS[:1]


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"choice": "9"}, "choice", "none of the answers 1 and 2"),
        ({"choice": ["1"]}, "choice", "none of the answers 1 and 2"),
        ({"strength": 9}, "strength", "none of"),
        ({"tie": True}, "choice", "a choice, a tie, or skipped"),
        ({"shown_order": ["1", "1"]}, "shown_order", "does not name the two answers"),
        ({"prompt": "Another?"}, "id", "changed by hand"),
        ({"responses": []}, "responses", "two answers"),
        ({"seconds": "long"}, "seconds", "'long' is not what a judgment holds"),
        ({"annotator": None}, "annotator", "None is not"),
    ],
)
def test_a_judgment_that_is_not_whole_is_told_with_line_and_field(
    tmp_path: Path, change: dict[str, object], field: str, words: str
) -> None:
    path = tmp_path / "judgments.jsonl"
    judged(path, "first", "second")
    lines = path.read_text().splitlines()
    path.write_text(f"{lines[0]}\n{json.dumps({**json.loads(lines[1]), **change})}\n")
    before = path.read_bytes()
    with pytest.raises(DataError, match=words) as raised:
        JudgmentFile.opened(path, quiet)
    assert (raised.value.line, raised.value.field) == (2, field)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text", ['{"prompt": "a"}\n{"id": "cut', "some notes", '{"prompt": "a", "answers": ["b", "c"]}\n']
)
def test_a_file_of_anything_else_is_refused_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(DataError):
        JudgmentFile.opened(path, quiet)
    assert path.read_text() == text


# ── what it comes to ────────────────────────────────────────────────────────────────────────────────────────────────


def records(*choices: tuple[int, str | None]) -> list[Record]:
    """Judgments of pairs by the number of the pair and the id of the better answer; None: a tie."""
    return [
        Record(
            PAIRS[number], PAIRS[number].shown(0), choice, seconds=float(number), annotator="ada", tie=choice is None
        )
        for number, choice in choices
    ]


def test_win_shares_count_a_tie_as_half_and_each_prompt_once() -> None:
    found = summary_of(records((0, "2"), (1, "2"), (2, "1"), (3, None), (3, None), (3, "2")))
    (share,) = found.shares
    assert (share.system, share.against) == ("base", "tuned")
    assert (share.tally.wins, share.tally.ties, share.tally.losses) == (1, 2, 3)
    assert share.share.value == pytest.approx((0 + 0 + 1 + 1 / 3) / 4)
    assert 0 <= share.share.low < share.share.value < share.share.high <= 1
    assert (found.num_judged, found.num_ties, found.median_seconds) == (6, 2, 2.5)


def test_somebody_who_always_takes_the_first_is_found_out() -> None:
    always = [Record(each, each.shown(0), each.shown(0)[0].id, 1.0, "ada") for each in map(pair, range(12))]
    found = summary_of(always)
    assert found.position.first == 12
    assert found.position.p == pytest.approx(2 / 2**12)
    assert found.first_share is not None
    assert found.first_share.value == 1
    assert "more than chance explains" in found.as_lines()[-1]


def test_choices_are_compared_with_rewards_where_answers_have_them() -> None:
    rewarded = [
        Pair("q", (Response("1", f"a{number}", "run", low), Response("2", "b", "run", high)))
        for number, (low, high) in enumerate([(0.0, 1.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
    ]
    found = summary_of([Record(each, each.shown(0), "2", 1.0, "ada") for each in rewarded])
    assert found.num_with_rewards == 3
    assert found.rewards is not None
    assert found.rewards.value == pytest.approx(2 / 3)
    assert found.shares == ()


def test_choices_become_rows_that_preferences_are_learned_from_and_the_rest_is_counted() -> None:
    chat = pair(9, prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    empty = Pair("q", (Response("1", "", "a"), Response("2", "b", "b")))
    given = [
        *records((0, "2"), (0, "1"), (1, None)),
        Record(chat, chat.shown(0), "1", 1.0, "ada"),
        Record(empty, empty.shown(0), "2", 1.0, "ada"),
        Record(PAIRS[2], PAIRS[2].shown(0), None, 1.0, "ada", skipped=True),
    ]
    rows = preference_rows(given)
    assert rows.rows[0] == {"prompt": "question 0", "chosen": "other of 0", "rejected": "one of 0"}
    assert (rows.num_ties, rows.num_skipped, rows.num_empty, rows.num_both_ways) == (1, 1, 1, 1)
    assert rows.as_lines()[0].startswith("Left out: 1 ties; 1 skipped; 1 with an empty answer")
    text, chats = ([Row(dict(each), Origin("pairs.jsonl", 1))] for each in (rows.rows[0], rows.rows[2]))
    (record, _), *none = to_records(text, "auto", "preferences").records
    assert not none
    assert isinstance(record, Preference)
    ((of_chat, _),) = to_records(chats, "auto", "preferences").records
    assert isinstance(of_chat, Preference)
    assert isinstance(of_chat.chosen, Conversation)
    assert [each.content for each in of_chat.chosen.messages] == ["Be brief.", "Hi", "one of 9"]


def test_a_tournament_reads_judgments_by_who_wrote_what_was_shown(tmp_path: Path) -> None:
    path = tmp_path / "judgments.jsonl"
    tuned_first = [each.shown(0)[0].model == "tuned" for each in PAIRS]
    moves: list[Move] = ["first" if is_first else "second" for is_first in tuned_first]
    moves[6:] = ["tie", "skip"]
    judged(path, *moves)
    held = hold(judged_from(read_rows(str(path), quiet)), orders=10)
    best, worst = held.standings
    assert (best.name, best.tally.wins, best.tally.ties) == ("tuned", 6, 1)
    assert worst.tally.losses == 6
    assert any("1 rows hold no verdict" in note for note in held.notes)
    assert (held.position.first, held.position.second) == (sum(tuned_first[:6]), 6 - sum(tuned_first[:6]))


def test_a_tournament_leaves_out_judgments_of_one_system_aloud_and_refuses_those_alone() -> None:
    same = [pair(number, models=("run", "run")) for number in range(3)]
    rows = [
        Row(json.loads(Record(each, each.shown(0), "1", 1.0, "ada").line()), Origin("j.jsonl", number))
        for number, each in enumerate([*same, PAIRS[0]], start=1)
    ]
    assert any(
        "3 judgments are of two answers of one system" in note for note in hold(judged_from(rows), orders=9).notes
    )
    with pytest.raises(DataError, match="all 3 judgments are of two answers of one system"):
        judged_from(rows[:3])


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_answers_are_texts_or_have_a_model_and_pairs_are_read_in_all_their_forms(tmp_path: Path) -> None:
    answers = write(tmp_path / "a.jsonl", {"prompt": "q", "answers": ["a", {"text": "b", "model": "tuned"}]})
    (question,) = questions_in(answers, quiet)
    assert [(each.text, each.model) for each in question.responses] == [("a", "answer 1"), ("b", "tuned")]
    turns = [{"role": "user", "content": "Hi"}]
    better, worse = ([*turns, {"role": "assistant", "content": text}] for text in ("Hello!", "What?"))
    rows = ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"chosen": better, "rejected": worse})
    for row, prompt, texts in zip(rows, ("q", turns), (["a", "b"], ["Hello!", "What?"]), strict=True):
        (question,) = questions_in(write(tmp_path / "p.jsonl", row), quiet)
        assert question.prompt == prompt
        assert [(each.text, each.model) for each in question.responses] == list(
            zip(texts, ("chosen", "rejected"), strict=True)
        )


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "q", "answers": ["a"]}, "answers"),
        ({"prompt": "q", "answers": "a"}, "answers"),
        ({"prompt": "q", "answers": ["a", 3]}, "answers[1]"),
        ({"prompt": "q"}, "answers"),
        ({"answers": ["a", "b"]}, "prompt"),
    ],
)
def test_rows_that_hold_no_two_answers_are_told_with_line_and_field(
    tmp_path: Path, row: dict[str, object], field: str
) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "q", "answers": ["a", "b"]}, row)
    with pytest.raises(DataError) as raised:
        questions_in(path, quiet)
    assert (raised.value.line, raised.value.field) == (2, field)


def test_prompts_are_taken_once_with_the_instruction_before_them(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "q"}, {"prompt": "q"}, {"prompt": "r"})
    assert prompts_in(path, None, quiet) == ["q", "r"]
    asked = prompts_in(path, "Be brief.", quiet, limit=1)
    said = [Message("system", "Be brief."), Message("user", "q")]
    assert asked == [[each.as_dict() for each in said]]
