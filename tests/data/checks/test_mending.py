"""--fix: what can be mended safely is, nothing else is touched, and the second time there is nothing to do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nouns import NOUNS

from luthier.data.checks.checking import check_data
from luthier.data.checks.encoding import repaired_mojibake
from luthier.data.checks.mending import MENDS, Mended, write_mended
from luthier.errors import DataError, UsageError


def clean_rows(count: int = 120) -> list[dict[str, Any]]:
    random_ = random.Random(5)
    return [
        {"text": f"The {' '.join(random_.sample(NOUNS, 8))} of number {number}.", "label": ("good", "bad")[number % 2]}
        for number in range(count)
    ]


def mend(folder: Path, rows: list[dict[str, Any]], *, drop_faulty: bool = False, out: str = "out.jsonl") -> Mended:
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = source.read_bytes()
    result = write_mended(
        str(source), check_data(str(source), None, lambda text: None), folder / out, drop_faulty=drop_faulty
    )
    assert source.read_bytes() == before
    return result


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_can_be_mended_is_and_the_rest_stays(tmp_path: Path):
    rows = clean_rows()
    clean = [dict(row) for row in rows]
    for number, change in enumerate((" The cafÃ©.", "\u200b", " Tom &amp; Ann.", "\u00a0", "\x07")):
        rows[number]["text"] += change
        clean[number]["text"] += (" The café.", "", " Tom & Ann.", " ", "")[number]
    clean[3]["text"] = clean[3]["text"].strip()
    rows[5]["label"] = "Good"
    clean[5]["label"] = "good"
    rows[6]["text"] += " \ufffd"
    clean[6]["text"] = rows[6]["text"]
    result = mend(tmp_path, [*rows, rows[20]])
    assert rows_in(tmp_path / "out.jsonl") == clean
    assert result.left_out == {"exact-duplicate": 1}
    assert result.kept == {"replacement-character": 1}
    assert result.mended["mojibake"] == result.mended["label-variant"] == 1


def test_what_cannot_be_mended_is_left_out_if_asked_and_the_output_passes(tmp_path: Path):
    rows = clean_rows()
    rows[6]["text"] += " \ufffd"
    rows[7]["text"] += " <|im_end|>"
    rows[8]["text"] += " \u200b."
    result = mend(tmp_path, rows, drop_faulty=True)
    assert result.left_out == {"replacement-character": 1, "template-marker": 1}
    again = check_data(str(tmp_path / "out.jsonl"), None, lambda text: None)
    assert (again.num_rows, again.findings) == (118, ())


def test_mending_twice_changes_nothing_more(tmp_path: Path):
    rows = clean_rows()
    rows[3]["text"] += " The cafÃ©  \u00a0is\u200b open.  "
    rows[4]["text"] += " &lt;b&gt; it."
    mend(tmp_path, rows)
    first = (tmp_path / "out.jsonl").read_bytes()
    second = mend(tmp_path, rows_in(tmp_path / "out.jsonl"), out="again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == first
    assert not second.mended


def test_other_files_can_be_written(tmp_path: Path):
    rows = clean_rows(60)
    mend(tmp_path, rows, out="out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == rows
    mend(tmp_path, rows, out="out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines()[:2] == ["text,label", f"{rows[0]['text']},good"]


def test_the_input_is_never_written_over(tmp_path: Path):
    with pytest.raises(UsageError, match="never changed"):
        mend(tmp_path, clean_rows(30), out="in.jsonl")
    with pytest.raises(UsageError, match=r"\.jsonl"):
        mend(tmp_path, clean_rows(30), out="out.parquet")


def test_rows_that_no_table_holds_are_refused_and_leave_no_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"out\.csv"):
        mend(tmp_path, [{"text": ["a", "b"], "label": "x"}], out="out.csv")
    assert not (tmp_path / "out.csv").exists()


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=0xA1, max_codepoint=0x2FF, categories=["L"]), min_size=1, max_size=8))
def test_text_that_was_read_as_latin_1_comes_back_whole(text: str):
    broken = f"x {text} y".encode().decode("latin-1")
    repaired = repaired_mojibake(broken)
    assert repaired == f"x {text} y" or repaired_mojibake(f"x {text} y") != f"x {text} y"


@pytest.mark.parametrize("text", ["café", "naïve – “so”", "Größe", "Привет", "你好吗朋友", "Ærø Ångström", "“Ça”"])
def test_text_that_is_whole_stays(text: str):
    assert repaired_mojibake(text) == text


@pytest.mark.parametrize("kind", MENDS)
@pytest.mark.parametrize("text", ["plain", "Ã©", "\u200b a \u00a0", "&amp;amp;", "\udce9", "\ufeff\x01"])
def test_every_mend_comes_to_rest(kind: str, text: str):
    better = text
    for _ in range(3):
        better = MENDS[kind](better)
    assert MENDS[kind](better) == better
