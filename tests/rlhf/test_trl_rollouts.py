"""What TRL's trainers make of the rewards of a rollout, and of pairs that the policy wrote itself."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from bigrams import Bigram
from near import assert_near
from torch import Tensor

from luthier.data.packing import collate
from luthier.models.outputs import Outputs
from luthier.rlhf import GRPO, RLOO, OnlineDPO
from luthier.rlhf.contract import ADVANTAGE, REFERENCE, RolloutObjective
from luthier.rlhf.experience import example_of
from luthier.rlhf.samples import Sample
from luthier.types import Example, Origin, Part

REWARD_OF = [{"grader": {"type": "length", "most": 5}}]
NUM_WORDS = 20
ALONE = SimpleNamespace(
    device=torch.device("cpu"), process_index=0, num_processes=1, gather=lambda each: each,
    gather_for_metrics=lambda each: each, reduce=lambda each, reduction: each,
)  # fmt: skip


class Unset:
    """Settings of a trainer, of which those that nobody set are None."""

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)

    def __getattr__(self, name: str) -> None:
        return None


def algorithm(kind: type[RolloutObjective], **settings: Any) -> RolloutObjective:
    return kind.model_validate({"rewards": REWARD_OF, **settings})


def samples(rewards: tuple[float | None, ...], num_answers: int) -> list[Sample]:
    """Answers of a token each but the last one's two, with log-probabilities of their own."""
    draw = np.random.default_rng(0)
    made = []
    for number, reward in enumerate(rewards):
        length = 2 if number == len(rewards) - 1 else 1
        own_T, reference_T = (-draw.random(length).astype(np.float32) for _ in range(2))
        group = number // num_answers
        made.append(
            Sample(group, group, "", "", (3,) * length, "stop", 0, own_T, reward, old_T=own_T, reference_T=reference_T)
        )
    return made


def padded(rows: list[Any]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def advantages_of_trl(trainer_class: Any, answers: list[Sample], num_answers: int, **settings: Any) -> Tensor:
    """What TRL's own step of scoring gives for answers with these rewards.

    settings: also `_generate`, which gives prompts and answers as the trainer wants them.
    """
    rewards = [float("nan") if each.reward is None else each.reward for each in answers]
    said = {
        "own": padded([each.old_T for each in answers]),
        "reference": padded([each.reference_T for each in answers]),
    }
    trainer = trainer_class.__new__(trainer_class)
    vars(trainer).update(
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False, name="own"), accelerator=ALONE,
        ref_model=SimpleNamespace(name="reference"), args=Unset(steps_per_generation=1, gradient_accumulation_steps=1),
        environment_factories=None, environments=None, tools=None, pad_to_multiple_of=None, use_vllm=False,
        _tokenizer=SimpleNamespace(pad_token_id=0), mask_truncated_completions=False, num_iterations=1, beta=0.0,
        num_generations=num_answers, multi_objective_aggregation="sum_then_normalize", reward_weights=torch.ones(1),
        reward_func_names=["told"], reward_clip_range=None, normalize_advantages=False, log_multimodal=False,
        _metrics={"train": defaultdict(list)}, _pending_extra_logs={}, _pending_metrics={},
        _logs={**{name: [] for name in ("prompt", "completion", "advantages")}, "rewards": defaultdict(list)},
        _calculate_rewards=lambda *_: torch.tensor(rewards)[:, None],
        _get_per_token_logps_and_entropies=lambda model, *_, **__: (said[model.name], None, None),
    )  # fmt: skip
    vars(trainer).update(settings)
    found: Tensor = trainer._generate_and_score_completions([{"prompt": "p"}] * len(answers))["advantages"]
    return found


def generated(answers: list[Sample]) -> tuple[list[list[int]], list[list[int]], list[str]]:
    """Tokens of prompts, those of answers, and texts."""
    return [[1]] * len(answers), [list(each.tokens) for each in answers], [""] * len(answers)


GROUPS = {
    "of four": ((0.3, 0.9, 0.2, -0.5, 1.0, 1.0, 1.0, 0.0), 4),
    "of two": ((0.3, 0.9, 7.0, -0.5), 2),
    "all worth the same": ((0.5, 0.5, 0.5, 0.1, 0.2, 0.7), 3),
    "one without a reward": ((0.3, None, 0.2, -0.5, 1.0, 0.0), 3),
}


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("groups", GROUPS)
def test_grpos_advantages_are_trls(groups: str, scale: str) -> None:
    from trl import GRPOTrainer

    rewards, num_answers = GROUPS[groups]
    answers = samples(rewards, num_answers)
    prompts, tokens, texts = generated(answers)
    given = algorithm(GRPO, scale=scale).credit(answers, 0.0)
    expected = advantages_of_trl(
        GRPOTrainer, answers, num_answers, scale_rewards=scale,
        _generate=lambda _: (prompts, tokens, None, texts, None, {}, None, None),
    )  # fmt: skip
    assert_near(torch.tensor([float(each[ADVANTAGE][0]) for each in given]), expected)


@pytest.mark.parametrize("kl", [0.0, 0.3])
@pytest.mark.parametrize("groups", GROUPS)
def test_rloos_advantages_are_trls(groups: str, kl: float) -> None:
    from trl import RLOOTrainer

    rewards, num_answers = GROUPS[groups]
    answers = samples(rewards, num_answers)
    given = algorithm(RLOO, kl=kl).credit(answers, kl)
    expected = advantages_of_trl(RLOOTrainer, answers, num_answers, beta=kl, _generate=lambda _: generated(answers))
    assert_near(torch.tensor([float(each[ADVANTAGE][0]) for each in given]), expected)


PROMPTS = ((5, 6, 7), (8, 9))
ANSWERS = ((10, 11), (16,), (12, 13, 14, 15), (17, 18, 19))
"""The first one to each prompt, then the second one to each."""
WORTH = (0.3, 0.2, 0.9, -0.5)


def example_at(prompt: int) -> Example:
    none = np.zeros(0, dtype=np.int64)
    return Example(
        (Part(np.array(PROMPTS[prompt])),), none, none, none.astype(np.float32), none, prompt, Origin("p", 1)
    )


def our_pairs(policy: Bigram, reference: Bigram, beta: float) -> Tensor:
    """The loss of a step of online DPO on these answers."""
    objective = algorithm(OnlineDPO, beta=beta)
    rows, learned = [], []
    for prompt in range(len(PROMPTS)):
        drawn = [
            Sample(prompt, prompt, "", "", ANSWERS[at], "stop", 0, np.zeros(len(ANSWERS[at]), np.float32), WORTH[at])
            for at in (prompt, prompt + len(PROMPTS))
        ]
        pair = objective.learned(drawn)
        plain = example_of(example_at(prompt), pair, [{}, {}], [1.0, 1.0], prompt)
        said_N = reference.says(collate([plain], "packed", 0)).logprob_N.detach().numpy()
        cuts = np.split(said_N, [pair[0].num_tokens])
        rows.append(example_of(example_at(prompt), pair, [{REFERENCE: said_T} for said_T in cuts], [1.0, 1.0], prompt))
        learned += pair
    outputs = policy.says(collate(rows, "packed", 0))
    return objective.loss_sum(cast(Outputs, outputs)) / objective.divisor(learned)


def trls_pairs(policy: Bigram, reference: Bigram, beta: float) -> tuple[Tensor, Tensor]:
    """The loss of TRL's step on these answers, and its gradient by the table."""
    from trl.experimental.online_dpo import OnlineDPOTrainer

    longest = max(map(len, PROMPTS))
    prompts = torch.tensor([[*[0] * (longest - len(each)), *each] for each in PROMPTS]).repeat(2, 1)
    is_answer = padded([[1] * len(each) for each in ANSWERS])
    slopes: list[Tensor] = []
    trainer = OnlineDPOTrainer.__new__(OnlineDPOTrainer)
    vars(trainer).update(
        args=Unset(use_vllm=False, loss_type="sigmoid", n_gpu=1, gradient_accumulation_steps=1), max_length=99,
        eos_token_ids=[2], ref_model=reference, _beta=beta, reward_funcs=None, stats=defaultdict(list),
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: [""] * len(ids)),
        accelerator=SimpleNamespace(**vars(ALONE), backward=lambda loss: slopes.append(policy.slope(loss))),
        _generate=lambda *_: (prompts, (prompts > 0).long(), padded(list(ANSWERS)), is_answer, None),
        _calculate_rewards_from_functions=lambda **_: torch.tensor(WORTH),
    )  # fmt: skip
    loss = trainer.training_step(policy, {"prompt": ["p"] * len(PROMPTS)})
    return loss, slopes[0]


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_a_step_of_online_dpo_is_trls(beta: float) -> None:
    policy, reference = (Bigram(NUM_WORDS, seed) for seed in (1, 2))
    found = our_pairs(policy, reference, beta)
    expected, slope_VV = trls_pairs(policy, reference, beta)
    assert_near(found, expected)
    assert_near(policy.slope(found), slope_VV)
