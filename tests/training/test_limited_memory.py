"""Full tuning in a process that the system gives no more memory: paged states finish where plain AdamW cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import write_tiny_model
from tiny_runs import recipe_values, write_rows

WIDE = {
    "hidden_size": 512,
    "intermediate_size": 4096,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
"""About 37 M numbers in the layers: 150 MB of weights, as much of gradients, and 300 MB of AdamW's moments."""

LIMITED = """
import resource, sys
from pathlib import Path
import luthier.cli.train, luthier.run, luthier.training.loop, transformers.models.llama.modeling_llama
held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:"))
limit = int(held.split()[1]) * 1024 + int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from luthier.cli.main import main
sys.exit(main())
"""
ROOM = 850 * 10**6
"""Paged states finish within 520 and 640 MB (8 bits read a stretch as numbers too), states in memory within 1,075."""


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("wide"), **WIDE)


def train(folder: Path, model: Path, optimizer: str) -> subprocess.CompletedProcess[str]:
    recipe = folder / "recipe.yaml"
    rows = write_rows(folder / "rows.jsonl", 8)
    values = recipe_values(model, rows, method={"kind": "full", "rank": None})
    values["training"] |= {"optimizer": optimizer, "steps": 2, "workers": 1}
    recipe.write_text(json.dumps(values), "utf-8")
    words = [sys.executable, "-c", LIMITED, str(ROOM), "train", str(recipe), "--out", str(folder / "run"), "--no-plan"]
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_paged_states_finish_where_those_in_memory_do_not_fit(tmp_path: Path, wide_model: Path) -> None:
    ends = {}
    for optimizer in ("adamw", "paged-adamw", "paged-adamw-8bit"):
        folder = tmp_path / optimizer
        folder.mkdir()
        ends[optimizer] = train(folder, wide_model, optimizer)
    assert ends["adamw"].returncode != 0
    assert "memory" in ends["adamw"].stderr
    assert "Traceback" not in ends["adamw"].stderr
    for optimizer in ("paged-adamw", "paged-adamw-8bit"):
        assert ends[optimizer].returncode == 0, ends[optimizer].stderr
        status = json.loads((tmp_path / optimizer / "run" / "status.json").read_text("utf-8"))
        assert status["state"] == "finished"
