"""`luthier judge` with a model as judge: here, behind an endpoint, and one that scores answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fake_endpoint import Answer, completion, serving
from program import within
from tiny_runs import begin, recipe_values

from luthier import api

ROWS = [
    {"prompt": f"question {n}", "answers": [{"text": f"ours {n}", "model": "tuned"}, {"text": f"theirs {n}", "model": "base"}]}
    for n in range(12)
]  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with answers to judge."""
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def prefers_ours(body: dict[str, Any]) -> Answer:
    said = body["messages"][0]["content"]
    return completion("Short.\nA" if said.index("\nours") < said.index("\ntheirs") else "Short.\nB")


def at(url: str) -> tuple[str, ...]:
    return ("--judge-url", url, "--judge-model", "gpt")


def test_an_endpoint_judges_both_orders_once_and_the_tournament_and_pairs_follow(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    with serving(prefers_ours) as asked:
        words = ("judge", "answers.jsonl", *at(asked.url), "--judge-key-env", "JUDGE_KEY", "--json")
        ended = within(*words, "--pairs", "pairs.jsonl", folder=desk)
        assert ended.code == 0, ended.err
        assert len(asked.bodies) == 24
        assert within(*words, folder=desk).document["judges"] == ended.document["judges"]
        assert len(asked.bodies) == 24, "nothing is asked twice"
    (found,) = ended.document["judges"]
    (rate,) = found["rates"]
    assert (rate["system"], rate["against"], rate["verdict"]) == ("tuned", "base", "better")
    assert rate["tally"] == {"wins": 12, "ties": 0, "losses": 0}
    assert (found["position"]["consistent"], found["position"]["first"]) == (1.0, 12)
    assert asked.headers[0]["Authorization"] == "Bearer sk-secret"
    assert all("sk-secret" not in file.read_text() for file in desk.iterdir())
    rows = [json.loads(line) for line in (desk / "pairs.jsonl").read_text().splitlines()]
    assert [row["chosen"][:4] for row in rows] == ["ours"] * 12
    table = within("tournament", "judgments.jsonl", "--orders", "10", folder=desk)
    assert "24" in table.out
    assert "100.0% of them alike" in table.out
    told = within("judge", "--summary", folder=desk).out
    assert "12 pairs judged by gpt in 24 verdicts." in told
    assert "tuned is better." in told


def test_a_judge_that_fails_leaves_whole_lines_and_the_same_command_goes_on(desk: Path) -> None:
    answers = iter([completion("A")] * 5)
    with serving(lambda body: next(answers, (401, {"error": {"message": "who are you?"}}))) as asked:
        ended = within("judge", "answers.jsonl", *at(asked.url), "--judge-parallel", "1", folder=desk)
    assert ended.code == 5
    assert "who are you?" in ended.err
    assert "--judge-key-env" in ended.err
    assert "What was judged is kept" in ended.err
    kept = (desk / "judgments.jsonl").read_text()
    assert [json.loads(line)["annotator"] for line in kept.splitlines()] == ["gpt"] * 5
    with serving(lambda body: completion("nothing to say")) as asked:
        words = ("judge", "answers.jsonl", *at(asked.url), "--json")
        mismatch = within(*words, folder=desk)
    assert mismatch.code == 3, "another address is another judge"
    assert (desk / "judgments.jsonl").read_text() == kept


class Loads(Exception):
    """Models are loaded."""


def test_a_judge_that_gives_no_answer_is_told_before_models_answer(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(*_: object) -> NoReturn:
        raise Loads

    monkeypatch.setattr(api, "load_any_text", loads)
    (desk / "prompts.jsonl").write_text('{"prompt": "Where is order 7?"}\n')
    words = ("judge", "one", "other", "--prompts", "prompts.jsonl", "--json")
    refused = (403, {"error": {"message": "who are you?"}})
    with serving(lambda body: refused, models=refused) as asked:
        ended = within(*words, *at(asked.url), folder=desk)
    assert (ended.code, "who are you?" in ended.document["error"]["found"]) == (5, True)
    ended = within(*words, *at(asked.url), folder=desk)
    assert (ended.code, f"{asked.url}/chat/completions cannot be reached" in ended.out) == (7, True)
    with serving(prefers_ours) as asked, pytest.raises(Loads):
        within(*words, *at(asked.url), folder=desk)
    assert (asked.num_lists, asked.bodies) == (1, [])


def test_nonsense_and_refusals_are_counted_and_too_many_are_an_error(desk: Path) -> None:
    nonsense = [completion("I like turtles."), completion(None, refusal="I cannot judge.")]
    with serving(lambda body: nonsense[len(body["messages"][0]["content"]) % 2]) as asked:
        ended = within("judge", "answers.jsonl", *at(asked.url), "--judge-parallel", "1", "--json", folder=desk)
    assert ended.code == 1
    error = ended.document["error"]
    assert error["kind"] == "JudgeFault"
    assert "5 of 24 verdicts of gpt cannot be read" in error["found"]
    assert len((desk / "judgments.jsonl").read_text().splitlines()) == 5


def test_a_model_here_judges_what_two_others_answer(desk: Path, tiny_model: Path) -> None:
    words = [
        "judge",
        "answers.jsonl",
        "--judge",
        tiny_model,
        "--judge-max-tokens",
        "4",
        "--max-unreadable",
        "1",
        "--limit",
        "2",
    ]
    ended = within(*words, "--json", folder=desk)
    assert ended.code == 0, ended.err
    (found,) = ended.document["judges"]
    assert (found["judge"], found["num_verdicts"]) == (str(tiny_model), 4)
    lines = [json.loads(line) for line in (desk / "judgments.jsonl").read_text().splitlines()]
    assert all(line["said"] and line["judge"]["kind"] == "model" for line in lines)
    strict = within(*words[:-2], "--limit", "2", "--max-unreadable", "0", folder=desk)
    assert (strict.code, "verdicts of" in strict.err) == (1, True)


def test_a_reward_run_judges_by_its_scores(desk: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(6)]
    (desk / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = recipe_values(
        tiny_model, desk / "pairs.jsonl", training={"steps": 1, "checkpoint_every": 1}, objective={"kind": "reward"}
    )
    begin(values, desk / "runs" / "reward-1")
    ended = within("judge", "answers.jsonl", "--judge", "reward-1", "--json", folder=desk)
    assert ended.code == 0, ended.err
    (found,) = ended.document["judges"]
    assert (found["num_pairs"], found["num_verdicts"], found["position"]) == (12, 12, None)
    for line in map(json.loads, (desk / "judgments.jsonl").read_text().splitlines()):
        first, second = line["scores"]
        assert line["choice"] == (None if first == second else line["shown_order"][first < second])
    refused = within("judge", "answers.jsonl", "--judge", "reward-1", "--guideline", "Be kind.", folder=desk)
    assert (refused.code, "reads no guideline" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--judge-url", "http://h/v1"], 2, "--judge-url and --judge-model"),
        (["--judge", "m", "--judge-url", "http://h/v1", "--judge-model", "g"], 2, "Two judges"),
        (["--judge", "m", "--judge-key-env", "KEY"], 2, "behind an endpoint"),
        (["--judge-url", "h", "--judge-model", "g"], 2, "no address"),
        ([*at("http://h/v1"), "--judge-key-env", "NO_SUCH_KEY"], 2, "no environment variable NO_SUCH_KEY"),
        (["--judge", "no-such-model"], 4, "no-such-model"),
        ([*at("http://127.0.0.1:9/v1"), "--judge-retries", "0"], 7, "cannot be reached"),
    ],
)
def test_what_is_wrong_with_a_judge_is_said_and_nothing_is_written(
    desk: Path, words: list[str], code: int, said: str
) -> None:
    ended = within("judge", "answers.jsonl", *words, folder=desk)
    assert (ended.code, said in ended.err) == (code, True), ended.err
    assert not (desk / "judgments.jsonl").exists()
