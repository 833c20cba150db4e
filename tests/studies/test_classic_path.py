"""The classic path from answers to a policy: every stage, going on where it stood, and what it refuses before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tiny_model import write_tiny_model
from tiny_runs import Cut, nothing, write_rows

from luthier.errors import Interrupted, JudgeFault, NotFound, RecipeError
from luthier.evaluation.judged.verdicts import Compared, Verdict
from luthier.recipe.loading import read_yaml
from luthier.recipe.yaml_text import Parsed, Source
from luthier.store.files import read_json
from luthier.studies import path_pairs
from luthier.studies.classic_path import REPORT, RESULT, Outcome, read_path, walk
from luthier.studies.path_pairs import PAIRS

TRAINING = {
    "steps": 2,
    "rows_per_step": 2,
    "tokens_per_micro_batch": 128,
    "workers": 1,
    "peak_lr": 0.01,
    "checkpoint_every": 1,
}
LENGTH = {"grader": {"type": "length", "most": 9, "margin": 9}, "name": "short"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, answers, pairs and prompts."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_model(desk / "model")
    write_rows(desk / "answers.jsonl", 10)
    pairs = [
        {"prompt": f"Where is {n}?", "chosen": f"Here, at {n}.", "rejected": "No" + "!" * (n % 4)} for n in range(10)
    ]
    (desk / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    prompts = [{"prompt": f"Where is {number}?"} for number in range(24)]
    (desk / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return desk


def values_of(**parts: Any) -> dict[str, Any]:
    lora = {"kind": "lora", "rank": 2}
    return {
        "model": "model",
        "sft": {
            "data": {"train": "answers.jsonl", "validation": "none", "max_length": 128},
            "method": lora,
            "training": TRAINING,
        },
        "pairs": "pairs.jsonl",
        "reward": {"data": {"validation": "none", "max_length": 64}, "method": lora, "training": TRAINING},
        "policy": {
            "data": {"train": "prompts.jsonl", "max_length": 64},
            "objective": {"kind": "grpo", "max_new_tokens": 6, "num_answers": 2},
            "training": TRAINING,
        },
        "compare": {"num_prompts": 4, "watched": [LENGTH], "safety": False},
        **parts,
    }


def walked(
    desk: Path,
    out: Path,
    values: dict[str, Any],
    on_step: Callable[[Any], None] = nothing,
    said: list[str] | None = None,
) -> Outcome:
    path = read_path(Parsed(values, {(): Source(None)}))
    return walk(path, desk, out, announce=[].append if said is None else said.append, on_step=on_step)


def test_a_path_goes_through_all_stages_and_reports(desk: Path, tmp_path: Path) -> None:
    compared = {"num_prompts": 4, "watched": [LENGTH], "safety": True}
    outcome = walked(desk, tmp_path / "out", values_of(compare=compared))
    assert set(outcome.win_rate) == {"reward", "reward model", "short"}
    assert all(0 <= rate.low <= rate.value <= rate.high <= 1 for rate in outcome.win_rate.values())
    assert outcome.kl is not None
    assert outcome.evaluation.candidates == ("tuned", "policy")
    assert read_json(tmp_path / "out" / RESULT)["win_rate"].keys() == outcome.win_rate.keys()
    page = (tmp_path / "out" / REPORT).read_text()
    assert "win rate" in page
    assert "harmful requests refused" in page
    assert "reward model, of these answers" in page
    assert "stereotypes likelier" in page
    assert "Where is" in page


def test_a_path_that_was_broken_off_goes_on_where_it_stood(desk: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def in_the_last_stage(metrics: dict[str, Any]) -> None:
        calls.append(metrics["step"])
        if len(calls) == 5:
            raise Cut

    with pytest.raises(Cut):
        walked(desk, tmp_path / "out", values_of(), in_the_last_stage)
    said: list[str] = []
    steps: list[int] = []
    outcome = walked(desk, tmp_path / "out", values_of(), lambda metrics: steps.append(metrics["step"]), said)
    assert sum("finished before" in sentence for sentence in said) == 2
    assert len(steps) <= 2
    whole = walked(desk, tmp_path / "whole", values_of())
    assert outcome.as_json()["evaluation"] == whole.as_json()["evaluation"]


def test_pairs_are_drawn_from_the_tuned_model_and_told_apart_by_rewards(desk: Path, tmp_path: Path) -> None:
    sampled = {"prompts": "prompts.jsonl", "num_prompts": 8, "num_answers": 3, "max_new_tokens": 8, "rewards": [LENGTH]}
    walked(desk, tmp_path / "out", values_of(pairs=sampled))
    rows = [json.loads(line) for line in (tmp_path / "out" / PAIRS).read_text().splitlines()]
    assert rows
    for row in rows:
        assert len(row["chosen"].split()) <= len(row["rejected"].split())
        assert row["chosen"] != row["rejected"]


def test_functions_and_reward_models_tell_answers_apart_wherever_the_path_is_walked_from(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (desk / "words.py").write_text("def reward(prompts, answers, rows):\n    return [len(each) for each in answers]\n")
    monkeypatch.chdir(tmp_path)
    words = {"function": "words.py", "name": "letters"}
    sampled = {"prompts": "prompts.jsonl", "num_prompts": 8, "num_answers": 3, "max_new_tokens": 8, "rewards": [words]}
    compared = {"num_prompts": 4, "watched": [words], "safety": False}
    outcome = walked(desk, tmp_path / "out", values_of(pairs=sampled, compare=compared))
    assert "letters" in outcome.win_rate
    rows = [json.loads(line) for line in (tmp_path / "out" / PAIRS).read_text().splitlines()]
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    judged = {**sampled, "rewards": [{"model": str(tmp_path / "out" / "reward"), "name": "judge"}]}
    walked(desk, tmp_path / "again", values_of(pairs=judged, sft=str(tmp_path / "out" / "sft")))
    assert (tmp_path / "again" / PAIRS).stat().st_size
    with pytest.raises(RecipeError, match="writes no text") as caught:
        walked(desk, tmp_path / "third", values_of(pairs={**JUDGED, "judge": str(tmp_path / "out" / "reward")}))
    assert caught.value.field == "pairs.judge"


class BriefIsBetter:
    """A judge that is right in both orders, or that always takes the answer that it is shown first."""

    name = "brief"
    settings: ClassVar = {"kind": "model", "orders": 2}
    at_once = 4

    def __init__(self, *, takes_the_first: bool = False) -> None:
        self.takes_the_first = takes_the_first
        self.asked = 0

    def verdicts(self, compared: Sequence[Compared]) -> Iterator[tuple[int, Verdict]]:
        for place, each in enumerate(compared):
            self.asked += 1
            is_first = self.takes_the_first or (len(each.first), each.first) < (len(each.second), each.second)
            yield place, Verdict(1.0 if is_first else 0.0, "said")


JUDGED = {
    "prompts": "prompts.jsonl", "num_prompts": 6, "num_answers": 3, "max_new_tokens": 8, "by": "judge", "judge": "model",
    "pairs_per_prompt": 3, "guideline": "Brief is better.",
}  # fmt: skip


def test_a_model_judges_pairs_and_is_not_asked_twice(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = BriefIsBetter()
    monkeypatch.setattr(path_pairs, "judge_of", lambda name, model, guideline: judge)
    monkeypatch.chdir(desk)
    said: list[str] = []
    walked(desk, tmp_path / "out", values_of(pairs=JUDGED), said=said)
    rows = [json.loads(line) for line in (tmp_path / "out" / PAIRS).read_text().splitlines()]
    assert len(rows) > 6
    assert all(len(row["chosen"]) <= len(row["rejected"]) for row in rows)
    assert any("verdict in both orders, 100.0% of them the same" in sentence for sentence in said)
    asked = judge.asked
    (tmp_path / "out" / PAIRS).unlink()
    walked(desk, tmp_path / "out", values_of(pairs=JUDGED))
    assert judge.asked == asked


def test_a_judge_that_takes_what_it_is_shown_first_gives_no_pair(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_pairs, "judge_of", lambda *_: BriefIsBetter(takes_the_first=True))
    monkeypatch.chdir(desk)
    with pytest.raises(RecipeError, match="there is no pair"):
        walked(desk, tmp_path / "out", values_of(pairs=JUDGED))


def test_a_judge_that_answers_nonsense_ends_the_path_and_says_so(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of random weights."""
    monkeypatch.chdir(desk)
    with pytest.raises(JudgeFault, match="verdict"):
        walked(desk, tmp_path / "out", values_of(pairs=JUDGED))
    assert not (tmp_path / "out" / PAIRS).exists()


def test_a_person_is_told_how_to_judge_and_the_path_goes_on_after(desk: Path, tmp_path: Path) -> None:
    sampled = {"prompts": "prompts.jsonl", "num_prompts": 3, "num_answers": 2, "max_new_tokens": 4, "by": "person"}
    with pytest.raises(Interrupted) as caught:
        walked(desk, tmp_path / "out", values_of(pairs=sampled))
    assert "luthier judge" in caught.value.mend
    assert caught.value.exit_code == 0
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [len(row["answers"]) for row in answers] == [2, 2, 2]
    (tmp_path / "out" / PAIRS).write_text((desk / "pairs.jsonl").read_text())
    assert walked(desk, tmp_path / "out", values_of(pairs=sampled)).win_rate


def test_a_finished_run_may_stand_for_the_first_stage_and_full_tuning_goes_on_from_it(
    desk: Path, tmp_path: Path
) -> None:
    full = {**values_of()["sft"], "method": {"kind": "full"}}
    walked(desk, tmp_path / "first", values_of(sft=full))
    outcome = walked(desk, tmp_path / "second", values_of(sft=str(tmp_path / "first" / "sft")))
    assert not (tmp_path / "second" / "sft").exists()
    assert outcome.kl is not None


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "a field of a stage": ({"reward": {"training": {"stepz": 3}}}, "reward.training.stepz", "no field"),
    "an algorithm that is none": (
        {"policy": {**values_of()["policy"], "objective": {"kind": "ppoo"}}},
        "policy.objective.kind",
        "ppoo",
    ),
    "a judge that is not there": ({"pairs": {**JUDGED, "judge": "./none"}}, "pairs.judge", "none"),
    "a judge without a name": ({"pairs": {**JUDGED, "judge": None}}, "pairs.judge", "needs judge"),
    "a judge beside rewards": (
        {"pairs": {"prompts": "prompts.jsonl", "rewards": [LENGTH], "judge": "model"}},
        "pairs.judge",
        "has no judge",
    ),
    "nobody to tell answers apart": ({"pairs": {"prompts": "prompts.jsonl"}}, "pairs.rewards", "needs rewards"),
    "no stage of that name": ({"sftt": {}}, "sftt", "no field"),
    "a function that is not there": (
        {"pairs": {"prompts": "prompts.jsonl", "rewards": [{"function": "no.py"}]}},
        "pairs.rewards",
        "There is no no.py",
    ),
    "a reward model that is not there": (
        {"compare": {"watched": [{"model": "runs/none"}]}},
        "compare.watched",
        "There is no runs/none",
    ),
    "two measures of one name": ({"compare": {"watched": [LENGTH, LENGTH]}}, "compare.watched", "called 'short'"),
    "two rewards of one name": (
        {"pairs": {"prompts": "prompts.jsonl", "rewards": [LENGTH, LENGTH]}},
        "pairs.rewards",
        "called 'short'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_before_anything_is_trained(name: str, desk: Path, tmp_path: Path) -> None:
    parts, field, found = WRONG[name]
    with pytest.raises((RecipeError, NotFound), match=found) as caught:
        walked(desk, tmp_path / "out", values_of(**parts))
    assert caught.value.field == field
    assert not (tmp_path / "out" / "sft").exists()


SHIPPED = sorted((Path(__file__).resolve().parents[2] / "recipes" / "rlhf").glob("*.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_the_shipped_paths_have_what_their_stages_may_have(file: Path, tmp_path: Path) -> None:
    path = read_path(read_yaml(file))
    with pytest.raises(NotFound, match=r"\.jsonl"):  # the first thing that is missing are the rows
        walk(path, tmp_path, tmp_path / "out", announce=[].append, on_step=nothing)
    assert not list((tmp_path / "out").iterdir())
