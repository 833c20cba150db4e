"""Later epochs against LoRA's: rows from the whole file, epochs told apart, ratios, and the bench on a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bench.processes import SideFailed
from bench.trunk import Measured, compare, main, measured, read_rows
from bench.trunk_side import EpochClock, held_bytes


def write_messages(path: Path, number: int) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "category"))
        writer.writerows((f"Where is my card, number {n}?", f"label_{n // 4}") for n in range(number))
    return path


def test_rows_come_evenly_from_the_whole_file(tmp_path: Path) -> None:
    rows, held_out = read_rows(write_messages(tmp_path / "m.csv", 40), 8)
    assert [row["completion"] for row in rows] == [
        "label_0",
        "label_1",
        "label_2",
        "label_3",
        "label_5",
        "label_6",
        "label_7",
        "label_8",
    ]
    assert rows[1]["prompt"] == "Where is my card, number 5?"
    assert len(held_out) == 32
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in held_out}


def test_a_file_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SideFailed, match="holds 5 rows"):
        read_rows(write_messages(tmp_path / "m.csv", 5), 8)


def test_a_step_counts_to_the_epoch_that_it_ends_in() -> None:
    clock = EpochClock()
    for epoch in (0.5, 1.0, 1.5):
        clock.step_ended({"epoch": epoch, "loss": 3 - epoch, "real_tokens": 10})
    clock.step_ended({"epoch": 2.0, "loss": 1.0, "real_tokens": 10, "validation_loss": 1.25, "seconds": 500.0})
    result = clock.result()
    assert len(result["seconds"]) == 2
    assert 0 < result["seconds"][0] < 500 < result["seconds"][1]
    assert result["held_out_loss"] == 1.25
    assert result["losses"] == [2.5, 2.0, 1.5, 1.0]
    assert 0 < held_bytes("VmRSS") <= result["peak_bytes"] * 1.1


def test_ratios_are_of_later_epochs_and_of_memory_above_the_model() -> None:
    values = {"seconds": [9.0, 2.0, 4.0], "peak_bytes": 700, "held_out_loss": 1.0}
    run = measured(values, loaded_bytes=500)
    assert run == Measured(9.0, 3.0, 200.0, 1.0)
    found = compare({"lora": [Measured(12.0, 12.0, 400.0, 1.0)], "lets": [run]})["lets"]
    assert found["later_epoch"].of_medians == 0.25
    assert found["memory"].of_medians == 0.5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bench_tells_every_method_s_share_of_a_lora_epoch(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_messages(tmp_path / "messages.csv", 40)
    options = ["--data", str(data), "--model", str(tiny_model), "--results", str(tmp_path / "results"), "--json"]
    code = main(
        [*options, "--rows", "24", "--rows-per-step", "8", "--rounds", "1", "--only", "attention-fusion", "lets"]
    )
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert set(document["ratios"]) == {"lora", "attention-fusion", "lets"}
    assert all(len(entry["rounds"][0]["seconds"]) == 3 for entry in document["methods"].values())
    assert document["ratios"]["lora"]["later_epoch"]["of_medians"] == 1
    assert json.loads((tmp_path / "results" / "trunk-messages.json").read_text("utf-8")) == document


def test_data_that_is_not_there_ends_the_bench_with_exit_code_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(tmp_path / "nowhere.csv"), "--results", str(tmp_path)]) == 4
    assert "There is no such data file" in capsys.readouterr().err
