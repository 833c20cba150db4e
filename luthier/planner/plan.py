"""A recipe's plan: how much memory it needs and when, whether that is there, how much disk, how long, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import psutil
import torch
from transformers import PreTrainedConfig

from luthier.errors import LuthierError, UsageError
from luthier.planner.alone import trace_all
from luthier.planner.calibration import seconds_of
from luthier.planner.container import container_room
from luthier.planner.disk import disk_of
from luthier.planner.levers import changes
from luthier.planner.memory import Demand, demand
from luthier.planner.request import Rows, work_of
from luthier.planner.trace import BACKWARD, HEAD, KEPT, Trace
from luthier.planner.work import Work
from luthier.recipe import Recipe
from luthier.rlhf import RolloutObjective

Verdict = Literal["fits", "tight", "does not fit"]

PROCESS = "program and libraries"
SLACK = "allocator"

_PROCESS_BYTES = {"cpu": 500 * 10**6, "cuda": 600 * 10**6}
"""What a process holds before it holds a model; on a GPU its context and kernels."""
_SLACK = {"cpu": 0.03, "cuda": 0.08}
"""What allocators hold beyond what was asked of them, as a share of that."""
_HOLES = 0.9
"""On a CPU, what stays between the blocks of freed memory that is kept for reuse, as a share of what a step makes and frees:
measured with glibc (docs/planning.md)."""
_TIGHT = 0.9
"""The share of the memory from which on a plan is tight."""
_MOST_LEVERS = 3


@dataclass(frozen=True)
class Target:
    """Where a recipe is to run. memory_bytes: of each of its shards. price: an hour of all of them."""

    device: torch.device
    memory_bytes: int
    shards: int = 1
    price: float | None = None


@dataclass(frozen=True)
class Lever:
    """A change to a recipe, and the most memory that it would need with it."""

    change: str
    peak_bytes: int


@dataclass(frozen=True)
class Plan:
    """What a recipe needs.

    parts: the bytes held at the peak, by what they are for; together peak_bytes. phase: when that is. disk_bytes: by what is
    written. seconds: of the training steps; None where there are none, and untimed says why. beside_seconds: what they leave out.
    tokens: in the whole run; in_batch: in the micro-batch that was planned for. are_imagined: whether rows were assumed rather than
    read.
    """

    peak_bytes: int
    parts: Mapping[str, int]
    phase: str
    memory_bytes: int
    verdict: Verdict
    disk_bytes: Mapping[str, int]
    num_steps: int
    tokens: int
    in_batch: int
    num_trainable: int
    num_parameters: int
    workers: int
    shards: int
    are_imagined: bool
    levers: Sequence[Lever] = ()
    seconds: float | None = None
    cost: float | None = None
    untimed: str | None = None
    beside_seconds: Sequence[str] = ()


def make_plan(
    recipe: Recipe,
    config: PreTrainedConfig,
    rows: Rows,
    target: Target,
    *,
    untimed: str | None = "it was not asked for",
    announce: Callable[[str], None] = lambda sentence: None,
) -> Plan:
    """The plan. untimed: why it is not measured how long a step takes here; None: it is. Raises as attaching the method does."""
    work = work_of(recipe, config, rows, target.device, is_divided=target.shards > 1)
    (found,) = trace_all([work])
    if isinstance(found, LuthierError):
        raise found
    most = needed(found, work, target)
    verdict = verdict_of(most.num_bytes, target.memory_bytes)
    levers = _levers(recipe, config, rows, target, most.num_bytes, announce) if verdict == "does not fit" else ()
    seconds = None
    if untimed is None:
        announce("Measuring how fast this machine computes such a step ...")
        seconds = seconds_of(replace(work, device=target.device), found)
        untimed = (
            None if seconds is not None else "such a model cannot be cut to two layers, which are what is measured"
        )
    return Plan(
        peak_bytes=most.num_bytes,
        parts=most.parts,
        phase=most.phase,
        memory_bytes=target.memory_bytes,
        verdict=verdict,
        disk_bytes=disk_of(recipe, work, found, on_cpu=target.device.type == "cpu"),
        num_steps=found.num_steps,
        tokens=found.run_tokens,
        in_batch=found.batch_tokens,
        num_trainable=found.num_trainable,
        num_parameters=found.num_parameters,
        workers=work.workers,
        shards=target.shards,
        are_imagined=rows.are_imagined,
        levers=levers,
        seconds=seconds,
        cost=None if seconds is None or target.price is None else seconds / 3600 * target.price,
        untimed=untimed,
        beside_seconds=() if seconds is None else untimed_work(recipe),
    )


def untimed_work(recipe: Recipe) -> tuple[str, ...]:
    """What a run does besides its steps, and no time is measured of."""
    drawn = ("drawing answers", "their rewards") if isinstance(recipe.objective, RolloutObjective) else ()
    held_out = ("evaluation",) if recipe.data.validation != "none" else ()
    return (*drawn, *held_out, "checkpoints")


def verdict_of(most: int, there: int) -> Verdict:
    """Whether a need of memory is met."""
    if most > there:
        return "does not fit"
    return "tight" if most > _TIGHT * there else "fits"


def memory_of(device: torch.device) -> int:
    """What a device has free: a GPU, or this machine for another process, as far as its container may take it.

    Raises UsageError without that GPU.
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(
                "There is no GPU here whose memory could be asked for.", "Give --device-memory, such as 24GiB."
            )
        return torch.cuda.mem_get_info(device)[0]
    free = int(psutil.virtual_memory().available)
    in_container = container_room()
    return free if in_container is None else min(free, in_container)


def within_limit(recipe: Recipe, device: torch.device, memory: int) -> int:
    """So much memory, or what the recipe lets training hold on a CPU (training.memory_limit_gb), if that is less."""
    limit = recipe.training.memory_limit_gb
    return memory if limit is None or device.type != "cpu" else min(memory, int(limit * 1e9))


def needed(trace: Trace, work: Work, target: Target) -> Demand:
    """The demand of the tensors, and of the process and the allocator around them."""
    kind = target.device.type
    on_cpu = kind == "cpu"
    # in files, in the processor's memory, or in unified memory, whose pages the driver moves off a GPU that runs short
    elsewhere = work.training.optimizer.is_paged
    tensors = demand(trace, work.workers, shards=target.shards, state_elsewhere=elsewhere, copies_here=on_cpu)
    around = {
        PROCESS: _PROCESS_BYTES[kind],
        SLACK: round(tensors.num_bytes * _SLACK[kind] + _holes(tensors, kind)),
    }
    return Demand({**tensors.parts, **around}, tensors.phase)


def _holes(tensors: Demand, kind: str) -> float:
    """Bytes between the blocks of what each step makes and frees."""
    if kind != "cpu":
        return 0.0
    return _HOLES * sum(tensors.parts.get(part, 0) for part in (KEPT, HEAD, BACKWARD))


def _levers(
    recipe: Recipe,
    config: PreTrainedConfig,
    rows: Rows,
    target: Target,
    most: int,
    announce: Callable[[str], None],
) -> tuple[Lever, ...]:
    """The changes that save most, the best one first."""
    announce("It does not fit; looking for what would help ...")
    comes_packed = rows.stored is not None
    every = [each for each in changes(recipe) if not (comes_packed and each[1].quantization is not None)]
    is_divided = target.shards > 1
    works = [work_of(changed, config, rows, target.device, is_divided=is_divided) for _, changed in every]
    levers = [
        Lever(change, needed(found, work, target).num_bytes)
        for (change, _), work, found in zip(every, works, trace_all(works), strict=True)
        if not isinstance(found, LuthierError)
    ]
    helping = [lever for lever in levers if lever.peak_bytes < most]
    return tuple(sorted(helping, key=lambda lever: lever.peak_bytes)[:_MOST_LEVERS])
