"""Rollouts as the steps of the one loop: prompts are answered by the policy as it is, answers rewarded, and learned from.

Answers are written down before they are scored, and a rollout, whole, before anything is learned from it; so a run that is resumed
goes on with the very same answers, whoever wrote them, and one that died while they were written writes them again. What a
rollout draws depends on the seed, its number and the prompt alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from luthier.corruption.keyed import generator, shuffled
from luthier.data.batches import Step, Steps, cut_batches
from luthier.data.mixture import epoch_order
from luthier.data.packing import assign_workers
from luthier.data.placeholders import with_placeholders
from luthier.errors import DataError, NoReward, RunMismatch
from luthier.generation.requests import Completed
from luthier.ops.draws import salt_of
from luthier.prediction.passes import Passes
from luthier.rlhf.contract import ENGINE, RolloutObjective
from luthier.rlhf.diagnosis import Course, course_of, signs
from luthier.rlhf.experience import Given, chunks_within, example_of
from luthier.rlhf.hearing import Hearing
from luthier.rlhf.kept import (
    forget_unscored,
    make_rollout_folder,
    measures_of,
    read_rollout,
    unscored_file,
    write_rollout,
)
from luthier.rlhf.parts import NOBODY, Ear, Policy, Prompts, Size
from luthier.rlhf.pretraining import Texts
from luthier.rlhf.rewards import OfAnswers
from luthier.rlhf.samples import Sample, by_group
from luthier.rlhf.worth import Worth
from luthier.rlhf.writers import importance, weighed
from luthier.types import Batch, Example

_SALT = salt_of("rollouts")


class Rollouts(Steps):
    """The steps of a run whose objective learns from the model's own answers."""

    def __init__(
        self,
        objective: RolloutObjective,
        prompts: Prompts,
        policy: Policy,
        rewards: OfAnswers,
        passes: Passes,
        size: Size,
        seed: int,
        folder: Path,
        ear: Ear = NOBODY,
        texts: Texts | None = None,
        announce: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Stand before the first step. folder: of the run, which keeps the rollouts. texts: what each step learns besides.

        announce: is told what is wrong with the rollouts.

        Raises: DataError without prompts.
        """
        if not prompts.examples:
            raise DataError("There is no prompt to answer.", "Give at least one row.")
        self.num_steps = size.num_steps
        self.objective, self.prompts, self.policy, self.rewards = objective, prompts, policy, rewards
        self.passes, self.size, self.seed = passes, size, seed
        self._hearing = Hearing(objective, prompts, policy, ear, passes)
        self.folder = make_rollout_folder(folder)
        self.texts = texts
        self.announce = announce
        self.history: list[Course] = []
        self.signs: dict[str, str] = {}  # what was wrong so far, in words, by its kind
        self.examples: dict[int, Example] = {}  # of the step at hand, by their documents, without placeholders
        self._beside: list[Example] = []  # the texts of the step at hand
        self._budget = size.budget
        self._kl_weight = objective.kl_start
        self._number = 0  # rollouts begun
        self._taken = 0  # prompts that they asked
        self._part = 0  # steps taken of the rollout at hand
        self._step = 0
        self._rollout: _Rollout | None = None

    @property
    def num_taken(self) -> int:
        """How many optimizer steps the policy has taken."""
        return self._step

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def __next__(self) -> Step:
        if self._step >= self.num_steps:
            raise StopIteration
        if self._rollout is None or self._part == self.objective.steps_per_rollout:
            self._begin_rollout()
        rollout = self._rollout
        assert rollout is not None
        groups = self._groups_of_part(rollout, self._part)
        learned = [each for group in groups for each in rollout.learned[group]]
        first_document = self._step * (1 << 20)
        self.examples.clear()
        for group in groups:
            for example in self._examples(rollout, group, first_document + len(self.examples)):
                self.examples[example.document] = example
        if self.texts is not None:
            number = first_document + len(self.examples)
            self._beside = self.texts.of_step(self._step + 1, self.objective.divisor(learned), number)
        measured = rollout.measured if self._part == 0 else {}
        self._part += 1
        self._step += 1
        return self._laid_out(learned, groups, measured)

    def _laid_out(self, learned: Sequence[Sample], groups: Sequence[int], measured: Mapping[str, float]) -> Step:
        """The step at hand, its texts among it; one without any example has nothing to learn, and its gradient is 0."""
        batches = self._batches_of_both()
        examples = [*self.examples.values(), *self._beside]
        return Step(
            number=self._step,
            micro_batches=batches,
            worker_of=tuple(assign_workers([batch.cost for batch in batches], self.passes.workers.count)),
            learned_weight=self.objective.divisor(learned),
            learned_tokens=sum(example.num_learned for example in examples),
            real_tokens=sum(example.num_real_tokens for example in examples),
            rows=tuple(sorted({sample.row for sample in learned})) or tuple(groups),
            epoch=self._taken / len(self.prompts.examples),
            measured=measured,
            ends_run=self.objective.stop_on_signs and bool(self.signs),
        )

    def _batches_of_both(self) -> tuple[Batch, ...]:
        """The micro-batches of answers, and after them those of texts; none holds both."""
        both = (list(self.examples.values()), self._beside)
        return tuple(batch for examples in both if examples for batch in self._batches(examples))

    def _batches(self, examples: Sequence[Example]) -> list[Batch]:
        model, attachment = self.policy.model, self.policy.attachment
        virtual = attachment.num_virtual, attachment.num_virtual_answer
        placed = [with_placeholders(example, *virtual) for example in examples]
        return cut_batches(placed, self._budget, self.passes.workers.count, model.layout, model.pad_id, False)

    def _groups_of_part(self, rollout: _Rollout, part: int) -> list[int]:
        """The prompts of one of a rollout's steps: each pass over the rollout shuffles them anew."""
        epoch, place = divmod(part, self.objective.minibatches)
        count = len(rollout.learned)
        order = shuffled(count, generator(self.seed, self._number, epoch, _SALT)).tolist()
        ends = [round(count * index / self.objective.minibatches) for index in (place, place + 1)]
        return sorted(order[ends[0] : ends[1]])

    def _examples(self, rollout: _Rollout, group: int, document: int) -> list[Example]:
        """A prompt with those of its answers that are learned from, in examples that fit a micro-batch."""
        samples = rollout.learned[group]
        if not samples:
            return []
        prompt = self.prompts.examples[samples[0].row]
        room = self._hearing.room(prompt, self._budget)
        chunks = [list(range(len(samples)))] if self.objective.keeps_groups else chunks_within(prompt, samples, room)
        made: list[Example] = []
        for chunk in chunks:
            chosen = [samples[index] for index in chunk]
            weights = [self.objective.token_weight(sample) for sample in chosen]
            given = [self._given(rollout, sample) for sample in chosen]
            example = example_of(prompt, chosen, given, weights, document + len(made))
            made.append(self._hearing.fitting(example))
        return made

    def _given(self, rollout: _Rollout, sample: Sample) -> Given:
        own = rollout.given[id(sample)]
        return {**own, ENGINE: sample.engine_T} if self._part == 0 else own

    # ── rollouts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def prompts_from(self, start: int, count: int) -> list[int]:
        """The next prompts after so many, as indices: one epoch's order after another."""
        total = len(self.prompts.examples)
        chosen: list[int] = []
        orders: dict[int, list[int]] = {}
        for place in range(start, start + count):
            epoch, at = divmod(place, total)
            if epoch not in orders:
                orders[epoch] = epoch_order(total, self.seed, epoch)
            chosen.append(orders[epoch][at])
        return chosen

    @property
    def _prompts_of_rollout(self) -> int:
        return self.size.prompts_per_step * self.objective.minibatches

    def _begin_rollout(self) -> None:
        """Have the next prompts answered, or take up what a process that died had written down of them."""
        file = self._file(self._number)
        began = time.perf_counter()
        samples = read_rollout(file, version=self._step)
        if samples is None:
            samples = self._written()
            write_rollout(file, samples)
        forget_unscored(file)
        seconds = time.perf_counter() - began
        self._rollout = self._credited(samples, seconds)
        self._look(samples)
        self._taken += len(by_group(samples))
        self._number += 1
        self._part = 0
        kept = [sample for sample in samples if not sample.replaced]
        self._kl_weight = self.objective.kl_after(self._kl_weight, kept)

    def _look(self, samples: Sequence[Sample]) -> None:
        """Note what a rollout came to, and say what is wrong the first time that it is."""
        course = course_of(samples, [each.called for each in self.objective.watched])
        if course is None:
            return
        self.history.append(course)
        for sign in signs(self.history):
            if sign.kind not in self.signs:
                self.signs[sign.kind] = sign.words
                self.announce(f"After {self._step} steps: {sign.words}")

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.jsonl"

    def _written(self) -> list[Sample]:
        """The policy's answers to the next prompts, rewarded, with what it and the others say of their tokens.

        Prompts that teach nothing are replaced by the ones after them, in so many rounds as the objective has; their answers are
        kept too, before those that took their place.
        """
        taken = self._prompts_of_rollout
        kept = self._rewarded(self._answered(self.prompts_from(self._taken, taken)))
        replaced: list[Sample] = []
        for round_ in range(1, self.objective.resample_rounds + 1):
            even = {group[0].group for group in by_group(kept) if not self.objective.tells_apart(group)}
            if not even:
                break
            replaced += [replace(sample, replaced=True) for sample in kept if sample.group in even]
            kept = [sample for sample in kept if sample.group not in even]
            rows = self.prompts_from(self._taken + taken, len(even))
            kept += self._rewarded(self._answered(rows, round_, taken), may_be_none=True)
            taken += len(even)
        return [*replaced, *self._heard(kept)]

    def _answered(self, rows: Sequence[int], round_: int = 0, first_group: int = 0) -> list[Sample]:
        """The answers to prompts, without rewards: written now, or by a process of this run that could not have them scored."""
        file = unscored_file(self._file(self._number), round_)
        expected = [row for row in rows for _ in range(self.objective.num_answers)]
        kept = read_rollout(file, version=self._step)
        if kept is not None and [sample.row for sample in kept] == expected:
            return kept
        samples = self._drawn(rows, round_, first_group)
        write_rollout(file, samples)
        return samples

    def _drawn(self, rows: Sequence[int], round_: int, first_group: int) -> list[Sample]:
        prompts = [self.prompts.examples[row] for row in rows]
        draws = generator(self.seed, self._number, round_, _SALT + 1)
        seeds = (draws.random(len(rows)) * 2**53).astype(np.int64).tolist()
        requests = self.policy.requests(self.objective, prompts, seeds)
        written = partial(self.passes.progress, "writing answers")
        completed = self.passes.workers.alone(lambda: self.policy.writer.write(requests, self._step, written))
        count = self.objective.num_answers
        return [
            self._sample(rows[index // count], first_group + index // count, answer)
            for index, answer in enumerate(completed)
        ]

    def _sample(self, row: int, group: int, answer: Completed) -> Sample:
        assert answer.logprobs is not None, "they were asked for"
        engine_T = np.array([each.logprob for each in answer.logprobs], dtype=np.float32)
        return Sample(
            row, group, self.prompts.text(row), answer.text, answer.tokens, answer.finish_reason, self._step, engine_T
        )

    def _rewarded(self, samples: Sequence[Sample], *, may_be_none: bool = False) -> list[Sample]:
        """may_be_none: whether it is no fault if none of these few has a reward."""
        answers = [self.prompts.answer(each.row, each.text, each.tokens) for each in samples]
        try:
            worths = self.rewards(answers)
        except NoReward as error:
            if not may_be_none:
                raise
            worths = [Worth(None, {}, error.found)] * len(samples)
        found = []
        for sample, worth in zip(samples, worths, strict=True):
            reward = worth.reward
            if reward is not None and not sample.has_ended:
                reward -= self.objective.unended_penalty
            found.append(
                replace(sample, reward=reward, parts=dict(worth.parts), fault=worth.fault, spreads=dict(worth.spreads))
            )
        return found

    def _heard(self, samples: Sequence[Sample]) -> list[Sample]:
        return self._hearing.heard(samples, self._budget)

    def _credited(self, samples: Sequence[Sample], seconds: float) -> _Rollout:
        """The rollout with what each answer is learned by."""
        kept = [sample for sample in samples if not sample.replaced]
        known = [sample for sample in kept if sample.reward is not None]
        given = self.objective.credit(known, self._kl_weight) if known else []
        apart, numbers = self.policy.writer.apart, measures_of(samples) | self.objective.measured_of(given)
        if apart is not None:
            given = weighed(known, given, apart)
            weights = [importance(sample, apart.most_weight) for sample in kept]
            numbers["engine_weight"] = float(np.mean(np.concatenate(weights)))
        of_group: dict[int, list[Sample]] = {sample.group: [] for sample in kept}
        for group in by_group(known):
            of_group[group[0].group] = self.objective.learned(group)
        return _Rollout(
            learned=list(of_group.values()),
            given={id(sample): own for sample, own in zip(known, given, strict=True)},
            measured={**numbers, "kl_weight": self._kl_weight, "rollout_seconds": seconds},
        )

    # ── the loop's questions ────────────────────────────────────────────────────────────────────────────────────────

    def heed(self, measured: Mapping[str, float]) -> Mapping[str, float]:
        """See the base class.

        A rollout's first step is taken by the very policy that wrote it, and must say so. Once the policy is too far from that one,
        the steps that are left of the rollout are not taken.
        """
        if self._part == 1:
            self._hearing.check_first(measured)
        most, left = self.objective.most_change, self.objective.steps_per_rollout - self._part
        if most is None or measured.get("approx_kl", 0.0) <= most or not left:
            return {}
        self._part = self.objective.steps_per_rollout
        return {"left_out_steps": float(left)}

    def halve(self) -> int | None:
        """See the base class."""
        of_step = (*self.examples.values(), *self._beside)
        longest = max((example.num_tokens for example in of_step), default=0)
        smaller = max(self._budget // 2, longest)
        if smaller >= self._budget:
            return None
        self._budget = smaller
        return smaller

    def again(self, step: Step) -> Step:
        """See the base class."""
        batches = self._batches_of_both()
        worker_of = assign_workers([batch.cost for batch in batches], self.passes.workers.count)
        return replace(step, micro_batches=batches, worker_of=tuple(worker_of))

    def state_dict(self) -> dict[str, Any]:
        """Which step of which rollout comes next; the answers themselves are on the disk."""
        return {
            "rollout": self._number, "taken": self._taken, "part": self._part, "step": self._step, "budget": self._budget,
            "kl_weight": self._kl_weight, "kl_weight_before": self._weight_before, "signs": dict(self.signs),
        }  # fmt: skip

    @property
    def _weight_before(self) -> float:
        """What the pull to the reference was worth when the rollout at hand was credited."""
        return self._kl_weight if self._rollout is None else self._rollout.measured["kl_weight"]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See the base class."""
        self._number, self._part, self._step = int(state["rollout"]), int(state["part"]), int(state["step"])
        if not 0 <= self._step <= self.num_steps:
            raise RunMismatch(
                f"The checkpoint stands at step {self._step}, but this run has {self.num_steps}.",
                "Resume with the data and the recipe that the run began with.",
            )
        self._taken = int(state.get("taken", self._number * self._prompts_of_rollout))
        self._budget = min(self._budget, int(state["budget"]))
        self.signs = dict(state["signs"])
        watched = [each.called for each in self.objective.watched]
        kept = [read_rollout(self._file(number)) for number in range(self._number)]
        self.history = [course for samples in kept if samples and (course := course_of(samples, watched)) is not None]
        if 0 < self._part < self.objective.steps_per_rollout:
            samples = read_rollout(self._file(self._number - 1))
            if samples is None:
                raise RunMismatch(
                    f"{self._file(self._number - 1)} is not whole, and the checkpoint stands in the middle of it.",
                    "Begin a new run with 'luthier train'.",
                )
            self._kl_weight = float(state["kl_weight_before"])
            self._rollout = self._credited(samples, 0.0)
        self._kl_weight = float(state["kl_weight"])


@dataclass(frozen=True)
class _Rollout:
    """A rollout ready to be learned from: of each prompt the answers that are, what each comes with by its id, and numbers."""

    learned: Sequence[Sequence[Sample]]
    given: Mapping[int, Given]
    measured: Mapping[str, float]
