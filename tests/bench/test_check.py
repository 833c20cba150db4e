"""The bench of the data check: what it counts, and the table that it writes into a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.check import main, measure_speed, write_between
from bench.figures import table

MARKS = "<!-- made by python -m bench.check --table -->\n{}\n<!-- end -->"


def test_every_thousandth_of_the_made_up_rows_is_at_fault_and_found() -> None:
    head, _, row = measure_speed(2_000, seed=3).splitlines()
    cells = dict(zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in (head, row)), strict=True))
    assert (cells["rows"], cells["planted"], cells["found"]) == ("2,000", "2", "2")
    assert 0 < float(cells["of the main process"]) <= float(cells["CPU seconds"])
    assert float(cells["bytes a row"]) < 1_000


def test_the_table_of_sets_takes_the_place_of_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sets" / "one").mkdir(parents=True)
    rows = [{"text": f"Row {number} is here.", "label": ("a", "b")[number % 2]} for number in range(50)]
    rows[7]["text"] += " The cafÃ© is open."
    (tmp_path / "sets" / "one" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sets" / "one" / "broken.json").write_text("{")
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n{MARKS.format('old')}\nAfter.\n")
    assert main(["--data", str(tmp_path / "sets"), "--table", str(page)]) == 0
    assert main(["--data", str(tmp_path / "sets"), "--table"]) == 0
    made = capsys.readouterr().out.strip()
    assert page.read_text() == f"Before.\n{MARKS.format(made)}\nAfter.\n"
    broken, found = made.splitlines()[2:]
    assert [cell.strip() for cell in found.strip("|").split("|")][:4] == [
        "one/rows.jsonl",
        "classification",
        "label is the class of text",
        "50",
    ]
    assert "mojibake 1" in found
    assert "broken.json" in broken


def test_a_page_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("No table.\n")
    with pytest.raises(ValueError, match="has no line"):
        write_between(page, table(("a",), [("1",)]))
    assert page.read_text() == "No table.\n"
