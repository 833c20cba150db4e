"""The bench of GGUF files: what counts as agreement, and that an export's own comparison is what it tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import begin, one_thread, recipe_values, write_rows

from bench import gguf


@pytest.mark.parametrize(
    ("changes", "is_enough"),
    [
        ({}, True),
        ({"agreement": 0.99}, False),
        ({"kl": 2e-3}, False),
        ({"dtype": "q8_0", "agreement": 0.96, "kl": 0.1}, True),
        ({"dtype": "q8_0", "agreement": 0.94}, False),
        ({"is_elsewhere": False}, False),
    ],
)
def test_llama_cpp_must_agree_as_often_as_the_format_allows(changes: dict[str, Any], is_enough: bool) -> None:
    found = {"dtype": "fp32", "is_elsewhere": True, "agreement": 1.0, "kl": 1e-9, **changes}
    assert gguf.is_as_asked(found) is is_enough


def test_a_run_is_exported_in_each_format_and_what_read_it_is_told(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 12)
    with one_thread():
        begin(recipe_values(tiny_model, rows, data={"validation": str(rows)}), tmp_path / "run")
        gguf.main(["--run", str(tmp_path / "run"), "--formats", "fp32", "q8_0", "--json"])
    exact, rough = json.loads(capsys.readouterr().out)["formats"]
    assert exact["agreement"] == 1
    assert exact["kl"] < rough["kl"]
    assert rough["num_bytes"] < exact["num_bytes"]
    assert exact["num_tokens"] == rough["num_tokens"] > 100
