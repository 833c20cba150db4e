"""`luthier judge` as a person uses it, with what they type on standard in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from program import within
from tiny_model import write_tiny_model

from luthier.cli.judging_screen import KEYS, Screen, visible
from luthier.evaluation.judged.session import Shown
from luthier.rlhf.samples import Sample

ROWS = [
    {"prompt": f"question {n}", "answers": [{"text": f"ours {n}", "model": "tuned"}, {"text": f"theirs {n}", "model": "base"}]}
    for n in range(3)
]  # fmt: skip
ADA = ("answers.jsonl", "--annotator", "ada")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with answers to judge."""
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_a_person_judges_stops_goes_on_and_the_choices_become_a_table_and_rows(desk: Path) -> None:
    began = within("judge", *ADA, "--guideline", "Be kind.", folder=desk, typed="1\nwhat?\n2+\n")
    assert began.code == 0, began.err
    assert "1 pairs are left; the same command goes on." in began.err
    assert began.err.count("Be kind.") == 3
    for name in ("tuned", "base"):
        assert name not in began.err
    went_on = within("judge", *ADA, "--pairs", "pairs.jsonl", "--json", folder=desk, typed="t\n\n")
    assert "2 of 3 pairs are judged already" in went_on.err
    document = went_on.document
    assert (document["left"], document["num_judged"], document["num_ties"]) == (0, 3, 1)
    assert document["pairs"] == {
        "file": "pairs.jsonl", "num_rows": 2, "num_ties": 1, "num_skipped": 0, "num_empty": 0, "num_both_ways": 0
    }  # fmt: skip
    lines = [json.loads(line) for line in (desk / "judgments.jsonl").read_text().splitlines()]
    assert [each["strength"] for each in lines] == [1, 2, None]
    assert [each["choice"] for each in lines[:2]] == [lines[0]["shown_order"][0], lines[1]["shown_order"][1]]
    assert len((desk / "pairs.jsonl").read_text().splitlines()) == 2
    table = within("tournament", "judgments.jsonl", "--orders", "10", "--json", folder=desk)
    assert {each["name"] for each in table.document["standings"]} == {"tuned", "base"}
    summary = within("judge", "--summary", folder=desk)
    assert summary.code == 0
    assert "base against tuned" in summary.out


def test_without_a_terminal_it_says_so_and_names_the_file_form(desk: Path) -> None:
    ended = within("judge", "answers.jsonl", folder=desk, given="1\n1\n1\n")
    assert ended.code == 2
    assert "no terminal" in ended.err
    assert "model_1, model_2 and verdict" in ended.err
    assert not (desk / "judgments.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "There is nothing to judge."),
        (["--summary"], 4, "There are no judgments in"),
        (["answers.jsonl", "--temperature", "1"], 2, "matters only where models are asked"),
        (["base", "tuned"], 2, "Several models need prompts"),
        (["base", "--prompts", "answers.jsonl"], 2, "alone has nothing to be compared with"),
        (["nowhere.jsonl"], 4, "nowhere.jsonl"),
        (["answers.jsonl", "--out", "answers.jsonl"], 3, "line 1"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_asked(
    desk: Path, words: list[str], code: int, said: str
) -> None:
    before = (desk / "answers.jsonl").read_bytes()
    ended = within("judge", *words, folder=desk)
    assert (ended.code, said in ended.err) == (code, True), ended.err
    assert (desk / "answers.jsonl").read_bytes() == before


def test_no_choice_gives_no_file_of_pairs_and_that_is_said(desk: Path) -> None:
    ended = within("judge", "answers.jsonl", "--pairs", "pairs.jsonl", folder=desk, typed="t\nb\ns\n\n")
    assert ended.code == 0
    assert "pairs.jsonl is not written" in ended.err
    assert "Left out: 2 ties; 1 skipped." in ended.out
    assert not (desk / "pairs.jsonl").exists()


def test_two_models_answer_first_and_what_they_said_is_kept_beside_the_judgments(
    desk: Path, tiny_model: Path, tmp_path: Path
) -> None:
    other = write_tiny_model(tmp_path / "other", hidden_size=16)
    asked = (
        tiny_model,
        other,
        "--prompts",
        "answers.jsonl",
        "--limit",
        "2",
        "--max-new-tokens",
        "6",
        "--temperature",
        "1",
        "--out",
        "j/by-me.jsonl",
    )
    began = within("judge", *asked, folder=desk, typed="1\nq\n")
    assert began.code == 0, began.err
    kept = (desk / "j" / "by-me.answers.jsonl").read_bytes()
    assert kept.count(b"\n") == 4
    went_on = within("judge", *asked, "--json", folder=desk, typed="2\n\n")
    assert (went_on.document["num_judged"], went_on.document["left"]) == (2, 0)
    assert {each["system"] for each in went_on.document["shares"]} < {str(tiny_model), str(other)}
    assert (desk / "j" / "by-me.answers.jsonl").read_bytes() == kept


def test_the_rollouts_of_a_run_are_judged_by_its_name_and_compared_with_their_rewards(desk: Path) -> None:
    folder = desk / "runs" / "rl-1" / "rollouts"
    folder.mkdir(parents=True)
    (desk / "runs" / "rl-1" / "recipe.yaml").write_text("")
    answers = [
        Sample(0, 0, "Where?", text, (1,), "stop", 3, np.zeros(1, np.float32), reward)
        for text, reward in (("Here.", 1.0), ("There.", 0.0))
    ]
    (folder / "000000.jsonl").write_text("".join(each.line() + "\n" for each in answers))
    ended = within("judge", "rl-1", "--json", folder=desk, typed="1\n\n")
    assert ended.code == 0, ended.err
    assert (ended.document["num_with_rewards"], ended.document["shares"]) == (1, [])
    (line,) = (desk / "judgments.jsonl").read_text().splitlines()
    assert {each["model"] for each in json.loads(line)["responses"]} == {"rl-1 at step 3"}


def test_signs_that_steer_a_terminal_are_written_out() -> None:
    assert visible("red\x1b[31m\r\n\tö\x9b") == "red\\x1b[31m\\r\n\tö\\x9b"


def test_the_end_of_what_is_typed_quits_and_other_words_are_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    lines = iter(["", "maybe\n", " 2+ \n"][::-1])
    screen = Screen(read=lambda: next(lines))
    shown = Shown(1, 2, [{"role": "user", "content": "Hi"}], "a", "", None)
    assert screen(shown) == KEYS["2+"]
    assert screen(shown) == KEYS["q"]
    assert "(an empty answer)" in capsys.readouterr().err
