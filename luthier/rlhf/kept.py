"""Rollouts on the disk, and the numbers that are written down of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from luthier.rlhf.samples import Sample, by_group, sample_of
from luthier.store.files import make_folder, remove_file, write_text

FOLDER = "rollouts"


def measures_of(samples: Sequence[Sample]) -> dict[str, float]:
    """What is written down of a rollout: rewards, lengths, how many groups teach nothing, how far engine and trainer are apart.

    Rewards, lengths and groups are of all that was drawn, those that were replaced among them, so that they say what the policy is
    worth; what others said is of what is learned from.
    """
    known = [sample.reward for sample in samples if sample.reward is not None]
    groups = [[each.reward for each in group if each.reward is not None] for group in by_group(samples)]
    found = {
        "answer_tokens": float(np.mean([sample.num_tokens for sample in samples])),
        "ended_share": float(np.mean([sample.has_ended for sample in samples])),
    }
    if known:
        found |= {"reward": float(np.mean(known)), "reward_std": float(np.std(known))}
    if any(len(group) > 1 for group in groups):
        found["even_groups"] = float(np.mean([len(set(group)) <= 1 for group in groups]))
    if len(known) < len(samples):
        found["unrewarded"] = float(len(samples) - len(known))
    for name in dict.fromkeys(name for sample in samples for name in sample.parts):
        numbers = [number for sample in samples if (number := sample.parts.get(name)) is not None]
        if numbers:
            found[f"reward_{name}"] = float(np.mean(numbers))
    for name in dict.fromkeys(name for sample in samples for name in sample.spreads):
        spreads = [sample.spreads[name] for sample in samples if name in sample.spreads]
        found[f"spread_{name}"] = float(np.mean(spreads))
    if len(kept := [sample for sample in samples if not sample.replaced]) < len(samples):
        found["replaced_prompts"] = float(len(by_group(samples)) - len(by_group(kept)))
    if all(sample.reference_T is not None for sample in kept):
        found["kl_of_answers"] = float(np.mean([sample.ratio_T.sum() for sample in kept]))
    gaps = [np.abs(sample.old_T - sample.engine_T) for sample in samples if sample.old_T is not None]
    if gaps:
        found["engine_gap"] = float(np.mean(np.concatenate(gaps)))
    return found


def make_rollout_folder(folder: Path) -> Path:
    """The folder of a run that keeps its rollouts."""
    made = folder / FOLDER
    make_folder(made)
    return made


def write_rollout(file: Path, samples: Sequence[Sample]) -> None:
    """Keep answers, one a line."""
    write_text(file, "".join(sample.line() + "\n" for sample in samples))


def unscored_file(file: Path, round_: int) -> Path:
    """Where a round's answers lie until the rollout of `file` is whole."""
    return file.with_name(f"{file.stem}.unscored-{round_}")


def forget_unscored(file: Path) -> None:
    """Take away the rounds of a rollout that is whole."""
    for left in file.parent.glob(f"{file.stem}.unscored-*"):
        remove_file(left)


def read_rollout(file: Path, version: int | None = None) -> list[Sample] | None:
    """The answers that a file holds; None if there is none, or if they are of another version of the policy than asked."""
    if not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # an answer may hold other ends of lines
    samples = [sample_of(line) for line in lines if line]
    return None if version is not None and any(sample.version != version for sample in samples) else samples
