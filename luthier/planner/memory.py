"""From a trace to the bytes of a whole run: several workers, checkpoints, shards, and the process around it.

Workers compute side by side, so what one holds in its pass counts for each; what stands, counts once. A checkpoint is a copy
of what trains and of the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from luthier.planner.answers import KEYS
from luthier.planner.trace import BACKWARD, GATHERED, HEAD, KEPT, PREPARED, PREPARING, STATE, TRAINED, Trace

_OF_A_PASS = (KEPT, HEAD, BACKWARD, "other")
"""What a worker holds for itself, while it computes."""

SAVING = "saving a checkpoint"
SAVED = "copy for the checkpoint"
UNIT_GRADIENT = "gradient before it is shared"


@dataclass(frozen=True)
class Demand:
    """The most bytes that tensors of a run hold, by part, and the phase in which they do."""

    parts: Mapping[str, int]
    phase: str

    @property
    def num_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def demand(
    trace: Trace, workers: int, *, shards: int = 1, state_elsewhere: bool = False, copies_here: bool = True
) -> Demand:
    """The phase that needs most, on each of the shards.

    state_elsewhere: whether the optimizer's state is in files, or in another memory than the device's. copies_here: whether what a
    checkpoint copies, and what prepares weights to be quantized, takes memory of the same device; a GPU's is in that of its machine.
    """
    phases = [phase for phase in trace.peaks if copies_here or phase != PREPARING]
    found = [Demand(_of_workers(trace.peaks[phase].parts, workers), phase) for phase in phases]
    if copies_here:
        found.append(Demand({**trace.standing, SAVED: saved_bytes(trace, state_elsewhere)}, SAVING))
    if state_elsewhere:
        found = [Demand({part: n for part, n in each.parts.items() if part != STATE}, each.phase) for each in found]
    if shards > 1:
        found = [Demand(per_rank(each.parts, shards, _gathered(trace, each.phase)), each.phase) for each in found]
    return max(found, key=lambda each: each.num_bytes)


def saved_bytes(trace: Trace, state_elsewhere: bool) -> int:
    """What a checkpoint copies before it writes it."""
    return trace.standing.get(TRAINED, 0) + (0 if state_elsewhere else trace.standing.get(STATE, 0))


def checkpoint_bytes(trace: Trace) -> int:
    """What a checkpoint takes on disk."""
    return trace.standing.get(TRAINED, 0) + trace.standing.get(STATE, 0)


def _of_workers(parts: Mapping[str, int], workers: int) -> dict[str, int]:
    return {part: count * (workers if part in _OF_A_PASS else 1) for part, count in parts.items()}


def _gathered(trace: Trace, phase: str) -> dict[str, int]:
    """What a rank holds whole in a phase: the part at work and the next, and on the way back the gradient of one before it is shared."""
    if phase == SAVING:
        return {}
    return {GATHERED: trace.gathered, UNIT_GRADIENT: trace.unit_gradient if phase == BACKWARD else 0}


def per_rank(parts: Mapping[str, int], shards: int, gathered: Mapping[str, int]) -> dict[str, int]:
    """The same on each of N ranks that share weights, gradients and state (FSDP2's full shard, ZeRO-3).

    Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054: what stands is divided by N; passes, and answers that are drawn, are each
    rank's own. gathered: what is whole beside that.
    """
    divided = {
        part: count if part in (*_OF_A_PASS, KEYS, PREPARED) else -(-count // shards) for part, count in parts.items()
    }
    return divided | {part: count for part, count in gathered.items() if count}
