"""The whole bench on a tiny model: every contestant takes the same steps and comes to the same losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.train import main


def write_rows(path: Path, number: int) -> Path:
    rows = [
        {"question": f"What is {n} and {n * n}?", "answer": f"It is {n + n * n}. " * (1 + n % 5)} for n in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_luthier_and_its_peers_come_to_the_same_losses(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "sums.jsonl", 16)
    options = ["--data", str(data), "--model", str(tiny_model), "--results", str(tmp_path / "results")]
    code = main([*options, "--rounds", "1", "--budget", "256", "--json", "--only", "luthier", "trainer", "trl"])
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert document["losses"]["largest_difference"] < 1e-5
    assert document["work"]["steps"] == 2
    assert set(document["contestants"]) == {"luthier", "trainer", "trl"}
    assert document["ratios"]
    assert json.loads((tmp_path / "results" / "train-sums.json").read_text("utf-8")) == document


@pytest.mark.slow
def test_data_that_is_not_there_ends_the_bench_with_the_data_s_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(tmp_path / "nowhere.jsonl"), "--results", str(tmp_path)]) == 4
    assert "There is no such data file" in capsys.readouterr().err
