"""Rewards: sums of graders and functions, and what becomes of functions that fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import completion, serving
from pydantic import ValidationError

from luthier.errors import NetworkError, NotAllowed, NotFound, RecipeError, RewardFault
from luthier.evaluation.grading import Aids, Grade
from luthier.recipe import make_recipe
from luthier.rlhf.rewards import Ensemble, Reward, Rewards, Scorer
from luthier.rlhf.worth import Answer

ANSWERS = [Answer("one and one?", "2", {"answer": "2"}), Answer("two and two?", "five", {"answer": "4"})]
NUMBER = {"type": "number", "reference": "{{ item.answer }}"}
Write = Callable[[str], Path]


def rewards(*parts: dict[str, object]) -> Rewards:
    return Rewards([Reward.model_validate(part) for part in parts], Aids())


def test_the_reward_is_the_weighted_sum(reward_file: Write) -> None:
    file = reward_file("return [len(a) + len(r['answer']) for a, r in zip(answers, rows)]")
    with rewards({"grader": NUMBER, "weight": 2, "name": "right"}, {"function": str(file), "weight": -0.5}) as both:
        worths = both(ANSWERS)
    assert [worth.reward for worth in worths] == [2 - 0.5 * 2, 0 - 0.5 * 5]
    assert worths[0].parts == {"right": 1, "wish": 2}


def test_a_function_keeps_what_it_has_between_rollouts_and_may_print(reward_file: Write) -> None:
    file = reward_file("print('hello'); seen.extend(answers); return [len(seen)] * len(answers)")
    file.write_text("seen = []\n" + file.read_text())
    with rewards({"function": str(file)}) as both:
        assert [worth.reward for worth in both(ANSWERS)] == [2, 2]
        assert [worth.reward for worth in both(ANSWERS[:1])] == [3]


def test_an_answer_without_a_number_has_no_reward(reward_file: Write) -> None:
    with rewards({"function": str(reward_file("return [None, 1.0]"))}) as both:
        first, second = both(ANSWERS)
    assert first.reward is None
    assert first.fault is not None
    assert "None" in first.fault
    assert second.reward == 1


FAULTS = {
    "raise ValueError('broken')": "ValueError: broken",
    "return [1.0]": "a list of 1 for 2 answers",
    "return [1.0, float('nan')]": "nan for answer 1 of 2",
    "return [True, 1.0]": "True for answer 0",
    "return 'ab'": "gave \"'ab'\" for 2 answers",
    "return [None, None]": "No answer of 2 has a reward",
    "import os; os._exit(3)": "ended by itself (exit code 3)",
}


@pytest.mark.parametrize("body", FAULTS)
def test_what_a_function_does_wrong_is_told(body: str, reward_file: Write) -> None:
    with rewards({"function": str(reward_file(body))}) as both, pytest.raises(RewardFault) as caught:
        both(ANSWERS)
    assert FAULTS[body] in str(caught.value)
    assert caught.value.mend


def test_a_function_that_sleeps_is_stopped_and_the_next_call_starts_anew(reward_file: Write, tmp_path: Path) -> None:
    body = f"import os, time; slow = not os.path.exists({str(tmp_path / 'seen')!r}); open({str(tmp_path / 'seen')!r}, 'w'); time.sleep(60 * slow); return [1, 1]"
    with rewards({"function": str(reward_file(body)), "timeout_seconds": 0.5}) as both:
        began = time.monotonic()
        with pytest.raises(RewardFault, match=r"took more than 0\.5 s"):
            both(ANSWERS)
        assert time.monotonic() - began < 30
        assert [worth.reward for worth in both(ANSWERS)] == [1, 1]


def test_a_function_that_reads_nothing_does_not_hold_the_run_up(tmp_path: Path) -> None:
    file = tmp_path / "deaf.py"
    file.write_text("import time\ndef reward(prompts, answers, rows):\n    time.sleep(60)\n")
    long = [Answer("", "x" * 10**6, {})] * 3
    with (
        rewards({"function": str(file), "timeout_seconds": 0.5}) as both,
        pytest.raises(RewardFault, match="took more"),
    ):
        both(long)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def other(): pass", "defines no function reward"),
        ("1 +", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_its_line(text: str, found: str, tmp_path: Path) -> None:
    file = tmp_path / "wish.py"
    file.write_text(text)
    with rewards({"function": str(file)}) as both, pytest.raises(RewardFault, match=found) as caught:
        both(ANSWERS)
    assert caught.value.file == str(file)
    if "import" in text or "1 +" in text:
        assert caught.value.line == 1


def test_a_missing_file_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no reward file"):
        rewards({"function": str(tmp_path / "none.py")})


@pytest.mark.parametrize("values", [{}, {"grader": NUMBER, "function": "a.py"}, {"grader": NUMBER, "weight": 0}])
def test_a_reward_is_one_thing_that_counts(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Reward.model_validate(values)


def test_a_grader_that_asks_a_model_is_no_reward_alone_or_within_a_formula() -> None:
    judge = {"type": "score_model", "input": [{"role": "user", "content": "How good is {{ sample.output_text }}?"}]}
    both = {"type": "multi", "graders": {"good": judge}, "formula": "2 * good"}
    for grader in (judge, both):
        with pytest.raises(ValidationError, match="asks a model that judges"):
            Reward.model_validate({"grader": grader})


# ── judges ──────────────────────────────────────────────────────────────────────────────────────────────────────────

JUDGED = {
    "type": "score_model",
    "model": "small",
    "range": [0, 10],
    "input": [{"content": "Rate: {{ sample.output_text }}"}],
}


@pytest.mark.parametrize("name", [None, "big"])
def test_a_judge_gives_each_answer_the_number_that_it_says(name: str | None, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-secret\n")
    grader = {"type": "multi", "graders": {"good": JUDGED}, "formula": "2 * good"}

    def says(body: dict[str, Any]) -> tuple[int, Any]:
        return completion(str(len(body["messages"][-1]["content"].splitlines()[0]) % 10))

    with serving(says) as asked:
        judge = {"url": asked.url, "model": name, "key_file": "key"}
        part = Reward.model_validate({"grader": grader, "judge": judge, "weight": 0.5})
        with Rewards([part.with_paths(lambda path: str(tmp_path / path))], Aids()) as both:
            worths = both(ANSWERS)
    assert [worth.reward for worth in worths] == [len(f"Rate: {answer.text}") % 10 for answer in ANSWERS]
    assert {body["model"] for body in asked.bodies} == {name or "small"}
    assert {headers["Authorization"] for headers in asked.headers} == {"Bearer sk-secret"}


def test_a_judge_that_refuses_an_answer_gives_it_no_reward() -> None:
    def says(body: dict[str, Any]) -> tuple[int, Any]:
        is_refused = body["messages"][-1]["content"].startswith(f"Rate: {ANSWERS[0].text}\n")
        return completion(None, refusal="no") if is_refused else completion("5")

    with serving(says) as asked:
        part = Reward.model_validate({"grader": JUDGED, "judge": {"url": asked.url}})
        with Rewards([part], Aids()) as both:
            worths = both(ANSWERS)
    assert [worth.reward for worth in worths] == [None if a.text == ANSWERS[0].text else 5 for a in ANSWERS]


def test_a_judge_that_cannot_be_asked_names_the_recipes_field(tmp_path: Path) -> None:
    with serving(lambda body: (401, {"error": {"message": "bad key"}})) as asked:
        part = Reward.model_validate({"grader": JUDGED, "judge": {"url": asked.url}})
        with Rewards([part], Aids()) as both, pytest.raises(NotAllowed, match="bad key") as caught:
            both(ANSWERS)
    assert caught.value.field == "objective.rewards.judge"
    assert "key_file" in caught.value.mend
    with pytest.raises(NetworkError, match="cannot be reached") as closed:  # before anything is learned
        Rewards([part], Aids())
    assert closed.value.field == "objective.rewards.judge"
    judge = {"url": "http://localhost/v1", "key_file": str(tmp_path / "none")}
    with pytest.raises(NotFound, match="cannot be read") as missing:
        Rewards([Reward.model_validate({"grader": JUDGED, "judge": judge})], Aids())
    assert missing.value.field == "objective.rewards.judge.key_file"


@pytest.mark.parametrize(
    ("url", "is_open"),
    [
        ("http://judge.invalid/v1", True),
        ("https://judge.invalid/v1", False),
        ("http://localhost:1/v1", False),
        ("http://127.0.0.1:1/v1", False),
    ],
)
def test_a_key_that_others_could_read_is_told_before_it_is_sent(url: str, is_open: bool, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-secret\n")
    said: list[str] = []
    judge = {"url": url, "key_file": str(tmp_path / "key"), "retries": 0}
    with pytest.raises(NetworkError):
        Rewards([Reward.model_validate({"grader": JUDGED, "judge": judge})], Aids(), announce=said.append)
    assert any("judge.invalid without encryption" in line for line in said) is is_open
    assert "sk-secret" not in "".join(said)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"grader": NUMBER, "judge": {"url": "http://localhost/v1"}}, "for a grader that asks a model"),
        ({"function": "a.py", "judge": {"url": "http://localhost/v1"}}, "for a grader that asks a model"),
        ({"grader": {**JUDGED, "model": None}, "judge": {"url": "http://localhost/v1"}}, "names no model"),
        ({"grader": JUDGED, "judge": {"url": "localhost"}}, "no bare address"),
        ({"grader": JUDGED, "judge": {"url": "https://name:key@host/v1"}}, "no bare address"),
    ],
)
def test_a_judge_is_an_address_and_a_name_for_a_grader_that_asks(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Reward.model_validate(values)


def test_a_fault_within_a_reward_of_a_recipe_is_told_at_its_whole_place(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Hi"}\n')
    grader = {"type": "json_schema", "schema": {"type": "no type"}}
    objective = {"kind": "grpo", "rewards": [{"grader": NUMBER}, {"grader": grader}]}
    with pytest.raises(RecipeError, match="is no JSON schema") as caught:
        make_recipe({"model": "smollm2-135m", "data": {"train": str(rows)}, "objective": objective})
    assert caught.value.field == "objective.rewards[1].grader.schema"


# ── ensembles ───────────────────────────────────────────────────────────────────────────────────────────────────────


def member(*scores: float | None) -> Scorer:
    return lambda answers: [Grade(score, None if score is not None else "silent") for score in scores]


@pytest.mark.parametrize("caution", [0.0, 1.5])
def test_an_ensemble_is_the_mean_of_its_members_less_what_they_differ_by(caution: float) -> None:
    ensemble = Ensemble([member(1.0, 2.0), member(4.0, 2.0), member(1.0, 2.0)], caution)
    part = Reward.model_validate({"models": ["a", "b", "c"], "caution": caution, "weight": 2.0})
    with Rewards([part], Aids(), models={"ensemble": ensemble}) as both:
        differing, agreed = both(ANSWERS)
    spread = 2**0.5  # of 1, 4 and 1
    assert differing.reward == pytest.approx(2 * (2.0 - caution * spread))
    assert differing.spreads == {"ensemble": pytest.approx(spread)}
    assert (agreed.reward, agreed.spreads) == (4.0, {"ensemble": 0.0})


def test_an_answer_that_a_member_gives_no_number_has_none() -> None:
    part = Reward.model_validate({"models": ["a", "b"], "name": "kind"})
    with Rewards([part], Aids(), models={"kind": Ensemble([member(1.0, 1.0), member(None, 3.0)], 0.0)}) as both:
        first, second = both(ANSWERS)
    assert (first.reward, first.fault, first.spreads) == (None, "kind: silent", {})
    assert second.reward == 2.0


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"models": ["a"]}, "at least 2"),
        ({"models": ["a", "b", "a"]}, "names a run twice"),
        ({"model": "a", "caution": 1.0}, "give models"),
        ({"model": "a", "models": ["a", "b"]}, "one of grader, function, model and models"),
    ],
)
def test_what_is_no_ensemble_is_refused(part: dict[str, object], found: str) -> None:
    with pytest.raises(ValidationError, match=found):
        Reward.model_validate(part)


def test_members_are_found_beside_the_recipe() -> None:
    part = Reward.model_validate({"models": ["a", "b"]}).with_paths(lambda path: f"there/{path}")
    assert part.runs == ("there/a", "there/b")
