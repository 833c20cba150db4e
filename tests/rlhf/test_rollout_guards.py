"""What guards a run that learns from its own answers: nothing is lost when a reward fails, and nobody else's answers are learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_desk import VOWELS, write_desk
from tiny_runs import Cut, begin, course, cut_after, go_on, one_thread, outcome, recipe_values

from luthier import run
from luthier.errors import RewardFault, RunMismatch
from luthier.generation.requests import Completed, Request
from luthier.rlhf import writers
from luthier.rlhf.critic import Critic
from luthier.rlhf.kept import FOLDER, read_rollout


@pytest.fixture(autouse=True)
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than the training."""
    monkeypatch.setattr(run, "write_reward_plot", lambda *arguments: None)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, prompts, and a reward for vowels."""
    return write_desk(tmp_path_factory.mktemp("desk"))


def values_of(desk: Path, objective: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    usual = {"steps": 3, "rows_per_step": 2, "tokens_per_micro_batch": 128, "checkpoint_every": 99, "evaluate_every": 2}
    data = {"validation": str(desk / "held-out.jsonl"), "max_length": 64}
    values = recipe_values(desk / "model", desk / "rows.jsonl", data=data, training={**usual, **training})
    short = {"max_new_tokens": 6, "num_answers": 3, "held_out_prompts": 1}
    rewards = [{"function": str(desk / "vowels.py")}]
    return {**values, "objective": {"kind": "rloo", "rewards": rewards, **short, **objective}}


# ── rewards that fail ───────────────────────────────────────────────────────────────────────────────────────────────

NUM_ANSWERS, NUM_HELD_OUT = 6, 1
FAULTS = {
    "sleeps": ("time.sleep(60)", "took more than"),
    "says NaN": ("return [float('nan')] * len(answers)", "finite"),
    "says too few": ("return [1.0]", "a list of 1"),
    "raises": ("raise ValueError('no idea')", "no idea"),
}


def failing(body: str, num_answers: int, call: int) -> str:
    """A reward that goes wrong when so many answers come to it for the so-manieth time."""
    vowels = VOWELS.replace("def reward(prompts, answers, rows):\n", "def vowels(prompts, answers, rows):\n")
    assert vowels != VOWELS
    return (
        f"import time\nseen = []\n{vowels}\ndef reward(prompts, answers, rows):\n    seen.append(len(answers))\n"
        f"    if seen.count({num_answers}) == {call} and len(answers) == {num_answers}:\n        {body}\n"
        "    return vowels(prompts, answers, rows)\n"
    )


@pytest.fixture(scope="module")
def whole(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which nothing fails."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with one_thread():
        begin(values_of(desk, {"rewards": [{"function": str(desk / "vowels.py"), "name": "vowels"}]}, {}), folder)
    return folder


def broken_off(desk: Path, file: Path, folder: Path, words: str) -> None:
    rewards = [{"function": str(file), "name": "vowels", "timeout_seconds": 3}]
    with one_thread(), pytest.raises(RewardFault, match=words):
        begin(values_of(desk, {"rewards": rewards}, {}), folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reward_that_fails_far_from_a_checkpoint_loses_no_step_and_no_answer(
    fault: str, desk: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, words = FAULTS[fault]
    file, folder = tmp_path / "wish.py", tmp_path / "run"
    file.write_text(failing(body, NUM_ANSWERS, call=2))
    broken_off(desk, file, folder, words)
    assert [line["step"] for line in course(folder)] == [1]
    assert (folder / "checkpoints" / "step-1").is_dir()
    written = read_rollout(folder / FOLDER / "000001.unscored-0")
    assert written is not None
    assert len(written) == NUM_ANSWERS
    file.write_text(VOWELS)
    versions: list[int] = []
    original = writers.OwnWriter.write

    def noted(self: writers.OwnWriter, requests: Any, version: int, progress: Any = None) -> list[Completed]:
        versions.append(version)
        return original(self, requests, version, progress)

    monkeypatch.setattr(writers.OwnWriter, "write", noted)
    with one_thread():
        go_on(folder)
    assert outcome(folder) == outcome(whole)
    assert 1 not in versions, "the answers that were written down are scored, not written anew"
    assert sorted(path.name for path in (folder / FOLDER).iterdir()) == [f"00000{number}.jsonl" for number in range(3)]


def test_a_reward_that_fails_on_held_out_answers_loses_nothing_either(desk: Path, whole: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "wish.py", tmp_path / "run"
    file.write_text(failing("raise ValueError('no idea')", NUM_HELD_OUT, call=1))
    broken_off(desk, file, folder, "no idea")
    assert [line["step"] for line in course(folder)] == [1]
    assert (folder / "checkpoints" / "step-2").is_dir()
    file.write_text(VOWELS)
    with one_thread():
        with pytest.raises(Cut):  # the step that is measured now is written down once, whenever the process ends
            go_on(folder, cut_after(2))
        go_on(folder)
    assert outcome(folder) == outcome(whole)


# ── whose answers they are ──────────────────────────────────────────────────────────────────────────────────────────


def changed_from(version: int, change: Callable[[Request], Request]) -> Callable[..., list[Completed]]:
    """A writer that changes its requests from a version of the policy on."""
    original = writers.OwnWriter.write

    def write(self: writers.OwnWriter, requests: Sequence[Request], now: int, progress: Any = None) -> list[Completed]:
        return original(self, requests if now < version else [change(each) for each in requests], now, progress)

    return write


def test_rollouts_on_the_disk_stay_whoever_would_draw_them_otherwise_now(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, values = tmp_path / "run", values_of(desk, {}, {"steps": 5, "checkpoint_every": 2})
    values["data"]["validation"] = "none"
    with one_thread(), pytest.raises(Cut):
        begin(values, folder, cut_after(4))  # before its checkpoint: that of step 2 is the last
    before = {path.name: path.read_bytes() for path in (folder / FOLDER).iterdir()}
    assert len(before) == 4
    lines = course(folder)

    def otherwise(request: Request) -> Request:
        return replace(request, sampling=request.sampling.model_copy(update={"seed": request.sampling.seed + 1}))

    monkeypatch.setattr(writers.OwnWriter, "write", changed_from(0, otherwise))
    with one_thread():
        go_on(folder)
    after = {path.name: path.read_bytes() for path in (folder / FOLDER).iterdir()}
    assert before.items() <= after.items()
    assert course(folder)[:4] == lines


@pytest.mark.parametrize("objective", [{"kind": "grpo"}, {"kind": "reinforce++"}, {"kind": "rloo", "temperature": 0.8}])
def test_answers_of_another_policy_end_the_run_in_any_rollout(
    objective: dict[str, Any], desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that goes on with the policy as it was at the start: nothing to see before the first step."""
    values = values_of(desk, objective, {"peak_lr": 0.05, "schedule": {"kind": "constant", "warmup_fraction": 0.0}})
    values["objective"]["generation"] = {"folds_adapter": False}
    monkeypatch.setattr(writers, "generate", _stale(writers.generate))
    with pytest.raises(RunMismatch, match="nats apart"):
        begin(values, tmp_path / "run")
    lines = course(tmp_path / "run")
    assert 1 <= len(lines) < 3
    assert all(line["engine_gap"] < 1e-3 for line in lines)
    assert (tmp_path / "run" / "checkpoints" / f"step-{len(lines)}").is_dir()


def _stale(generate: Callable[..., list[Completed]]) -> Callable[..., list[Completed]]:
    def by_the_base(model: Any, requests: Sequence[Request], **rest: Any) -> list[Completed]:
        return generate(model, [replace(request, adapter=None) for request in requests], **rest)

    return by_the_base


def test_ratios_are_of_the_format_that_training_computes_in(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 within threads of their own: who reads, who expects and who writes all compute as the trainer does."""
    seen: dict[str, set[bool]] = {"writes": set(), "expects": set()}
    generate, values = writers.generate, Critic.values

    def writes(*arguments: Any, **rest: Any) -> list[Completed]:
        seen["writes"].add(torch.is_autocast_enabled("cpu"))
        return generate(*arguments, **rest)

    def expects(self: Critic, outputs: Any) -> torch.Tensor:
        seen["expects"].add(torch.is_autocast_enabled("cpu"))
        return values(self, outputs)

    monkeypatch.setattr(writers, "generate", writes)
    monkeypatch.setattr(Critic, "values", expects)
    training = {"autocast": "bf16", "workers": 2, "tokens_per_micro_batch": 64, "steps": 1}
    begin(values_of(desk, {"kind": "ppo", "reuse": 1}, training), tmp_path / "run")
    (line,) = course(tmp_path / "run")
    assert seen == {"writes": {True}, "expects": {True}}
    assert line["approx_kl"] == pytest.approx(0, abs=1e-9)
    assert line["ratio"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("autocast", "reads"), [("none", False), ("bf16", True)])
def test_a_pull_within_the_reward_is_of_the_trainers_own_numbers_in_half_precision(
    autocast: str, reads: bool, desk: Path, tmp_path: Path
) -> None:
    begin(values_of(desk, {}, {"autocast": autocast, "steps": 1}), tmp_path / "run")
    samples = read_rollout(tmp_path / "run" / FOLDER / "000000.jsonl") or []
    assert {sample.old_T is not None for sample in samples} == {reads}


def test_the_rest_of_a_rollout_is_left_out_once_the_policy_is_far_from_the_one_that_wrote_it(
    desk: Path, tmp_path: Path
) -> None:
    objective = {"kind": "ppo", "reuse": 4, "approx_kl_stop": 1e-7, "num_answers": 1}
    values = values_of(desk, objective, {"steps": 6, "checkpoint_every": 1, "peak_lr": 0.05})
    values["data"]["validation"] = "none"
    with one_thread():
        begin(values, tmp_path / "whole")
        with pytest.raises(Cut):
            begin(values, tmp_path / "run", cut_after(3))  # its checkpoint, of step 2, left steps out
        go_on(tmp_path / "run")
    lines = course(tmp_path / "whole")
    far = [line["step"] for line in lines if line["approx_kl"] > 1e-7]
    assert far == [line["step"] for line in lines if "left_out_steps" in line] == [2, 4, 6]
    assert lines[1]["left_out_steps"] == 2
    of_files = [read_rollout(path) or [] for path in sorted((tmp_path / "whole" / FOLDER).iterdir())]
    assert [samples[0].version for samples in of_files] == [0, 2, 4]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert all(line["explained_variance"] <= 1 and 0 <= line["value_clip_share"] <= 1 for line in lines[::2])
