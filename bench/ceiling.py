"""What the machine's matrix products reach at the model's own shapes, in a process of its own.

For every shape of the model's linear layers (`budget` rows) and its head (128 rows, the head's chunk) the best of
several repeats of x Wᵀ and dy W in fp32. The ceiling weighs the shapes by the operations that a step spends on them:
Σ operations / Σ (operations / rate).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import torch

from bench.arithmetic import arithmetic_of
from bench.work import Work, read_work

_HEAD_ROWS = 128
_REPEATS = 7
_REPEAT_SECONDS = 0.1


def rates(rows: int, inputs: int, outputs: int) -> tuple[float, float]:
    """Operations a second of wall time and of CPU time, forward and backward product together, best repeat."""
    x, weight, dy = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    y, dx = torch.empty(rows, outputs), torch.empty(rows, inputs)

    def both() -> None:
        torch.mm(x, weight.t(), out=y)
        torch.mm(dy, weight, out=dx)

    began = time.perf_counter()
    both()
    both()
    calls = max(1, round(_REPEAT_SECONDS * 2 / (time.perf_counter() - began)))
    best_wall = best_cpu = 0.0
    for _ in range(_REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            both()
        operations = 4.0 * rows * inputs * outputs * calls
        best_wall = max(best_wall, operations / (time.perf_counter() - wall))
        best_cpu = max(best_cpu, operations / (time.process_time() - cpu))
    return best_wall, best_cpu


def ceiling(work: Work, threads: int) -> dict[str, float]:
    """Operations a second, wall and CPU, over the mix of shapes of one run, with so many threads."""
    torch.set_num_threads(threads)
    arithmetic = arithmetic_of(work.shape, work.rows)
    shapes = Counter((linear.inputs, linear.outputs) for linear in work.shape.linears)
    weights = {(work.budget, i, o): float(i * o * count) for (i, o), count in shapes.items()}
    scale = arithmetic.linears / sum(weights.values())
    mix = {shape: weight * scale for shape, weight in weights.items()}
    mix[(_HEAD_ROWS, work.shape.hidden, work.shape.vocabulary)] = arithmetic.head
    wall = cpu = 0.0
    for (rows, inputs, outputs), operations in mix.items():
        wall_rate, cpu_rate = rates(rows, inputs, outputs)
        wall += operations / wall_rate
        cpu += operations / cpu_rate
    total = sum(mix.values())
    return {"threads": threads, "wall_flops": total / wall, "cpu_flops": total / cpu}


def main() -> None:
    """Measure with one thread and with all, and write both."""
    parser = argparse.ArgumentParser(description="fp32 matrix products at the model's shapes")
    parser.add_argument("work", type=Path)
    parser.add_argument("result", type=Path)
    arguments = parser.parse_args()
    work = read_work(arguments.work)
    found = [ceiling(work, threads) for threads in sorted({1, torch.get_num_threads()})]
    arguments.result.write_text(json.dumps({"ceilings": found}), "utf-8")


if __name__ == "__main__":
    main()
