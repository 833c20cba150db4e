"""The learning rate of each step."""

from __future__ import annotations

import math

from luthier.training.settings import Schedule


def warmup_steps(schedule: Schedule, total_steps: int) -> int:
    """Steps over which the rate rises; always leaves at least one step at the peak."""
    steps = (
        math.ceil(schedule.warmup_fraction * total_steps) if schedule.warmup_steps is None else schedule.warmup_steps
    )
    return min(steps, total_steps - 1)


def lr_factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """The rate of a step (counted from 1) as a share of the peak.

    It rises as step / (warm-up + 1), is 1 at the first step after warm-up, and falls over the rest so that it would
    reach `final_fraction` one step after the last: no step is spent at rate 0.
    """
    warmup = warmup_steps(schedule, total_steps)
    if step <= warmup:
        return step / (warmup + 1)
    done = (step - warmup - 1) / (total_steps - warmup)
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule.kind]
    return schedule.final_fraction + (1 - schedule.final_fraction) * fall
