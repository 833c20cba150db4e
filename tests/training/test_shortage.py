"""Memory that does not suffice: the step is computed anew in smaller micro-batches, with the same result."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from held import graph_tensors
from near import assert_near
from training.limits import CPU, WHOLE, limited
from training.runs import Run

from luthier.data.batches import StepBatches
from luthier.errors import ResourceError
from luthier.models.language_model import LanguageModel, Outputs
from luthier.training.checkpoint import Checkpoint
from luthier.training.memory import HighWater, memory_bytes
from luthier.training.settings import TrainingSettings
from luthier.types import Batch

BUDGET = 32


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens the machine can compute at once, as a list of one; and how many it did, in the order of time."""
    plain, room = LanguageModel.forward, [8 * BUDGET]

    def forward(self: LanguageModel, batch: Batch, *others: Any, **named: Any) -> Outputs:
        if batch.tokens_BT.numel() > room[0]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        return plain(self, batch, *others, **named)

    monkeypatch.setattr(LanguageModel, "forward", forward)
    return room


@pytest.fixture(scope="module")
def fresh_process() -> Iterator[ProcessPoolExecutor]:
    """A process that holds nothing of other tests, and where memory is given back as soon as it is free."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
        yield pool


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_runs_short_ends_where_one_with_small_micro_batches_does(room: list[int], workers: int) -> None:
    said: list[str] = []
    short = Run(budget=BUDGET, workers=workers, announce=said.append)
    room[0] = 16
    short.go()
    room[0] = 8 * BUDGET
    small = Run(budget=16, workers=workers)
    small.go()
    whole = Run(budget=BUDGET, workers=workers)
    whole.go()
    for name, tensor in whole.weights().items():
        assert_near(short.weights()[name], tensor, 1e-5)
        assert torch.equal(short.weights()[name], small.weights()[name])
    assert len(said) == 1
    assert "at most 16 tokens in a micro-batch" in said[0]


def test_a_shortage_at_a_later_step_changes_those_from_there_on(room: list[int]) -> None:
    def shrink(run: Run, metrics: dict[str, Any]) -> None:
        room[0] = 16 if metrics["step"] == 2 else room[0]

    later, whole = Run(budget=BUDGET, on_step=shrink), Run(budget=BUDGET)
    later.go()
    room[0] = 8 * BUDGET
    whole.go()
    for name, tensor in whole.weights().items():
        assert_near(later.weights()[name], tensor, 1e-5)


def test_a_resumed_run_keeps_the_smaller_size(room: list[int]) -> None:
    said: list[str] = []
    room[0] = 16
    first = Run(budget=BUDGET, checkpoint_every=2)
    first.go()
    checkpoint = first.saved[0]
    assert checkpoint.state["batches"]["budget"] == 16
    again = Run(budget=BUDGET, checkpoint_every=2, announce=said.append)
    again.go(Checkpoint(**vars(checkpoint)))
    assert said == [], "it knew"
    assert all(torch.equal(again.weights()[name], tensor) for name, tensor in first.weights().items())


def test_what_the_failed_attempt_held_is_free_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, held = torch.autograd.grad, []

    def fails_once(*arguments: Any, **named: Any) -> Any:
        held.append(graph_tensors())
        if len(held) == 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        return plain(*arguments, **named)

    Run(budget=BUDGET, steps=1).go()
    before = graph_tensors()
    run = Run(budget=BUDGET, steps=1)
    halve = StepBatches.halve

    def halve_and_look(batches: StepBatches) -> int | None:
        held.append(graph_tensors())
        return halve(batches)

    monkeypatch.setattr(torch.autograd, "grad", fails_once)
    monkeypatch.setattr(StepBatches, "halve", halve_and_look)
    run.go()
    at_failure, after_it, *_ = held
    assert at_failure > before
    assert after_it == before


def test_where_not_even_one_row_fits_the_run_ends_with_the_mend(room: list[int]) -> None:
    room[0] = 3
    with pytest.raises(ResourceError, match="even one row at a time") as caught:
        Run(budget=BUDGET).go()
    assert "gradient_checkpointing" in caught.value.mend
    assert caught.value.field == "training.tokens_per_micro_batch"


def test_a_limit_of_ones_own_is_a_shortage_too() -> None:
    said: list[str] = []
    settings = TrainingSettings(memory_limit_gb=1e-6)
    with pytest.raises(ResourceError, match="memory_limit_gb is 1e-06"):
        Run(budget=BUDGET, settings=settings, announce=said.append).go()
    assert said, "it tried smaller micro-batches first"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lowers the mark of the most that was held")
@pytest.mark.parametrize("recomputes", [False, True])
def test_a_limit_that_halves_reach_is_kept_with_the_same_losses_and_by_a_resumed_run(
    fresh_process: ProcessPoolExecutor, recomputes: bool
) -> None:
    seen = fresh_process.submit(limited, recomputes).result()
    assert seen.spared > 5e6
    assert [sentence.partition(" It is")[0] for sentence in seen.said] == ["Memory did not suffice for step 1."]
    assert seen.losses == pytest.approx(seen.losses_of_free, rel=1e-5)
    assert seen.kept_budget == WHOLE // 2
    assert seen.said_by_resumed == [], "it knew the size"
    assert seen.resumed_is_same


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system tells no such mark")
def test_the_most_that_was_held_is_not_that_of_the_process_that_started_this_one() -> None:
    held_here = torch.ones(2**28)  # 1 GiB
    code = (
        "import torch; from luthier.training.memory import peak_memory_bytes as peak; print(peak(torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10**7 < int(done.stdout) < held_here.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lowers the mark of the most that was held")
def test_what_was_held_for_a_moment_counts_until_the_next_beginning() -> None:
    memory = HighWater(CPU, limit_gb=(memory_bytes(CPU) + 60e6) / 1e9)
    memory.begin()
    memory.check()
    torch.ones(2**25)  # 128 MiB, for a moment
    with pytest.raises(MemoryError, match="memory_limit_gb"):
        memory.check()
    ever = memory.ever()
    memory.begin()
    memory.check()
    assert memory.ever() == ever > memory_bytes(CPU) + 60e6


def test_an_error_of_another_kind_is_not_taken_for_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: Any, **__: Any) -> Outputs:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(LanguageModel, "forward", forward)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        Run(budget=BUDGET).go()
