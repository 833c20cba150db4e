"""`python -m bench.gguf`: whether llama.cpp says of GGUF files what the run says that they were written from.

A short LoRA run of the real model on GSM8K (or `--run RUN`) is exported as GGUF in several number formats. Each file is read back by
llama.cpp, where one of its Python bindings is installed, on 20 held-out rows: how often both find the same next token likeliest
under the right text, and the divergence of their distributions. Exit code 0 if llama.cpp was the reader and every format agrees
as often as it should.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contest import DATA, machine, say
from bench.figures import table
from luthier.errors import ExportMismatch
from luthier.recipe import make_recipe
from luthier.recipe.loading import recipe_of_run
from luthier.run import train_recipe
from luthier.studies.exporting import export_run

ROWS, HELD_OUT = 96, 20


@dataclass(frozen=True)
class Asked:
    """What a number format must come to: the least share of tokens on which both agree, and the most nats of divergence."""

    agreement: float
    kl: float | None = None


FORMATS = {"fp32": Asked(0.995, 1e-3), "fp16": Asked(0.95), "q8_0": Asked(0.95)}


def tuned(model: str, folder: Path) -> Path:
    """A run of twelve steps."""
    lines = (DATA / "gsm8k" / "test.jsonl").read_text("utf-8").splitlines()
    for name, chosen in (("train", lines[:ROWS]), ("held-out", lines[ROWS : ROWS + HELD_OUT])):
        (folder / f"{name}.jsonl").write_text("\n".join(chosen) + "\n", "utf-8")
    values: dict[str, Any] = {
        "model": model,
        "data": {
            "train": str(folder / "train.jsonl"), "validation": str(folder / "held-out.jsonl"), "max_length": 640,
        },
        "method": {"kind": "lora", "rank": 16},
        "training": {"steps": 12, "rows_per_step": 8, "tokens_per_micro_batch": 640, "peak_lr": 1e-3},
    }  # fmt: skip
    result = train_recipe(make_recipe(values), folder / "run", announce=say, on_step=lambda metrics: None)
    return result.folder


def read_back(run: Path, dtype: str, folder: Path) -> dict[str, Any]:
    """What an export in one number format came to."""
    try:
        exported = export_run(run, recipe_of_run(run), folder / dtype, say, to="gguf", dtype=dtype)
    except ExportMismatch as error:
        say(str(error))
        return {"dtype": dtype, "reader": "none", "is_elsewhere": False, "error": str(error)}
    return {"dtype": dtype, "num_bytes": exported.num_bytes, **exported.checked[-1].as_json()}


def is_as_asked(found: dict[str, Any]) -> bool:
    """Whether llama.cpp agreed, and enough."""
    asked = FORMATS[found["dtype"]]
    if not found["is_elsewhere"]:
        return False
    return bool(found["agreement"] >= asked.agreement and (asked.kl is None or found["kl"] <= asked.kl))


def main(arguments: list[str] | None = None) -> int:
    """Export in every format and print what came of it; 0 if llama.cpp agrees with each."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gguf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a run to export instead of one that is made here")
    parser.add_argument("--model", default="smollm2-135m", help="the model of the run that is made here")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as name:
        folder = Path(name)
        run = tuned(options.model, folder) if options.run is None else options.run
        found = [read_back(run, dtype, folder) for dtype in options.formats]
    if options.json:
        print(json.dumps({"machine": machine(), "formats": found}))
    else:
        print(
            table(
                ("", "GB", "read by", "tokens", "same likeliest", "KL, nats", "largest difference"), map(_line, found)
            )
        )
    return 0 if all(map(is_as_asked, found)) else 1


def _line(found: dict[str, Any]) -> tuple[str, ...]:
    if "error" in found:
        return (found["dtype"], "", "not written: it differs too much", "", "", "", "")
    return (
        found["dtype"],
        f"{found['num_bytes'] / 1e9:.2f}",
        found["reader"],
        f"{found['num_tokens']:,}",
        f"{found['agreement']:.2%}",
        f"{found['kl']:.1e}",
        f"{found['difference']:.1e}",
    )


if __name__ == "__main__":
    sys.exit(main())
