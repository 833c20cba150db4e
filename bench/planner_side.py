"""One case of `bench.planner`: planned, or carried out and tracked, or carried out and seen from outside."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.planner.work import Work

_STATUS, _FORGET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RETURNS_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def work_of(case: dict[str, Any], *, layers: int | None = None, lengths: list[int] | None = None) -> Work:
    """The work of a case, perhaps cut down."""
    import torch
    from transformers import AutoConfig

    from luthier.models.language_model import FastModel
    from luthier.planner.packed import as_settings_say
    from luthier.planner.work import Work
    from luthier.recipe import make_recipe

    values = {
        "model": {"name": "drawn", "dtype": case["dtype"]},  # neither it nor the rows are read
        "data": {"train": __file__, "validation": "none", "max_length": 512},
        "method": case["method"],
        "training": {
            **case["training"],
            "tokens_per_micro_batch": max(case["training"]["tokens_per_micro_batch"], 512),
        },
        "seed": 0,
    }
    if case["quantization"] is not None:
        values["quantization"] = case["quantization"]
    recipe = make_recipe(values)
    config = {**case["config"], **({} if layers is None else {"num_hidden_layers": layers})}
    return Work(
        config=AutoConfig.for_model(**config),
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[case["dtype"]],
        fast=FastModel(),
        method=recipe.method,
        objective=recipe.objective,
        training=recipe.training,
        quantization=None if recipe.quantization is None else as_settings_say(recipe.quantization),
        head=None,
        rows=tuple(_row(number, length) for number, length in enumerate(lengths or case["lengths"])),
        workers=1,
        seed=0,
    )


def _row(number: int, length: int) -> Any:
    import numpy as np

    from luthier.types import Example, Origin, Part

    tokens_T = np.random.default_rng(number).integers(3, 2000, length, dtype=np.int64)
    source_N = np.arange(length // 3, length - 1, dtype=np.int64)
    of_target = np.ones(len(source_N), np.float32), np.zeros(len(source_N), np.int64)
    return Example((Part(tokens_T),), source_N, tokens_T[source_N + 1], *of_target, number, Origin("drawn", number + 1))


def peak_of(case: dict[str, Any], *, for_real: bool) -> int:
    """The most bytes of tensors in two steps."""
    from luthier.planner.trace import trace

    found = trace(work_of(case), for_real=for_real)
    return max(peak.num_bytes for peak in found.peaks.values())


def process_bytes(case: dict[str, Any]) -> int:
    """The most that the process held in two steps, above what it held after a small case of the same kind."""
    from luthier.planner.trace import take_steps

    take_steps(work_of(case, layers=2, lengths=[40] * 4))
    gc.collect()
    baseline = _held("VmRSS")
    _FORGET_PEAK.write_text("5")
    take_steps(work_of(case))
    return _held("VmHWM") - baseline


def _held(name: str) -> int:
    line = next(line for line in _STATUS.read_text("utf-8").splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def main() -> int:
    """Plan or carry out a case, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", type=Path)
    parser.add_argument("way", choices=("planned", "tracked", "process"))
    parser.add_argument("result", type=Path)
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in _RETURNS_FREED.items()):
        os.execve(
            sys.executable, [sys.executable, "-m", "bench.planner_side", *sys.argv[1:]], os.environ | _RETURNS_FREED
        )
    case = json.loads(arguments.case.read_text("utf-8"))
    is_tracked = arguments.way == "tracked"
    found = process_bytes(case) if arguments.way == "process" else peak_of(case, for_real=is_tracked)
    arguments.result.write_text(json.dumps({f"{arguments.way}_bytes": found}), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
