"""Runs that learn from their own answers: that they do, that they go on to the same bits, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rollout_desk import VOWELS, write_desk
from tiny_runs import Cut, begin, course, cut_after, go_on, nothing, one_thread, outcome, recipe_values

from luthier import run
from luthier.data.mixture import epoch_order
from luthier.errors import RecipeError, RewardFault
from luthier.rlhf import GRPO, rollouts, writers
from luthier.rlhf.kept import FOLDER, read_rollout
from luthier.rlhf.samples import Sample, by_group

SHORT = {"max_new_tokens": 6, "num_answers": 2, "held_out_prompts": 2}
KINDS: dict[str, dict[str, Any]] = {
    "ppo": {"minibatches": 2, "reuse": 2, "kl_target": 1.0},
    "rloo": {"num_answers": 3, "temperature": 0.8},
    "reinforce++": {"baseline": "group"},
    "grpo": {"kl": 0.1, "minibatches": 2, "entropy_bonus": 0.01},
    "raft": {},
    "online-dpo": {},
}


@pytest.fixture(autouse=True)
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plot takes longer than the training."""
    monkeypatch.setattr(run, "write_loss_plot", lambda *arguments: None)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, prompts, and a reward for vowels."""
    return write_desk(tmp_path_factory.mktemp("desk"))


def values_of(desk: Path, kind: str, objective: dict[str, Any] | None = None, **parts: Any) -> dict[str, Any]:
    parts["data"] = {"validation": str(desk / "held-out.jsonl"), "max_length": 64, **parts.get("data", {})}
    usual = {"rows_per_step": 2, "tokens_per_micro_batch": 128, "evaluate_every": 3, "checkpoint_every": 2}
    parts["training"] = {**usual, **parts.get("training", {})}
    values = recipe_values(desk / "model", desk / "rows.jsonl", **parts)
    rewards = [{"function": str(desk / "vowels.py")}]
    return {**values, "objective": {"kind": kind, "rewards": rewards, **SHORT, **KINDS[kind], **(objective or {})}}


def said(folder: Path) -> list[dict[str, Any]]:
    """The course without the clock."""
    return [{key: value for key, value in line.items() if key != "rollout_seconds"} for line in course(folder)]


def written(folder: Path) -> dict[str, str]:
    """All rollouts that a run kept."""
    return {path.name: path.read_text() for path in sorted((folder / FOLDER).iterdir())}


def test_answers_are_drawn_with_all_cores_in_every_step(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    generate = writers.generate

    def counting(*arguments: Any, **settings: Any) -> Any:
        counts.append(torch.get_num_threads())
        return generate(*arguments, **settings)

    monkeypatch.setattr(writers, "generate", counting)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        begin(values_of(desk, "grpo", training={"steps": 3, "workers": 2}), tmp_path / "run")
    finally:
        torch.set_num_threads(before)
    assert len(counts) >= 3
    assert set(counts) == {3}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_dies_at_any_step_goes_on_to_the_same_bits(kind: str, desk: Path, tmp_path: Path) -> None:
    with one_thread():
        begin(values_of(desk, kind), tmp_path / "whole")
        for step in (1, 4) if kind in ("ppo", "grpo") else (3,):
            folder = tmp_path / f"cut-{step}"
            with pytest.raises(Cut):
                begin(values_of(desk, kind), folder, cut_after(step))
            go_on(folder)
            assert outcome(folder)[0] == outcome(tmp_path / "whole")[0]
            assert said(folder) == said(tmp_path / "whole")
            assert written(folder) == written(tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_is_taken_by_the_policy_that_wrote_the_answers(kind: str, desk: Path, tmp_path: Path) -> None:
    begin(values_of(desk, kind, training={"steps": 1}), tmp_path / "run")
    (line,) = said(tmp_path / "run")
    assert line["ratio"] == pytest.approx(1, abs=1e-5)
    assert line["engine_gap"] == pytest.approx(0, abs=1e-5)
    assert line["approx_kl"] == pytest.approx(0, abs=1e-9)
    assert line.get("clip_share", 0) == 0
    assert line["kl"] == pytest.approx(0, abs=1e-5)
    assert line["kl_of_answers"] == pytest.approx(0, abs=1e-5)
    assert line["validation_loss"] == -line["validation_reward"]
    samples = read_rollout(tmp_path / "run" / FOLDER / "000000.jsonl")
    assert samples is not None
    assert all(sample.version == 0 for sample in samples)


def test_answers_bear_the_version_of_the_policy_that_wrote_them(desk: Path, tmp_path: Path) -> None:
    begin(values_of(desk, "ppo"), tmp_path / "run")
    of_file = [read_rollout(path) for path in sorted((tmp_path / "run" / FOLDER).iterdir())]
    assert [{sample.version for sample in samples or ()} for samples in of_file] == [{0}, {4}]


def test_a_reward_that_fails_stops_the_run_and_its_mended_file_goes_on(desk: Path, tmp_path: Path) -> None:
    file = tmp_path / "wish.py"
    broken = VOWELS.replace("return", "return seen.append(0) or 1 / (2 - len(seen)) and")
    file.write_text("seen = []\n" + broken)
    rewards = {"rewards": [{"function": str(file)}]}
    values = values_of(desk, "rloo", rewards, training={"checkpoint_every": 1}, data={"validation": "none"})
    with pytest.raises(RewardFault, match="ZeroDivisionError") as caught:
        begin(values, tmp_path / "run")
    assert "luthier resume" in caught.value.mend
    assert len(course(tmp_path / "run")) == 1
    file.write_text(VOWELS)
    assert go_on(tmp_path / "run").steps == 6
    begin(values, tmp_path / "whole")
    assert outcome(tmp_path / "run")[0] == outcome(tmp_path / "whole")[0]


FIRST = "def reward(prompts, answers, rows):\n    return [float(a[:1] in 'aeiou') for a in answers]\n"
"""Seldom different between two answers, so that most prompts teach nothing."""
SELDOM = {
    "grpo": {"resample_rounds": 3},
    "rloo": {"resample_rounds": 2, "num_answers": 2},
    "online-dpo": {"resample_rounds": 1},
}


@pytest.mark.parametrize("kind", SELDOM)
def test_prompts_that_teach_nothing_are_replaced_and_a_resumed_run_replaces_the_same(
    kind: str, desk: Path, tmp_path: Path
) -> None:
    file = tmp_path / "first.py"
    file.write_text(FIRST)
    values = values_of(desk, kind, {**SELDOM[kind], "rewards": [{"function": str(file)}]})
    rounds = SELDOM[kind]["resample_rounds"]
    with one_thread():
        begin(values, tmp_path / "whole")
        for step in (1, 4):
            folder = tmp_path / f"cut-{step}"
            with pytest.raises(Cut):
                begin(values, folder, cut_after(step))
            go_on(folder)
            assert outcome(folder)[0] == outcome(tmp_path / "whole")[0]
            assert said(folder) == said(tmp_path / "whole")
            assert written(folder) == written(tmp_path / "whole")
    wanted = 2 * values["objective"].get("minibatches", 1)
    taken = 0
    for path in sorted((tmp_path / "whole" / FOLDER).iterdir()):
        groups = by_group(read_rollout(path) or [])
        replaced = [group for group in groups if group[0].replaced]
        assert all(len({sample.reward for sample in group}) == 1 for group in replaced)
        assert len(groups) - len(replaced) == wanted
        assert len(replaced) <= rounds * wanted
        asked = [
            row
            for at in range(taken, taken + len(groups))
            for row in [epoch_order(12, values["seed"], at // 12)[at % 12]]
        ]
        assert [group[0].row for group in sorted(groups, key=lambda group: group[0].group)] == asked
        taken += len(groups)
    assert any("replaced_prompts" in line for line in said(tmp_path / "whole"))


def test_prompts_whose_answers_have_no_reward_are_replaced_too(desk: Path, tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text("seen = []\ndef reward(prompts, answers, rows):\n    seen.append(0)\n    first = len(seen) == 1\n"
                    "    return [float(i) if first and i < 2 else None for i in range(len(answers))]\n")  # fmt: skip
    objective = {"resample_rounds": 2, "minibatches": 1, "rewards": [{"function": str(file)}]}
    values = values_of(desk, "grpo", objective, training={"steps": 1}, data={"validation": "none"})
    begin(values, tmp_path / "run")
    (line,) = said(tmp_path / "run")
    assert line["replaced_prompts"] == 2  # the second of two, and then the one that took its place
    assert line["unrewarded"] == 6


@pytest.mark.parametrize(
    ("kind", "settings"), [("ppo", {}), ("raft", {}), ("reinforce++", {}), ("grpo", {"num_answers": 1})]
)
def test_replacing_prompts_is_refused_where_it_means_nothing(
    kind: str, settings: dict[str, Any], desk: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"teach|num_answers 1") as caught:
        begin(values_of(desk, kind, {"resample_rounds": 2, **settings}), tmp_path / "run")
    assert caught.value.field == "objective.resample_rounds"


def test_overlong_answers_of_one_reward_are_told_apart_by_their_punishment() -> None:
    rewards = [{"grader": {"type": "length", "most": 5}}]
    none = np.zeros(8, np.float32)
    answers = [Sample(0, 0, "", "", (1,) * length, "stop", 0, none[:length], reward=1.0) for length in (4, 8)]
    for overlong, expected in ((0, False), (4, True)):
        objective = GRPO.model_validate({"rewards": rewards, "max_new_tokens": 8, "overlong": overlong})
        assert objective.tells_apart(answers) is expected


class _Power(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("moment", ["_answered", "_rewarded", "_heard", "_credited"])
def test_a_process_that_ends_within_a_rollout_loses_nothing(
    moment: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(values_of(desk, "grpo"), tmp_path / "whole")
    original: Callable[..., Any] = getattr(rollouts.Rollouts, moment)
    calls: list[int] = []

    def dies(self: rollouts.Rollouts, *arguments: Any) -> Any:
        calls.append(0)
        if len(calls) == 2:
            raise _Power
        return original(self, *arguments)

    monkeypatch.setattr(rollouts.Rollouts, moment, dies)
    with pytest.raises(_Power):
        begin(values_of(desk, "grpo"), tmp_path / "run")
    monkeypatch.undo()
    go_on(tmp_path / "run")
    assert outcome(tmp_path / "run")[0] == outcome(tmp_path / "whole")[0]


def test_full_tuning_has_a_frozen_copy_for_reference_and_critic(desk: Path, tmp_path: Path) -> None:
    said_of: list[str] = []
    method = {"kind": "full", "rank": None}
    begin(values_of(desk, "ppo", method=method, training={"peak_lr": 1e-3}), tmp_path / "run", announce=said_of.append)
    assert any("frozen copy" in sentence for sentence in said_of)
    lines = said(tmp_path / "run")
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(lines[-1]["kl"]) > 1e-6


def test_micro_batches_of_any_size_give_the_same_step(desk: Path, tmp_path: Path) -> None:
    for size in (64, 512):
        begin(values_of(desk, "ppo", training={"steps": 2, "tokens_per_micro_batch": size}), tmp_path / str(size))
    small, large = (said(tmp_path / str(size)) for size in (64, 512))
    for one, other in zip(small, large, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_it_learns_what_is_rewarded(desk: Path, tmp_path: Path) -> None:
    objective = {"num_answers": 8, "max_new_tokens": 3, "minibatches": 1, "kl": 0.0, "entropy_bonus": 0.0}
    training = {"steps": 30, "rows_per_step": 4, "peak_lr": 0.005, "evaluate_every": 30, "tokens_per_micro_batch": 256}
    method = {"kind": "full", "rank": None}
    begin(values_of(desk, "grpo", objective, training=training, method=method), tmp_path / "run")
    rewards = [line["reward"] for line in said(tmp_path / "run")]
    assert sum(rewards[-5:]) > 2 * sum(rewards[:5])


def test_a_method_that_draws_is_refused_with_the_mend(desk: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="draws at random") as caught:
        begin(values_of(desk, "grpo", method={"dropout": 0.1}), tmp_path / "run")
    assert "dropout to 0" in caught.value.mend


def test_an_answer_that_did_not_end_is_punished(desk: Path, tmp_path: Path) -> None:
    begin(values_of(desk, "grpo", {"unended_penalty": 5.0}, training={"steps": 1}), tmp_path / "run")
    samples = read_rollout(tmp_path / "run" / FOLDER / "000000.jsonl") or []

    def expected(sample: Sample) -> float | None:
        return None if sample.parts["vowels"] is None else sample.parts["vowels"] - 5 * (not sample.has_ended)

    assert any(not sample.has_ended for sample in samples)
    assert [sample.reward for sample in samples] == [expected(sample) for sample in samples]


def test_nothing_of_the_reference_moves_while_the_policy_does(desk: Path, tmp_path: Path) -> None:
    """The first rollout's answers, read again by the reference at the end, have the very log-probabilities of then."""
    kept: list[list[Sample]] = []
    original = rollouts.Rollouts._heard

    def again(self: rollouts.Rollouts, samples: list[Sample]) -> list[Sample]:
        heard = original(self, samples)
        kept.append(original(self, [replace(each, reference_T=None) for each in (kept[0] if kept else heard)]))
        return heard

    rollouts.Rollouts._heard = again  # type: ignore[assignment,method-assign]
    try:
        begin(values_of(desk, "rloo", {"temperature": 1.0}, training={"steps": 3}), tmp_path / "run", announce=nothing)
    finally:
        rollouts.Rollouts._heard = original  # type: ignore[method-assign]
    for later in kept[1:]:
        for one, other in zip(kept[0], later, strict=True):
            assert torch.equal(torch.tensor(one.reference_T), torch.tensor(other.reference_T))


@pytest.mark.parametrize("folds", [True, False], ids=["folded", "beside"])
def test_the_engine_gives_drawn_tokens_the_trainers_log_probabilities(
    folds: bool, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a policy that has learned something, whether its adapter was folded into the weights or stood beside them."""
    under: list[str | None] = []
    original = writers.generate

    def noted(model: Any, requests: Any, **rest: Any) -> Any:
        under.extend(request.adapter for request in requests)
        return original(model, requests, **rest)

    monkeypatch.setattr(writers, "generate", noted)
    objective = {"temperature": 1.0, "generation": {"folds_adapter": folds}, "kl_target": None}
    begin(values_of(desk, "ppo", objective, training={"steps": 8, "peak_lr": 0.03}), tmp_path / "run")
    assert set(under) == {"default-folded" if folds else "default"}
    later = read_rollout(tmp_path / "run" / FOLDER / "000001.jsonl") or []
    gaps = [abs(sample.old_T - sample.engine_T).max() for sample in later if sample.old_T is not None]
    moved = [abs(sample.ratio_T).max() for sample in later]
    assert len(gaps) == len(later) > 0
    assert max(gaps) < 1e-4 < 1e-2 < max(moved)
