"""From what one worker holds to what a run holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planner.test_trace import ROWS, work
from tiny_runs import recipe_values

from luthier.planner.answers import KEYS
from luthier.planner.memory import SAVED, SAVING, UNIT_GRADIENT, checkpoint_bytes, demand, per_rank
from luthier.planner.plan import Target, memory_of, needed, verdict_of, within_limit
from luthier.planner.trace import BACKWARD, GATHERED, GRADIENTS, HEAD, KEPT, STATE, TRAINED, WEIGHTS, Trace
from luthier.planner.tracker import Peak
from luthier.recipe import make_recipe

STANDING = {WEIGHTS: 1000, TRAINED: 10, GRADIENTS: 20, STATE: 40}


def found(**peaks: dict[str, int]) -> Trace:
    """A trace with these peaks beside what stands."""
    made = {phase: Peak(0, {**STANDING, **parts}, phase) for phase, parts in peaks.items()}
    return Trace(STANDING, made, 100, 5, 500, 10, 250, 600, 70)


def test_what_a_pass_holds_counts_for_each_worker_and_what_stands_once() -> None:
    needed = demand(found(forward={KEPT: 50, HEAD: 5}), 3)
    assert needed.phase == "forward"
    assert needed.parts == {**STANDING, KEPT: 150, HEAD: 15}
    assert needed.num_bytes == sum(STANDING.values()) + 165


def test_the_phase_that_needs_most_is_taken_and_saving_is_one() -> None:
    trace = found(forward={KEPT: 5}, backward={KEPT: 4, BACKWARD: 2})
    saving = demand(trace, 1)
    assert saving.phase == SAVING
    assert saving.parts[SAVED] == STANDING[TRAINED] + STANDING[STATE]
    assert demand(trace, 100).phase == "backward"
    elsewhere = demand(trace, 1, copies_here=False)  # a GPU's copy is made in the memory of its machine
    assert (elsewhere.phase, elsewhere.num_bytes) == ("backward", sum(STANDING.values()) + 6)
    assert checkpoint_bytes(trace) == 50


def test_a_state_elsewhere_takes_no_memory_and_is_not_copied() -> None:
    needed = demand(found(forward={KEPT: 1}), 1, state_elsewhere=True)
    assert STATE not in needed.parts
    assert needed.parts[SAVED] == STANDING[TRAINED]


def test_ranks_share_what_stands_and_gather_what_they_compute() -> None:
    parts = {WEIGHTS: 1001, KEPT: 50, STATE: 40, KEYS: 30}
    assert per_rank(parts, 4, {GATHERED: 600}) == {WEIGHTS: 251, KEPT: 50, STATE: 10, KEYS: 30, GATHERED: 600}
    shared = demand(found(forward={KEPT: 50}), 1, shards=2)
    assert shared.parts[WEIGHTS] == 500
    assert shared.parts[GATHERED] == 600
    assert UNIT_GRADIENT not in shared.parts
    assert demand(found(**{BACKWARD: {KEPT: 50}}), 1, shards=2).parts[UNIT_GRADIENT] == 70


def test_a_plan_is_tight_from_nine_tenths_on() -> None:
    assert [verdict_of(most, 1000) for most in (900, 901, 1000, 1001)] == ["fits", "tight", "tight", "does not fit"]


def test_what_a_gpu_has_free_counts_and_not_all_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7 * 10**9, 24 * 10**9))
    assert memory_of(torch.device("cuda")) == 7 * 10**9


def test_a_container_and_the_recipe_bound_what_a_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("luthier.planner.plan.container_room", lambda: 12345)
    assert memory_of(cpu) == 12345
    recipe = make_recipe(recipe_values(Path("model"), ROWS, training={"memory_limit_gb": 2.0}))
    assert [within_limit(recipe, device, 5 * 10**9) for device in (cpu, gpu)] == [2 * 10**9, 5 * 10**9]
    assert within_limit(recipe, cpu, 10**9) == 10**9


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_paged_state_can_leave_and_is_no_part_of_the_need(kind: str) -> None:
    trace, target = found(forward={KEPT: 1}), Target(torch.device(kind), 10**9)
    assert STATE not in needed(trace, work(training={"optimizer": "paged-adamw"}), target).parts
    assert needed(trace, work(), target).parts[STATE] == STANDING[STATE]
