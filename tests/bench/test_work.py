"""The work as it is read, written and cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.ladder import PATHS, rungs
from bench.prepare import best_reply, chat_of, read_chats
from bench.work import NOT_LEARNED, Linear, Shape, Work, WorkRow, read_work, write_work
from luthier.errors import DataError, NotFound
from luthier.training.settings import FastPaths


def work() -> Work:
    rows = tuple(WorkRow([5] * length, [NOT_LEARNED] * (length - 1) + [5]) for length in (4, 2, 3, 3))
    shape = Shape((Linear("a", 2, 3, True),), rank=2, layers=1, attention_width=4, hidden=4, vocabulary=8)
    return Work("set", "model", "adapter", "recipe.yaml", 2, 1e-3, 1.0, 0, 512, shape, rows)


def test_work_read_back_is_the_work_that_was_written(tmp_path: Path) -> None:
    write_work(tmp_path, work())
    assert read_work(tmp_path) == work()


def test_tokens_and_padding_are_counted_step_by_step() -> None:
    assert work().real_tokens == [6, 6]
    assert work().padding_factor == (2 * 4 + 2 * 3) / 12
    assert [row.num_learned for row in work().rows] == [1, 1, 1, 1]


def test_the_best_reply_has_the_lowest_rank_and_a_ranked_one_goes_before_an_unranked_one() -> None:
    assert best_reply([{"text": "none"}, {"text": "second", "rank": 1}, {"text": "first", "rank": 0}]) == "first"
    assert best_reply([{"text": "earlier"}, {"text": "later", "rank": None}]) == "earlier"


def test_questions_chats_and_trees_become_the_same_chat() -> None:
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    assert chat_of({"question": "Q", "answer": "A"}) == chat
    assert chat_of({"messages": chat}) == chat
    assert chat_of({"prompt": {"text": "Q", "replies": [{"text": "A", "rank": 0, "replies": []}]}}) == chat


def test_a_row_of_another_form_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "Q", "answer": "A"}) + "\n\n" + json.dumps({"text": "A"}) + "\n", "utf-8")
    with pytest.raises(DataError, match="line 3"):
        read_chats(path)
    with pytest.raises(NotFound, match=r"nowhere\.jsonl"):
        read_chats(tmp_path / "nowhere.jsonl")


def test_the_ladder_has_a_rung_for_every_switch_of_the_recipe() -> None:
    switches = {f"training.fast.{name}=false" for name in FastPaths.model_fields}
    assert switches <= {flag for path in PATHS for flag in path.off}


def test_the_ladder_takes_away_one_path_less_at_each_rung() -> None:
    without, ladder = rungs()
    assert [len(rung.flags) for rung in ladder] == sorted((len(rung.flags) for rung in ladder), reverse=True)
    assert len(ladder) == len(without) == len(PATHS)
    assert set(ladder[-1].flags) == set(PATHS[-1].off)
