"""PPO against what TRL computed when it had a PPO: the numbers of tests/golden/trl-ppo.

What TRL's last trainer does otherwise: it puts the score one place after the answer's last token where there is room, expects a
value there, and counts that place in the critic's loss. Where all answers are as long as they may be there is no such place, and
everything is the same; where answers end before, the parts are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from luthier.models.outputs import Outputs, Values
from luthier.rlhf import PPO
from luthier.rlhf.advantages import gae, whitened
from luthier.rlhf.contract import ADVANTAGE, OLD, REFERENCE
from luthier.rlhf.policy_losses import clipped, divergence, value_loss
from luthier.rlhf.ppo import CRITIC, RETURN, VALUE
from luthier.rlhf.samples import Sample
from luthier.types import Targets

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "trl-ppo"
REWARDS = [{"grader": {"type": "length", "most": 5}}]
FULL = ("full-length", "whitened")
NEAR = 1e-5


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


def objective(settings: dict[str, Any]) -> PPO:
    """PPO with TRL's settings."""
    names = {
        "kl_coef": "kl", "cliprange": "clip", "cliprange_value": "value_clip", "vf_coef": "value_weight", "gamma": "gamma",
        "lam": "lam", "whiten_rewards": "whiten_rewards",
    }  # fmt: skip
    return PPO.model_validate({"rewards": REWARDS, **{ours: settings[theirs] for theirs, ours in names.items()}})


def samples_of(
    lengths: list[int], scores: list[float], old: list[Any], reference: list[Any], values: list[Any]
) -> list[Sample]:
    """TRL's rows as answers."""

    def row(numbers: list[float], length: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.array(numbers[:length], dtype=np.float32)

    return [
        Sample(
            index, index, "", "", (0,) * length, "stop", 0, row(old[index], length), reward=scores[index],
            old_T=row(old[index], length), reference_T=row(reference[index], length), value_T=row(values[index], length),
        )
        for index, length in enumerate(lengths)
    ]  # fmt: skip


@dataclass
class Said:
    """What policy and critic say of the answers' tokens, as an objective reads it; logits are at the temperature."""

    logits_NV: Tensor
    value_N: Tensor
    targets: Targets

    def at(self, temperature: float) -> Said:
        return self

    @property
    def logprob_N(self) -> Tensor:
        return torch.log_softmax(self.logits_NV, -1).gather(-1, self.targets.token_N[:, None])[:, 0]

    @property
    def beside(self) -> dict[str, Values]:
        return {CRITIC: Values(self.value_N)}


def step_of(ppo: PPO, tokens: Tensor, logits: Tensor, values: Tensor, mask: Tensor, given: dict[str, Tensor]) -> Any:
    """The losses of a step over the tokens of a mask, and the gradients by logits and values."""
    logits, values = logits.clone().requires_grad_(), values.clone().requires_grad_()
    none = torch.zeros(int(mask.sum()), dtype=torch.int64)
    targets = Targets(
        none, tokens[mask], torch.ones(len(none)), none, none, given={k: v[mask] for k, v in given.items()}
    )
    said = cast(Outputs, Said(logits[mask], values[mask], targets))
    loss = ppo.loss_sum(said) / len(none)
    policy = ppo.policy_losses(said).mean()
    by_logits, by_values = torch.autograd.grad(loss, [logits, values])
    measured = {name: float(total) / count for name, (total, count) in ppo.measured(said).items()}
    return policy.detach(), loss.detach(), by_logits, by_values, measured


def rows_of(minibatch: dict[str, Any], rollout: dict[str, Any], name: str) -> Tensor:
    return torch.tensor(rollout[name])[minibatch["rows"]]


@pytest.mark.parametrize("name", FULL)
def test_a_whole_step_is_that_of_the_last_trainer_where_answers_are_as_long_as_they_may_be(name: str) -> None:
    found = golden(name)
    rollout, ppo = found["rollout"], objective(found["settings"])
    assert not np.any(rollout["padding_mask"])
    count, longest = np.array(rollout["responses"]).shape
    samples = samples_of(
        [longest] * count, rollout["scores"], rollout["logprobs"], rollout["ref_logprobs"], rollout["values"]
    )
    given = ppo.credit(samples, found["settings"]["kl_coef"])
    advantages, returns = (np.stack([each[key] for each in given]) for key in (ADVANTAGE, RETURN))
    np.testing.assert_allclose(advantages, rollout["advantages"], rtol=NEAR, atol=NEAR)
    np.testing.assert_allclose(returns, rollout["returns"], rtol=NEAR, atol=NEAR)
    paid = [divergence(torch.tensor(sample.ratio_T), "k1").numpy() for sample in samples]
    np.testing.assert_allclose(paid, rollout["kl"], rtol=NEAR, atol=NEAR)
    tensors = {key: torch.tensor(rollout[key]) for key in ("responses", "values", "logprobs", "ref_logprobs")}
    columns = {
        ADVANTAGE: torch.tensor(advantages), RETURN: torch.tensor(returns), VALUE: tensors["values"],
        OLD: tensors["logprobs"], REFERENCE: tensors["ref_logprobs"],
    }  # fmt: skip
    for minibatch in found["minibatches"]:
        rows = minibatch["rows"]
        logits, expected = torch.tensor(minibatch["logits"]), torch.tensor(minibatch["vpred"])
        mask = torch.ones(len(rows), longest, dtype=torch.bool)
        own = {key: column[rows] for key, column in columns.items()}
        policy, loss, by_logits, by_values, _ = step_of(ppo, tensors["responses"][rows], logits, expected, mask, own)
        assert float(policy) == pytest.approx(minibatch["pg_loss"], rel=NEAR, abs=NEAR)
        assert float(loss) == pytest.approx(minibatch["loss"], rel=NEAR, abs=NEAR)
        torch.testing.assert_close(by_logits, torch.tensor(minibatch["gradient_of_logits"]), rtol=NEAR, atol=NEAR)
        torch.testing.assert_close(by_values, torch.tensor(minibatch["gradient_of_values"]), rtol=NEAR, atol=NEAR)


def test_the_parts_are_those_of_the_last_trainer_where_it_scores_one_place_after_the_end() -> None:
    found = golden("ended")
    rollout, settings = found["rollout"], found["settings"]
    mask, wider = (~torch.tensor(rollout[name]).bool() for name in ("padding_mask", "padding_mask_p1"))
    lengths, widths = mask.sum(1).tolist(), wider.sum(1).tolist()
    assert len(set(lengths)) > 1
    assert any(width == length + 1 for length, width in zip(lengths, widths, strict=True))
    raw = []
    for row, (length, width) in enumerate(zip(lengths, widths, strict=True)):
        reward_T, value_T = (np.array(rollout[name][row][:width]) for name in ("rewards", "values"))
        advantage_T, return_T = gae(reward_T, value_T, settings["gamma"], settings["lam"])
        np.testing.assert_allclose(return_T, rollout["returns"][row][:width], rtol=NEAR, atol=NEAR)
        raw.append(advantage_T[:length])
    for row, advantage_T in enumerate(whitened(raw)):
        np.testing.assert_allclose(advantage_T, rollout["advantages"][row][: lengths[row]], rtol=NEAR, atol=NEAR)
    for minibatch in found["minibatches"]:
        rows = minibatch["rows"]
        own, own_wider = mask[rows], wider[rows]
        ratio = (torch.tensor(minibatch["new_logprobs"]) - torch.tensor(rollout["logprobs"])[rows]).exp()
        advantage = torch.tensor(rollout["advantages"])[rows]
        clip = settings["cliprange"]
        policy = clipped(ratio[own], advantage[own], clip, clip).mean()
        assert float(policy) == pytest.approx(minibatch["pg_loss"], rel=NEAR, abs=NEAR)
        expected, old, aim = (
            torch.tensor(minibatch["vpred"]), torch.tensor(rollout["values"])[rows], torch.tensor(rollout["returns"])[rows],
        )  # fmt: skip
        critic = value_loss(expected[own_wider], old[own_wider], aim[own_wider], settings["cliprange_value"]).mean()
        assert float(critic) == pytest.approx(minibatch["vf_loss"], rel=NEAR, abs=NEAR)


def test_the_score_is_one_place_earlier_than_in_the_last_trainer_where_an_answer_ends_before_the_limit() -> None:
    found = golden("ended")
    rollout, settings = found["rollout"], found["settings"]
    lengths = (~torch.tensor(rollout["padding_mask"]).bool()).sum(1).tolist()
    row = next(index for index, length in enumerate(lengths) if 0 < length < len(rollout["responses"][index]))
    columns = [[rollout[name][row]] for name in ("scores", "logprobs", "ref_logprobs", "values")]
    samples = samples_of([lengths[row]], *columns)
    own = objective(settings).model_copy(update={"whiten_advantages": False, "lam": 1.0, "gamma": 1.0})
    given = own.credit(samples, settings["kl_coef"])[0]
    # at γ = λ = 1 both have the same returns: all reward that is to come, wherever it is paid
    theirs = np.cumsum(np.array(rollout["rewards"][row][: lengths[row] + 1])[::-1])[::-1][: lengths[row]]
    np.testing.assert_allclose(given[RETURN], theirs, rtol=NEAR, atol=NEAR)
    assert rollout["rewards"][row][lengths[row]] == pytest.approx(rollout["scores"][row], abs=NEAR)
