"""Several ranked answers to one prompt, and pairs of which it is said how many find the first better."""

from __future__ import annotations

from typing import Any

import pytest
from form_rows import fault_of, records_of, rows_of

from luthier.data.formats import recognise_any
from luthier.data.tokens.record_json import record_line, record_of
from luthier.types import Completion, Conversation, Message, Preference, Ranking

WELL = {"prompt": "Hi", "answers": ["Hello", "Go", "Ho"], "ranks": [1, 3, 2]}
PAIR = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}
TEXTS = tuple(Completion("Hi", text) for text in ("Hello", "Go", "Ho"))

WAYS: list[tuple[str, dict[str, Any]]] = [
    ("ranks", WELL),
    ("scores", {"prompt": "Hi", "responses": ["Hello", "Go", "Ho"], "scores": [9, 1, 2.5]}),
    ("scores as text", {"question": "Hi", "answers": ["Hello", "Go", "Ho"], "scores": ["9", "1", "2"]}),
    (
        "ranks beside answers",
        {
            "prompt": "Hi",
            "answers": [{"text": "Hello", "rank": 0}, {"text": "Go", "rank": 7}, {"text": "Ho", "rank": 2}],
        },
    ),
    (
        "scores beside answers",
        {
            "instruction": "Hi",
            "completions": [
                {"response": "Hello", "overall_score": 8.5},
                {"response": "Go", "overall_score": 1},
                {"response": "Ho", "overall_score": 2},
            ],
        },
    ),
]


@pytest.mark.parametrize("values", [values for _, values in WAYS], ids=[name for name, _ in WAYS])
def test_answers_with_ranks_or_scores_are_a_ranking(values: dict[str, Any]) -> None:
    assert recognise_any(rows_of(values)).objective == "reward"
    assert records_of(values, takes="rankings", form="rankings") == [Ranking(TEXTS, (0, 2, 1))]


def test_answers_in_their_order_need_no_ranks_and_equal_scores_share_a_place() -> None:
    in_order = {"prompt": "Hi", "ranked_answers": ["Hello", "Go", "Ho"]}
    assert records_of(in_order, takes="rankings") == [Ranking(TEXTS, (0, 1, 2))]
    tied = {"prompt": "Hi", "answers": ["Hello", "Go", "Ho"], "scores": [5, 5, 1]}
    assert records_of(tied, takes="rankings") == [Ranking(TEXTS, (0, 0, 1))]


def test_a_prompt_of_messages_makes_conversations() -> None:
    values = {"prompt": [{"role": "user", "content": "Hi"}], "answers": ["Hello", "Go"], "ranks": [2, 1]}
    (record,) = records_of(values, takes="rankings")
    hello, go = (Conversation((Message("user", "Hi"), Message("assistant", text))) for text in ("Hello", "Go"))
    assert record == Ranking((hello, go), (1, 0))


def test_pairs_are_rankings_of_two_and_trees_give_all_ranked_answers_together() -> None:
    assert records_of(PAIR, takes="rankings", form="preferences") == [Preference(*TEXTS[:2])]
    replies = [
        {"text": text, "role": "assistant", "rank": rank, "replies": []}
        for text, rank in (("Go", 2), ("Hello", 0), ("Ho", 1), ("Go", 3))
    ]
    tree = {"prompt": {"text": "Hi", "role": "prompter", "replies": replies}}
    (record,) = records_of(tree, takes="rankings", form="oasst")
    assert isinstance(record, Ranking)
    assert [answer.messages[-1].content for answer in record.answers if isinstance(answer, Conversation)] == [
        "Hello", "Ho", "Go",
    ]  # fmt: skip
    assert record.places == (0, 1, 2)


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ({}, 1.0),
        ({"probability": 0.5}, 0.5),
        ({"votes_chosen": 3, "votes_rejected": 1}, 0.75),
        ({"probability": None}, 1.0),
    ],
)
def test_a_pair_may_say_how_many_find_its_first_answer_better(values: dict[str, Any], share: float) -> None:
    (record,) = records_of({**PAIR, **values}, takes="rankings")
    assert isinstance(record, Preference)
    assert record.probability == share


def test_rankings_and_shares_are_kept_in_lines_of_json() -> None:
    for record in (Ranking(TEXTS, (0, 2, 1)), Preference(*TEXTS[:2], 0.5, 0.75)):
        assert record_of(record_line(record)) == record


BROKEN: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    (WELL, {**WELL, "ranks": [1, 2]}, "ranks", "2 numbers for 3 answers"),
    (WELL, {**WELL, "ranks": [1, 1, 1]}, "answers", "all answers are as good"),
    (WELL, {**WELL, "ranks": [1, 2, "x"]}, "ranks[2]", "expected a number"),
    (WELL, {**WELL, "answers": ["Hello"], "ranks": [1]}, "answers", "one answer"),
    (WELL, {**WELL, "answers": ["Hello", "Go", "Hello"]}, "answers[2]", "two places"),
    (WELL, {**WELL, "answers": ["Hello", " ", "Ho"]}, "answers[1]", "empty"),
    (WELL, {**WELL, "prompt": ""}, "prompt", "empty"),
    (PAIR, {**PAIR, "probability": 1.5}, "probability", "no probability"),
    (PAIR, {**PAIR, "votes_chosen": 0, "votes_rejected": 0}, "votes_chosen", "say nothing"),
]


@pytest.mark.parametrize(("well", "values", "field", "found"), BROKEN)
def test_rankings_at_fault_name_the_field(well: dict[str, Any], values: dict[str, Any], field: str, found: str) -> None:
    fault = fault_of(well, values, "rankings")
    assert fault.field == field
    assert found in fault.found
    assert fault.mend
