"""Rollouts that a server writes: the policy is brought to it, its answers are those of this process, and doubts end the run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_vllm import FakeVLLM, serving
from rollout_desk import write_desk
from tiny_runs import Cut, begin, course, cut_after, go_on, one_thread, recipe_values

from luthier import run
from luthier.errors import NetworkError, RecipeError, ResourceError, RunMismatch
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.recipe import make_recipe
from luthier.rlhf.contract import ADVANTAGE
from luthier.rlhf.kept import FOLDER, read_rollout
from luthier.rlhf.samples import Sample
from luthier.rlhf.writers import FOLDER as ENGINE
from luthier.rlhf.writers import Apart, importance, weighed


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plot takes longer than the training, and more threads than one wait for each other."""
    monkeypatch.setattr(run, "write_loss_plot", lambda *arguments: None)
    with one_thread():
        yield


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, prompts, and a reward for vowels."""
    return write_desk(tmp_path_factory.mktemp("desk"))


def values_of(desk: Path, kind: str, generation: dict[str, Any], **parts: Any) -> dict[str, Any]:
    parts["data"] = {"validation": str(desk / "held-out.jsonl"), "max_length": 64}
    usual = {"rows_per_step": 2, "tokens_per_micro_batch": 128, "evaluate_every": 2, "steps": 4}
    parts["training"] = {**usual, **parts.get("training", {})}
    objective = {
        "kind": kind,
        "rewards": [{"function": str(desk / "vowels.py")}],
        "max_new_tokens": 6,
        "num_answers": 2,
        "held_out_prompts": 1,
        "generation": generation,
        **parts.pop("objective", {}),
    }
    return {**recipe_values(desk / "model", desk / "rows.jsonl", **parts), "objective": objective}


@pytest.fixture
def fake(desk: Path) -> Iterator[FakeVLLM]:
    model = load_model(ModelSettings(name=str(desk / "model"), dtype="fp32"), lambda text: None)
    with serving(FakeVLLM(model, name="tiny")) as made:
        yield made


def at(fake: FakeVLLM, **settings: Any) -> dict[str, Any]:
    return {"kind": "vllm", "url": fake.url, "retries": 0, **settings}


def answers(folder: Path) -> list[list[tuple[int, ...]]]:
    """The tokens of all answers of a run, rollout by rollout."""
    return [[each.tokens for each in read_rollout(file) or ()] for file in sorted((folder / FOLDER).iterdir())]


@pytest.mark.parametrize(
    ("kind", "objective"),
    [("grpo", {"kl": 0.1}), ("ppo", {"minibatches": 2, "reuse": 1})],
)
def test_a_run_whose_answers_a_server_writes_is_the_run_of_this_process(
    kind: str, objective: dict[str, Any], desk: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    begin(values_of(desk, kind, {"kind": "own"}, objective=objective), tmp_path / "own")
    begin(values_of(desk, kind, at(fake), objective=objective), tmp_path / "served")
    assert answers(tmp_path / "served") == answers(tmp_path / "own")
    for mine, other in zip(course(tmp_path / "own"), course(tmp_path / "served"), strict=True):
        assert other["loss"] == pytest.approx(mine["loss"], abs=1e-5)
        assert other["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-3)
        assert other.get("validation_reward") == mine.get("validation_reward")
        if "engine_weight" in other:
            assert other["engine_weight"] == pytest.approx(1, abs=1e-5)
            assert other["engine_gap"] < 1e-5
            assert other["ratio"] == pytest.approx(1, abs=1e-5)
    versions = [int(name.rpartition("-")[2]) for name in fake.loaded]
    assert versions == ([0, 1, 2, 3, 4] if kind == "grpo" else [0, 2, 4])
    assert fake.adapters == {}  # the last one is taken away too
    assert not (tmp_path / "served" / ENGINE).exists()


def test_whole_weights_go_through_a_folder(desk: Path, fake: FakeVLLM, tmp_path: Path) -> None:
    fake.takes_weights = True
    method = {"kind": "full", "rank": None}
    values = values_of(desk, "grpo", at(fake), method=method, training={"peak_lr": 1e-2, "steps": 3})
    begin(values, tmp_path / "served")
    begin({**values, "objective": {**values["objective"], "generation": {"kind": "own"}}}, tmp_path / "own")
    assert answers(tmp_path / "served") == answers(tmp_path / "own")
    assert [name.rpartition("-")[2] for name in fake.loaded] == ["0", "1", "2", "3"]
    assert all(line["engine_gap"] < 1e-5 for line in course(tmp_path / "served"))
    update = [path.partition("?")[0] for path, _ in fake.asked if "/v1/" not in path][1:6]
    assert update == ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update", "/resume"]


def test_a_run_that_died_takes_its_adapter_away_when_it_goes_on(desk: Path, fake: FakeVLLM, tmp_path: Path) -> None:
    values = values_of(desk, "grpo", at(fake), training={"checkpoint_every": 1})
    begin(values, tmp_path / "whole")
    fake.dead_after = fake.num_answered + 6  # in the third rollout
    with pytest.raises(NetworkError, match="luthier resume"):
        begin(values, tmp_path / "cut")
    assert len(fake.adapters) == 1  # nobody could reach it
    fake.dead_after = None
    go_on(tmp_path / "cut")
    assert fake.adapters == {}
    assert answers(tmp_path / "cut") == answers(tmp_path / "whole")
    assert len(set(fake.loaded)) == len(fake.loaded)  # no name stands for two versions


def test_a_rollout_that_was_written_down_is_not_asked_for_again(desk: Path, fake: FakeVLLM, tmp_path: Path) -> None:
    values = values_of(desk, "grpo", at(fake), training={"checkpoint_every": 2}, objective={"minibatches": 2})
    with pytest.raises(Cut):
        begin(values, tmp_path / "run", cut_after(1))
    written = answers(tmp_path / "run")
    go_on(tmp_path / "run")
    assert answers(tmp_path / "run")[0] == written[0]


def test_a_server_of_another_model_ends_the_run_before_anything_is_learned(
    desk: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    for parameter in fake.model.hf.parameters():
        parameter.requires_grad_(False).mul_(1.5)
    with pytest.raises(RunMismatch, match="max_gap") as refused:
        begin(values_of(desk, "grpo", at(fake, max_gap=1e-3)), tmp_path / "run")
    assert refused.value.field == "objective.generation.max_gap"
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_server_that_answers_at_another_temperature_than_it_tells_is_told_how(
    desk: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    """The tiny server tells log-probabilities before the temperature, as vllm serve does unless it is told otherwise."""
    with pytest.raises(RunMismatch) as refused:
        begin(values_of(desk, "grpo", at(fake, max_gap=1e-3), objective={"temperature": 0.5}), tmp_path / "run")
    assert "processed_logprobs" in refused.value.mend


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"kind": "ia3", "rank": None}, "type IA3"),
        ({"kind": "dora"}, "DoRA"),
        ({"kind": "lora", "rank": 600}, "at most 512"),
        ({"kind": "houlsby", "rank": None}, "no adapter in peft's form"),
    ],
)
def test_a_method_that_vllm_cannot_load_is_refused_before_a_prompt_is_answered(
    method: dict[str, Any], words: str, desk: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=words) as refused:
        begin(values_of(desk, "grpo", at(fake), method=method), tmp_path / "run")
    assert "lora" in refused.value.mend
    assert fake.num_answered == 0


def test_a_server_with_too_little_room_is_told_before_a_prompt_is_answered(
    desk: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    fake.max_model_len = 20
    with pytest.raises(ResourceError, match="holds 20"):
        begin(values_of(desk, "grpo", at(fake)), tmp_path / "run")
    assert fake.num_answered == 0


def test_a_cache_without_room_for_the_longest_prompt_is_told_before_one_is_answered(desk: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cache_gb"):
        begin(values_of(desk, "grpo", {"cache_gb": 1e-6}), tmp_path / "run")
    begin(values_of(desk, "grpo", {"cache_gb": 1e-3}, training={"steps": 1}), tmp_path / "fits")


@pytest.mark.parametrize(
    ("generation", "field"),
    [
        ({"kind": "vllm"}, "objective.generation.url"),
        ({"kind": "vllm", "url": "localhost"}, "objective.generation.url"),
        ({"kind": "sglang", "url": "http://a"}, "objective.generation.kind"),
        ({"kind": "vllm", "url": "http://a", "cache_gb": 1}, "objective.generation.cache_gb"),
        ({"cache_gb": 0}, "objective.generation.cache_gb"),
    ],
)
def test_a_setting_that_cannot_be_is_told_with_its_field(generation: dict[str, Any], field: str, desk: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        make_recipe(values_of(desk, "grpo", generation))
    assert refused.value.field == field


def sample(old: list[float], engine: list[float]) -> Sample:
    arrays = [np.array(each, dtype=np.float32) for each in (old, engine)]
    return Sample(0, 0, "", "", (5,) * len(old), "stop", 0, arrays[1], reward=1.0, old_T=arrays[0])


def test_importance_is_the_ratio_up_to_its_limit() -> None:
    weights = importance(sample([-1.0, -2.0, -1.0], [-1.0, -1.0, -900.0]), 2.0)
    assert weights.tolist() == pytest.approx([1.0, math.exp(-1), 2.0])


def test_a_weighed_advantage_gives_in_expectation_what_answers_of_the_trainer_give() -> None:
    """Σ_y μ(y) w(y) A(y) = Σ_y π(y) A(y) where no ratio is cut off."""
    trainer, server = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.35, 0.25])
    advantage = np.array([1.0, -2.0, 0.5], dtype=np.float32)
    of_tokens = [sample([math.log(p)], [math.log(q)]) for p, q in zip(trainer, server, strict=True)]
    given = [{ADVANTAGE: advantage[index : index + 1], "old": np.ones(1, np.float32)} for index in range(3)]
    found = weighed(of_tokens, given, Apart(0.1, 2.0))
    assert sum(q * own[ADVANTAGE][0] for q, own in zip(server, found, strict=True)) == pytest.approx(
        float(trainer @ advantage), abs=1e-6
    )
    assert all(own["old"] == [1.0] for own in found)
