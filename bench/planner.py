"""`python -m bench.planner`: plans against what was measured, for combinations drawn at random.

Each case is a model of random shape with random weights, a method, a form of the base, a number format, and rows; the seed
of the draw is printed. A case is planned without computing it; its steps are then taken for real, once with every tensor
counted (tracked bytes), and once in a fresh process that is watched from outside (process memory above a warmed baseline).
Printed are the errors: planned over measured, less one.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.contest import RESULTS, carried_out, machine, say
from bench.figures import gigabytes, table
from bench.processes import run_module

_LEAST_BATCH, _VIRTUAL = 512, 20
METHODS: tuple[dict[str, Any], ...] = (
    {"kind": "full"},
    {"kind": "lora", "rank": 16},
    {"kind": "lora", "rank": 8, "targets": ["role:query", "role:value"]},
    {"kind": "dora", "rank": 8},
    {"kind": "vera"},
    {"kind": "loha", "rank": 8},
    {"kind": "pfeiffer"},
    {"kind": "houlsby"},
    {"kind": "ia3"},
    {"kind": "prefix-tuning", "num_virtual_tokens": _VIRTUAL},
    {"kind": "ladder"},
    {"kind": "top-layers", "num_layers": 2},
)
QUANTIZATIONS: tuple[dict[str, Any] | None, ...] = (None, None, {"kind": "nf4"}, {"kind": "int8"}, {"kind": "mxfp4"})
OPTIMIZERS = ("adamw", "adamw", "adamw-8bit", "lion", "sgd", "adafactor")
_LEAST_FOR_PROCESS = 3 * 10**8
_TARGETS: dict[str, tuple[float | None, float]] = {"tracked": (0.02, 0.05), "process": (None, 0.08)}
"""The largest median of errors, and the largest error, that are no failure."""


@dataclass(frozen=True)
class Case:
    """One combination: the model's config, the recipe's parts, the number format, and the rows' lengths."""

    number: int
    config: dict[str, Any]
    method: dict[str, Any]
    quantization: dict[str, Any] | None
    training: dict[str, Any]
    dtype: str
    lengths: list[int]

    @property
    def name(self) -> str:
        """The case in a few words."""
        base = "" if self.quantization is None else f" over {self.quantization['kind']}"
        again = ", recomputed" if self.training["gradient_checkpointing"] else ""
        layers, width = self.config["num_hidden_layers"], self.config["hidden_size"]
        return f"{self.method['kind']}{base}, {layers} × {width} {self.dtype}, {self.training['optimizer']}, {sum(self.lengths)} tokens{again}"


def draw_case(draw: random.Random, number: int) -> Case:
    """A combination that may be trained."""
    method = draw.choice(METHODS)
    quantization = None if method["kind"] in ("full", "top-layers") else draw.choice(QUANTIZATIONS)
    heads = draw.choice((4, 8))
    width = heads * draw.choice((32, 64))
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 32 * draw.randint(width // 16, width // 8),
        "num_hidden_layers": draw.randint(2, 8),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice((heads, heads // 2, heads // 4)),
        "vocab_size": draw.choice((2000, 8000, 32000)),
        "tie_word_embeddings": draw.random() < 0.5,
    }
    most = draw.choice((128, 256, _LEAST_BATCH - _VIRTUAL))
    return Case(
        number,
        config,
        method,
        quantization,
        {
            "gradient_checkpointing": draw.random() < 0.4,
            "optimizer": draw.choice(OPTIMIZERS),
            "workers": 1,
            "tokens_per_micro_batch": draw.choice((_LEAST_BATCH, 1024, 2048)),
            "rows_per_step": 16,
        },
        draw.choice(("fp32", "fp32", "bf16")),
        [draw.randint(most // 4, most) for _ in range(16)],
    )


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.planner", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=60, help="combinations (default: 60)")
    parser.add_argument("--seed", type=int, help="of the draw; unset: the time")
    parser.add_argument(
        "--jobs", type=int, default=1, help="cases side by side, each in processes of its own (default: 1)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for all figures (default: bench/results)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser.parse_args(arguments)


def bench(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """All cases; the document and the text that tells it. Raises: SideFailed."""
    seed = int(time.time()) if options.seed is None else options.seed
    say(f"{options.cases} combinations drawn with seed {seed}")
    draw = random.Random(seed)
    cases = [draw_case(draw, number) for number in range(1, options.cases + 1)]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(lambda case: _measured(case, folder), cases))
    document = {"work": {"name": "drawn"}, "seed": seed, "machine": machine(), "cases": found}
    document["missed"] = missed(found)
    document["passed"] = not document["missed"]
    return document, report(document)


def errors_of(cases: list[dict[str, Any]], way: str) -> list[float]:
    """The errors of all cases that count, in size, the smallest first."""
    least = _LEAST_FOR_PROCESS if way == "process" else 0
    return sorted(abs(error_of(figures, way)) for figures in cases if figures[f"{way}_bytes"] >= least)


def missed(cases: list[dict[str, Any]]) -> list[str]:
    """The targets that are not met, in words."""
    found = []
    for way, (median, worst) in _TARGETS.items():
        errors = errors_of(cases, way)
        if errors and median is not None and statistics.median(errors) > median:
            found.append(f"the median error of {way} bytes is {statistics.median(errors):.2%}, more than {median:.0%}")
        if errors and errors[-1] > worst:
            found.append(f"the worst error of {way} bytes is {errors[-1]:.2%}, more than {worst:.0%}")
    return found


def _measured(case: Case, folder: Path) -> dict[str, Any]:
    """What was planned and what was measured."""
    path = folder / f"case-{case.number}.json"
    path.write_text(json.dumps(asdict(case)), "utf-8")
    figures: dict[str, Any] = {"name": case.name, "case": asdict(case)}
    for way in ("planned", "tracked", "process"):
        result = folder / f"case-{case.number}-{way}.json"
        log = folder / f"case-{case.number}-{way}.log"
        run_module("bench.planner_side", [str(path), way, str(result)], log, offline=True)
        figures |= json.loads(result.read_text("utf-8"))
    say(
        f"  {case.number:3}  {case.name:<72}  {figures['planned_bytes'] / 1e6:8.1f} MB  "
        f"{error_of(figures, 'tracked'):+7.2%} of tracked  {error_of(figures, 'process'):+7.1%} of the process"
    )
    return figures


def error_of(figures: dict[str, Any], way: str) -> float:
    """Planned over measured, less one."""
    return float(figures["planned_bytes"] / figures[f"{way}_bytes"] - 1)


def report(document: dict[str, Any]) -> str:
    """The document as a table with its setting."""
    rows = []
    for way, title in (("tracked", "tracked bytes"), ("process", "process memory")):
        errors = errors_of(document["cases"], way)
        if errors:
            rows.append((title, str(len(errors)), f"{statistics.median(errors):.2%}", f"{errors[-1]:.2%}"))
    worst = max(document["cases"], key=lambda figures: abs(error_of(figures, "tracked")))
    most = max(figures["tracked_bytes"] for figures in document["cases"])
    return (
        f"seed {document['seed']}; the largest case held {gigabytes(most)} GB\n\n"
        f"{table(('against', 'cases', 'median error', 'worst'), rows)}\n\nworst of tracked bytes: {worst['name']}"
        + "".join(f"\nMissed: {words}" for words in document["missed"])
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; 0, 1 if a target is missed, or the exit code of what failed."""
    options = read_arguments(arguments)
    return carried_out(bench, options, "planner")


if __name__ == "__main__":
    sys.exit(main())
