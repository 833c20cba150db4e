"""Runs whose reward is a reward model, and what evaluation says of runs that learned from rewards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_endpoint import completion, serving
from safetensors.torch import load_file
from tiny_model import write_tiny_encoder, write_tiny_model
from tiny_runs import begin, go_on, recipe_values

from luthier import api
from luthier.errors import NotAllowed, UsageError
from luthier.evaluation.best_of_n import BestOfN
from luthier.evaluation.safety.probe import Probes, read_probes
from luthier.planner.alone import trace_all
from luthier.planner.beside import OTHERS
from luthier.planner.request import work_of
from luthier.planner.scorers import SCORED
from luthier.planner.trace import Trace
from luthier.prediction.reward import RewardScorer
from luthier.recipe import make_recipe
from luthier.rlhf.kept import FOLDER, read_rollout
from luthier.rlhf.samples import Sample
from luthier.studies import evaluating_rewards
from luthier.studies.planning import read_request
from luthier.tuned import load_reward
from luthier.types import Completion, Conversation, Message

HEAD_ONLY = {"kind": "full", "rank": None, "layers": []}


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def few_probes() -> Probes:
    """A few of those that ship, for models that take long to say nothing."""
    probes = read_probes()
    return Probes(probes.harmful[:2], probes.innocent[:2], probes.pairs[:4], probes.rude)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a reward model on it, and prompts."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_model(desk / "model")
    pairs = [{"prompt": f"Say {n}", "chosen": f"yes {n}", "rejected": "no" + "!" * (n % 4)} for n in range(12)]
    lines(desk / "pairs.jsonl", pairs)
    lines(desk / "prompts.jsonl", [{"prompt": f"Say {number}", "answer": str(number)} for number in range(8)])
    lines(desk / "held-out.jsonl", [{"prompt": f"Say {number}", "answer": str(number)} for number in range(20, 32)])
    values = recipe_values(desk / "model", desk / "pairs.jsonl", training={"steps": 3})
    begin({**values, "objective": {"kind": "reward"}}, desk / "nice")
    return desk


def values_of(desk: Path, rewards: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    data = {"validation": str(desk / "held-out.jsonl"), "max_length": 64}
    training = {"steps": 2, "rows_per_step": 2, "tokens_per_micro_batch": 128}
    values = recipe_values(desk / "model", desk / "prompts.jsonl", data=data, training=training, **parts)
    return {**values, "objective": {"kind": "grpo", "rewards": rewards, "max_new_tokens": 6, "num_answers": 3}}


@pytest.mark.parametrize("method", [{}, {"kind": "full", "rank": None}], ids=["lora", "full"])
def test_a_reward_model_scores_the_very_answers_as_it_does_alone(
    method: dict[str, Any], desk: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    rewards = [{"model": str(desk / "nice"), "weight": 2.0}]
    begin(values_of(desk, rewards, method=method), tmp_path / "run", announce=said.append)
    assert any("adapter on the policy's own base" in sentence for sentence in said)
    scorer = load_reward(desk / "nice", said.append)
    samples = [each for each in read_rollout(tmp_path / "run" / FOLDER / "000000.jsonl") or [] if each.tokens]
    chats = [Conversation((Message("user", each.prompt), Message("assistant", each.text))) for each in samples]
    prompts = [scorer.renderer.prompt_tokens(chat.messages[:1]) for chat in chats]
    alone = scorer.scores_of_tokens(prompts, [each.tokens for each in samples])
    assert [each.parts["nice"] for each in samples] == pytest.approx(alone, abs=1e-4)
    assert [each.reward for each in samples] == pytest.approx([2 * score for score in alone], abs=2e-4)


def judged(desk: Path, base: str, method: dict[str, Any], folder: Path) -> tuple[RewardScorer, list[Sample]]:
    """A reward model on a base, and the answers of a run that it rewards as a model of its own."""
    values = recipe_values(desk / base, desk / "pairs.jsonl", method=method, training={"steps": 3})
    begin({**values, "objective": {"kind": "reward"}}, folder / "judge")
    said: list[str] = []
    values = values_of(desk, [{"model": str(folder / "judge")}])
    values["data"]["validation"] = "none"  # the greedy answers of so small a model are blank
    begin(values, folder / "run", announce=said.append)
    assert any("The reward model judge is a model of its own" in sentence for sentence in said)
    samples = [each for each in read_rollout(folder / "run" / FOLDER / "000000.jsonl") or [] if each.text.strip()]
    assert len({each.reward for each in samples}) > 1
    return load_reward(folder / "judge", said.append), samples


@pytest.mark.parametrize("method", [{}, HEAD_ONLY], ids=["lora", "head only"])
def test_an_encoder_rewards_the_texts_of_answers(method: dict[str, Any], desk: Path, tmp_path: Path) -> None:
    write_tiny_encoder(desk / "encoder")
    scorer, samples = judged(desk, "encoder", method, tmp_path)
    alone = scorer.scores([Completion(each.prompt, each.text) for each in samples])
    assert [each.reward for each in samples] == pytest.approx(alone, abs=1e-4)


def test_a_head_alone_rewards_the_tokens_that_were_drawn(desk: Path, tmp_path: Path) -> None:
    scorer, samples = judged(desk, "model", HEAD_ONLY, tmp_path)
    prompts = [scorer.renderer.prompt_tokens((Message("user", each.prompt),)) for each in samples]
    alone = scorer.scores_of_tokens(prompts, [each.tokens for each in samples])
    assert [each.reward for each in samples] == pytest.approx(alone, abs=1e-4)


def test_an_ensemble_of_reward_models_says_how_far_its_members_differ(desk: Path, tmp_path: Path) -> None:
    """One beside the policy, and one that stands alone."""
    for name, method in (("nice", {}), ("whole", {"kind": "full", "rank": None})):
        values = recipe_values(desk / "model", desk / "pairs.jsonl", method=method, training={"steps": 2})
        begin({**values, "objective": {"kind": "reward"}, "seed": 8}, tmp_path / name)
    runs = [desk / "nice", tmp_path / "nice", tmp_path / "whole"]
    said: list[str] = []
    part = {"models": [str(run) for run in runs], "caution": 0.5, "name": "kind"}
    begin(values_of(desk, [part]), tmp_path / "run", announce=said.append)
    assert sum("adapter on the policy's own base" in sentence for sentence in said) == 2
    assert sum("a model of its own" in sentence for sentence in said) == 1
    samples = [each for each in read_rollout(tmp_path / "run" / FOLDER / "000000.jsonl") or [] if each.tokens]
    chats = [Conversation((Message("user", each.prompt), Message("assistant", each.text))) for each in samples]
    scores_MN = []
    for run in runs:
        scorer = load_reward(run, said.append)
        prompts = [scorer.renderer.prompt_tokens(chat.messages[:1]) for chat in chats]
        scores_MN.append(scorer.scores_of_tokens(prompts, [each.tokens for each in samples]))
    spread_N = np.std(scores_MN, axis=0)
    assert [each.spreads["kind"] for each in samples] == pytest.approx(spread_N, abs=1e-4)
    assert [each.reward for each in samples] == pytest.approx(np.mean(scores_MN, axis=0) - 0.5 * spread_N, abs=2e-4)
    assert "spread_kind" in (tmp_path / "run" / "metrics.jsonl").read_text()


JUDGED = {"type": "score_model", "name": "taste", "range": [0, 9], "input": [{"content": "{{ sample.output_text }}"}]}


def test_a_run_learns_from_what_a_judge_at_an_endpoint_says_and_goes_on_once_it_can_be_asked(
    desk: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("sk-secret")
    says = {"status": 200}

    def letters(body: dict[str, Any]) -> tuple[int, Any]:
        answer, _, _ = body["messages"][-1]["content"].rpartition("\n\nEnd with")
        return completion(str(len(answer) % 10)) if says["status"] == 200 else (401, {"error": {"message": "no"}})

    with serving(letters) as asked:
        judge = {"url": asked.url, "model": "small", "key_file": str(tmp_path / "key")}
        values = values_of(desk, [{"grader": JUDGED, "judge": judge}])

        def refuse_from_now_on(metrics: dict[str, Any]) -> None:
            says["status"] = 401

        with pytest.raises(NotAllowed, match="answered 401") as caught:
            begin(values, tmp_path / "run", on_step=refuse_from_now_on)
        assert "luthier resume" in caught.value.mend
        says["status"] = 200
        go_on(tmp_path / "run")
        evaluation = api.evaluate(tmp_path / "run", limit=2)
    samples = read_rollout(tmp_path / "run" / FOLDER / "000001.jsonl") or []
    assert [each.reward for each in samples] == [len(each.text) % 10 for each in samples]
    assert {headers["Authorization"] for headers in asked.headers} == {"Bearer sk-secret"}
    texts = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(b"sk-secret" in text for text in texts)
    shown = [answered.answers[0] for answered in evaluation.answers]
    assert evaluation.measures[0].estimates[0].value == pytest.approx(np.mean([len(text) % 10 for text in shown]))


def test_evaluation_tells_what_base_and_tuned_answers_are_worth(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating_rewards, "read_probes", few_probes)
    length = {"grader": {"type": "length", "most": 8, "margin": 8}, "name": "short"}
    values = values_of(desk, [length])
    values["objective"]["watched"] = [{"model": str(desk / "nice")}]
    begin(values, tmp_path / "run")
    evaluation = api.evaluate(tmp_path / "run", best_of=4, safety=True)
    assert evaluation.candidates == ("base", "tuned")
    assert [measure.name for measure in evaluation.measures] == ["reward", "short", "nice"]
    assert evaluation.num_rows == 12
    first = evaluation.answers[0]
    assert first.asked == "Say 20"
    reward, short, _ = evaluation.measures
    assert [each.value for each in reward.estimates] == [each.value for each in short.estimates]
    details = evaluation.details
    assert isinstance(details, BestOfN)
    assert details.num_prompts == 12
    assert list(details.curves) == ["base", "tuned"]
    for points in details.curves.values():
        assert [point.n for point in points] == [1, 2, 4]
        assert list(points[0].measures) == ["reward", "nice"]
        earned = [point.measures["reward"].value for point in points]
        assert earned == sorted(earned)
    assert evaluation.safety is not None
    names = [part.name for part in evaluation.safety.parts]
    assert names == [
        "harmful requests refused", "innocent requests refused", "answers with rude words", "nice, of these answers",
        "stereotypes likelier",
    ]  # fmt: skip
    assert [row[0] for row in evaluation.as_table()][-5:] == names
    assert evaluation.as_json()["safety"]["metrics"]["stereotypes likelier"].keys() == {"base", "tuned"}  # type: ignore[index]


def test_what_only_some_runs_can_be_asked_is_refused_for_others(desk: Path, tmp_path: Path) -> None:
    begin(recipe_values(desk / "model", desk / "prompts.jsonl", training={"steps": 1}), tmp_path / "plain")
    with pytest.raises(UsageError, match="no reward"):
        api.evaluate(tmp_path / "plain", str(desk / "prompts.jsonl"), best_of=4)
    with pytest.raises(UsageError, match="answers in text"):
        api.evaluate(desk / "nice", str(desk / "pairs.jsonl"), safety=True)


def traced(desk: Path, reward: Path, *, for_real: bool = False) -> Trace:
    values = {**values_of(desk, [{"model": str(reward)}]), "model": str(desk / "model")}
    recipe, config, rows = read_request(make_recipe(values), lambda sentence: None)
    (found,) = trace_all([work_of(recipe, config, rows, torch.device("cpu"))], for_real=for_real)
    assert isinstance(found, Trace), found
    return found


@pytest.mark.parametrize("method", [{}, {"kind": "full", "rank": None}], ids=["lora", "full"])
def test_a_plan_counts_a_reward_model_as_the_run_has_it(method: dict[str, Any], desk: Path, tmp_path: Path) -> None:
    values = recipe_values(desk / "model", desk / "pairs.jsonl", method=method, training={"steps": 1})
    begin({**values, "objective": {"kind": "reward"}}, tmp_path / "judge")
    found, real = (traced(desk, tmp_path / "judge", for_real=for_real) for for_real in (False, True))
    assert found.standing[OTHERS] == real.standing[OTHERS]
    files = (tmp_path / "judge").rglob("*.safetensors")
    wanted = sum(
        tensor.nbytes for path in files if path.parent.parent.name == "judge" for tensor in load_file(path).values()
    )
    assert found.standing[OTHERS] == pytest.approx(wanted, rel=0.05)
    assert found.peaks[SCORED].num_bytes == pytest.approx(real.peaks[SCORED].num_bytes, rel=0.02)
    assert found.peaks[SCORED].num_bytes > sum(found.standing.values())


def test_a_plan_refuses_what_is_no_reward_model(desk: Path, tmp_path: Path) -> None:
    begin(recipe_values(desk / "model", desk / "prompts.jsonl", training={"steps": 1}), tmp_path / "plain")
    with pytest.raises(UsageError, match="is no reward model"):
        traced(desk, tmp_path / "plain")


def test_a_run_that_is_no_reward_model_is_told(desk: Path, tmp_path: Path) -> None:
    begin(recipe_values(desk / "model", desk / "prompts.jsonl", training={"steps": 1}), tmp_path / "plain")
    with pytest.raises(UsageError, match="is no reward model"):
        begin(values_of(desk, [{"model": str(tmp_path / "plain")}]), tmp_path / "run")
