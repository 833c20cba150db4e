"""What a recipe needs whose objective rewards the model's own answers: rewards, the reference, a critic, and the rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from luthier.errors import RecipeError, UsageError
from luthier.evaluation.graded import columns_of
from luthier.evaluation.grading import Aids, Grade
from luthier.generation.settings import Sampling
from luthier.methods.contract import Attachment
from luthier.models.language_model import LanguageModel
from luthier.ops.workers import Workers
from luthier.prediction.passes import Passes, Progress, silent
from luthier.prediction.reward import RewardScorer
from luthier.prepared import Prepared
from luthier.recipe import Recipe
from luthier.rlhf.contract import RolloutObjective
from luthier.rlhf.critic import Critic, WithCritic
from luthier.rlhf.parts import Ear, Policy, Prompts, Size, requests_of
from luthier.rlhf.ppo import CRITIC, PPO
from luthier.rlhf.pretraining import Texts
from luthier.rlhf.rewards import Ensemble, OfAnswers, Reward, Rewards, Scorer
from luthier.rlhf.rollouts import Rollouts
from luthier.rlhf.worth import Answer
from luthier.rlhf.writers import writer_of
from luthier.training.companions import Companions, Speaker
from luthier.training.loop import HeldOut
from luthier.training.settings import TrainingSettings
from luthier.tuned import REWARD, load_base_of, load_reward
from luthier.types import Answered, Completion, Conversation, Example, Message, Prompt, Record

Announce = Callable[[str], None]


def check_policy(objective: RolloutObjective, attachment: Attachment) -> None:
    """Raise RecipeError for a method whose training draws at random: its ratios would be those of another policy."""
    if attachment.is_random:
        raise RecipeError(
            "The method draws at random in training (dropout, or one of several experts), so that the policy that learns is never "
            f"quite the one that wrote the answers, and {objective.kind} compares them.",
            "Set method.dropout to 0, or choose another method, such as lora.",
            field="method",
        )


def num_rollout_steps(
    objective: RolloutObjective, num_prompts: int, prompts_per_step: int, training: TrainingSettings
) -> int:
    """How many optimizer steps a run has: of the prompts' epochs, each rollout whole."""
    if training.steps is not None:
        return training.steps
    of_rollout = prompts_per_step * objective.minibatches
    return math.ceil(training.epochs * num_prompts / of_rollout) * objective.steps_per_rollout


@dataclass(frozen=True)
class Others:
    """Models beside the policy: who speaks as the reference, and the critic; and the attachment of all that trains.

    frozen: a copy of the base that stays as it is, where the policy's own trains.
    """

    reference: Speaker | None
    critic: Critic | None
    attachment: Attachment
    frozen: LanguageModel | None = None


def others_of(recipe: Recipe, model: LanguageModel, attachment: Attachment, announce: Announce) -> Others:
    """Make the reference and the critic ready on the policy's own frozen base; where the policy trains its base, on a copy of it.

    A reference that costs nothing to have is asked even where the loss does without, so that the divergence is known.
    """
    objective = recipe.objective
    assert isinstance(objective, RolloutObjective)
    copy = _frozen_copy(recipe, objective, announce) if recipe.method.tunes_base else None
    if copy is not None:
        reference: Speaker | None = Speaker(copy, None)
    elif recipe.method.tunes_base:
        reference = None
    else:
        made = recipe.method.reference(model, recipe.seed, fast=recipe.training.fast.lora)
        assert made is not None, "a method beside a frozen base has a reference"
        reference = Speaker(model, made.adapter)
    if not isinstance(objective, PPO):
        return Others(reference, None, attachment, copy)
    base, fast = copy or model, recipe.training.fast.lora
    critic = Critic(base, objective.critic_rank, recipe.seed + 1, {}, objective.value_slope, fast=fast)
    count = sum(tensor.numel() for group in critic.groups for tensor in group.tensors.values())
    announce(f"The critic is an adapter of its own: {count:,} numbers train.")
    return Others(reference, critic, WithCritic(attachment, critic, objective.value_lr_factor), copy)


def _frozen_copy(recipe: Recipe, objective: RolloutObjective, announce: Announce) -> LanguageModel | None:
    """A copy of the base that trains, as it is now; None where nobody asks it."""
    if not objective.asks_base:
        return None
    announce("The base itself trains, so that a frozen copy of it stands beside it.")
    copy = load_base_of(recipe, announce)
    for parameter in copy.hf.parameters():
        parameter.requires_grad_(False)
    return copy


def begin(
    recipe: Recipe,
    prepared: Prepared,
    model: LanguageModel,
    others: Others,
    num_steps: int,
    workers: Workers,
    autocast: torch.dtype | None,
    folder: Path,
    exits: ExitStack,
    announce: Announce,
    progress: Progress = silent,
) -> tuple[Rollouts, Companions, Callable[[], HeldOut] | None]:
    """The steps of the run, whom its objective hears, and what measures held-out prompts (None: there are none).

    exits: ends what the rewards began. Raises as reading the rows and the rewards do.
    """
    objective, training, dataset = recipe.objective, recipe.training, prepared.dataset
    assert isinstance(objective, RolloutObjective)
    assert training.rows_per_step is not None
    models = models_of(objective.models, others.frozen or model, announce)
    rewards = exits.enter_context(Rewards(objective.rewards, Aids(), objective.watched, models, announce))
    stop_ids = dataset.renderer.stop_ids
    writer = writer_of(objective.generation, others.attachment, folder, compute_in=autocast)
    exits.callback(writer.close)
    longest = max(each.num_tokens for each in (*dataset.train, *dataset.validation))
    writer.check_fits(longest, objective.max_new_tokens, objective.num_answers)
    policy = Policy(model, others.attachment, stop_ids, writer, autocast)
    passes = Passes(workers, training.tokens_per_micro_batch, progress, compute_in=autocast)
    rollouts = Rollouts(
        objective,
        prompts_of(dataset.train, dataset.train_records),
        policy,
        rewards,
        passes,
        Size(training.rows_per_step, num_steps, training.tokens_per_micro_batch),
        recipe.seed,
        folder,
        Ear(others.reference, None if others.critic is None else others.critic.of_examples),
        texts_of(recipe, prepared),
        announce,
    )
    companions = Companions({})
    if others.critic is not None:
        others.critic.rows = rollouts.examples
        companions = Companions({CRITIC: others.critic})
    count = min(len(dataset.validation), objective.held_out_prompts)
    if not count:
        return rollouts, companions, None
    held_out = prompts_of(dataset.validation[:count], dataset.validation_records[:count])

    def evaluate() -> HeldOut:
        return measured(objective, held_out, policy, rewards, rollouts.num_taken)

    return rollouts, companions, lambda: workers.alone(evaluate)


def texts_of(recipe: Recipe, prepared: Prepared) -> Texts | None:
    """The texts of pre-training that each step learns besides; None where there are none."""
    objective = recipe.objective
    if prepared.texts is None:
        return None
    assert isinstance(objective, PPO)
    assert objective.pretraining is not None
    per_step = objective.pretraining.rows_per_step or recipe.training.rows_per_step or 8
    return Texts(prepared.texts.examples, objective.pretraining.weight, per_step, recipe.seed)


def measured(
    objective: RolloutObjective, prompts: Prompts, policy: Policy, rewards: OfAnswers, version: int
) -> HeldOut:
    """What the likeliest answers to held-out prompts are worth; the loss is its negative. version: of the policy."""
    sampling = Sampling(max_new_tokens=objective.max_new_tokens)
    asked = requests_of(prompts.examples, sampling, policy.attachment.adapter, policy.stop_ids)
    answers = policy.writer.write(asked, version)
    worths = rewards([prompts.answer(row, answer.text, answer.tokens) for row, answer in enumerate(answers)])
    known = [worth.reward for worth in worths if worth.reward is not None]
    reward = float(np.mean(known))
    parts = {f"validation_reward_{name}": _mean([worth.parts[name] for worth in worths]) for name in worths[0].parts}
    length = float(np.mean([len(answer.tokens) for answer in answers]))
    found = {"validation_reward": reward, "validation_answer_tokens": length, **(parts if len(parts) > 1 else {})}
    return HeldOut(-reward, measured={name: value for name, value in found.items() if value is not None})


def _mean(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return float(np.mean(known)) if known else None


def prompts_of(examples: Sequence[Example], records: Sequence[Record]) -> Prompts:
    """Rows as what is answered, with the columns of their files."""
    columns = columns_of(example.origin for example in examples)
    items = [columns.get((example.origin.file, example.origin.line), {}) for example in examples]
    return Prompts(examples, [_asked(record) for record in records], items)


def _asked(record: Record) -> Conversation | str:
    assert isinstance(record, Prompt)
    return record.asked


# ── reward models ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ByModel:
    """The numbers of a reward model. shares_tokens: whether it reads the very tokens that the policy read and drew."""

    scorer: RewardScorer
    shares_tokens: bool

    def __call__(self, answers: Sequence[Answer]) -> list[Grade]:
        """A grade for each answer; one without any token has none."""
        found = [Grade(None, "the answer is empty")] * len(answers)
        rows = [
            row for row, answer in enumerate(answers) if (answer.tokens if self.shares_tokens else answer.text.strip())
        ]
        chosen = [answers[row] for row in rows]
        if self.shares_tokens:
            scores = self.scorer.scores_of_tokens(
                [each.prompt_tokens for each in chosen], [each.tokens for each in chosen]
            )
        else:
            scores = self.scorer.scores([_scorable(each) for each in chosen])
        for row, score in zip(rows, scores, strict=True):
            found[row] = Grade.of(score)
        return found


def _reads_alike(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers write the same texts and chats as the same tokens."""
    return own.get_vocab() == other.get_vocab() and own.chat_template == other.chat_template


def _scorable(answer: Answer) -> Answered:
    asked = answer.prompt if answer.asked is None else answer.asked
    if isinstance(asked, str):
        return Completion(asked, answer.text)
    return Conversation((*asked.messages, Message("assistant", answer.text)), asked.tools)


def models_of(parts: Sequence[Reward], model: LanguageModel, announce: Announce) -> dict[str, Scorer]:
    """The reward models that rewards name, each an adapter of its own beside the policy where that can be.

    Raises: as `load_reward`, at the field that names the run.
    """
    found: dict[str, Scorer] = {}
    for part in parts:
        named = {part.called: part.model} if part.model else {Path(run).stem: run for run in part.runs}
        if part.models is not None and len(named) < len(part.models):  # folders of one name
            named = {f"{part.called}-{number}": run for number, run in enumerate(part.models, 1)}
        members = [
            _by_model(name, Path(run), f"{REWARD}-{part.called}-{number}", model, announce)
            for number, (name, run) in enumerate(named.items())
        ]
        if members:
            found[part.called] = members[0] if part.models is None else Ensemble(members, part.caution)
    return found


def _by_model(called: str, folder: Path, name: str, model: LanguageModel, announce: Announce) -> ByModel:
    """One reward model. name: of its adapter beside the policy."""
    try:
        scorer = load_reward(folder, announce, beside=model, name=name)
    except UsageError as error:
        announce(f"The reward model {called} is a model of its own: {error.found}")
        own = load_reward(folder, announce)
        alike = _reads_alike(own.language_model.tokenizer, model.tokenizer)
        return ByModel(own, alike and own.renderer.pooled == "last")
    announce(f"The reward model {called} is an adapter on the policy's own base.")
    return ByModel(scorer, shares_tokens=True)
