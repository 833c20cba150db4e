"""The check as a whole: chunks, processes, memory, the page of statistics."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from nouns import NOUNS

import luthier.data.checks.checking as checking
from luthier.data.checks.checking import check_data
from luthier.data.checks.personal import is_iban, is_luhn
from luthier.data.checks.statistics import page, picture, statistics_of
from luthier.errors import DataError


def write(path: Path, count: int) -> str:
    random_ = random.Random(5)
    rows: list[dict[str, Any]] = [
        {"text": f"The {' '.join(random_.choices(NOUNS, k=24))}.", "label": ("good", "bad")[number % 2]}
        for number in range(count)
    ]
    rows[30]["text"] += " Write to maria.keller@posteo.de."
    rows[40]["label"] = "Bad"
    rows.append(rows[3])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_chunks_processes_and_files_of_buckets_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "rows.jsonl", 2_500)
    alone = check_data(path, None, lambda text: None, num_processes=1)
    assert {(one.kind, one.line) for one in alone.findings} == {
        ("email-address", 31),
        ("label-variant", 41),
        ("exact-duplicate", 2_501),
    }
    monkeypatch.setattr(checking, "ROWS_FOR_PROCESSES", 1_000)
    monkeypatch.setattr(checking, "ROWS_OF_CHUNK", 200)
    assert check_data(path, None, lambda text: None, rows_in_memory=300) == alone


def test_an_empty_file_is_an_error(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows"):
        check_data(str(tmp_path / "rows.jsonl"), None, lambda text: None)


def test_the_statistics_say_what_a_limit_would_cut(tmp_path: Path):
    rows = [{"text": f"{number:04} " + "word " * (19 if number < 90 else 399)} for number in range(100)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checked = check_data(str(tmp_path / "rows.jsonl"), None, lambda text: None)
    statistics = statistics_of(checked)
    assert statistics["characters_of_row"]["50%"] == 100
    assert statistics["characters_of_row"]["100%"] == 2_000
    assert statistics["cut_at_tokens"]["256"]["rows"] == pytest.approx(0.1)
    assert statistics["cut_at_tokens"]["256"]["characters"] == pytest.approx(
        10 * (2_000 - 1_024) / (90 * 100 + 10 * 2_000)
    )
    assert statistics["cut_at_tokens"]["512"] == {"rows": 0.0, "characters": 0.0}


def test_the_page_and_its_picture_show_what_was_found(tmp_path: Path):
    checked = check_data(write(tmp_path / "rows.jsonl", 100), None, lambda text: None)
    text = page(checked)
    assert "| label-variant | 1 |" in text
    assert "line 41" in text
    assert picture(checked).startswith(b"\x89PNG")


def test_check_digits():
    assert is_luhn("4539148803436467")
    assert not is_luhn("4539148803436468")
    assert is_iban("DE89370400440532013000")
    assert is_iban("GB82WEST12345698765432")
    assert not is_iban("DE88370400440532013000")
