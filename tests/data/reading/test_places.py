"""Folders and patterns: which files they stand for."""

from __future__ import annotations

import pytest
from data_files import read, silent, values, written

from luthier.data.reading import called, read_rows
from luthier.errors import DataError, NotFound


def test_a_folder_gives_the_rows_of_its_files_by_name_whatever_their_kind(tmp_path):
    written(tmp_path, "b.csv", "text,n\nb,1\n")
    written(tmp_path, "a.jsonl", '{"text": "a"}\n')
    written(tmp_path, "c.jsonl.gz", '{"text": "c"}\n')
    rows = read_rows(str(tmp_path), silent)
    assert [row.values["text"] for row in rows] == ["a", "b", "c"]
    assert [row.origin.file for row in rows] == [str(tmp_path / name) for name in ("a.jsonl", "b.csv", "c.jsonl.gz")]


def test_what_tells_about_the_data_is_passed_over_and_said(tmp_path):
    written(tmp_path, "rows.jsonl", '{"text": "a"}\n')
    for name in ("README.md", "LICENSE.txt", ".hidden.jsonl", "sheet.xlsx", "notes.unknown", "classes.txt"):
        written(tmp_path, name, "words")
    written(tmp_path, "deeper/more.jsonl", '{"text": "b"}\n')
    rows, said = read(str(tmp_path))
    assert rows == [{"text": "a"}]
    assert "the one data file in this folder: rows.jsonl" in said
    for name in ("README.md", "LICENSE.txt", ".hidden.jsonl", "sheet.xlsx", "notes.unknown", "classes.txt", "deeper/"):
        assert name in said


def test_files_that_may_be_meant_for_testing_are_named(tmp_path):
    for name in ("train.jsonl", "latest.jsonl"):
        written(tmp_path, name, '{"text": "a"}\n')
    assert "meant for testing" not in read(str(tmp_path))[1]
    written(tmp_path, "rows_test.jsonl", '{"text": "a"}\n')
    assert "By their names rows_test.jsonl may be meant for testing" in read(str(tmp_path))[1]


def test_a_folder_without_data_is_refused_naming_what_it_holds(tmp_path):
    with pytest.raises(DataError, match="It is empty"):
        read_rows(str(tmp_path), silent)
    written(tmp_path, "README.md", "words")
    written(tmp_path, "deeper/rows.jsonl", "{}")
    with pytest.raises(DataError, match=r"holds README\.md, deeper/") as caught:
        read_rows(str(tmp_path), silent)
    assert f"{tmp_path}/**" in caught.value.mend


def test_a_model_is_no_data(tmp_path):
    written(tmp_path, "config.json", "{}")
    written(tmp_path, "tokenizer.json", "{}")
    with pytest.raises(DataError, match="the folder of a model"):
        read_rows(str(tmp_path), silent)


def test_a_pattern_stands_for_the_files_that_fit(tmp_path):
    for name in ("b/2.jsonl", "a/1.jsonl", "0.jsonl", "a/1.csv", "a/README.md", "a/.1.jsonl"):
        written(tmp_path, name, f'{{"text": "{name}"}}\n' if name.endswith("jsonl") else "text,n\nx,1\n")

    def found(pattern: str) -> list[str]:
        rows = read_rows(str(tmp_path / pattern), silent)
        return [row.origin.file.removeprefix(f"{tmp_path}/") for row in rows]

    assert found("*.jsonl") == ["0.jsonl"]
    assert found("**/*.jsonl") == ["0.jsonl", "a/1.jsonl", "b/2.jsonl"]
    assert found("**") == ["0.jsonl", "a/1.csv", "a/1.jsonl", "b/2.jsonl"]
    assert found("[ab]/*.jsonl") == ["a/1.jsonl", "b/2.jsonl"]
    assert found("a/?.csv") == ["a/1.csv"]


def test_an_ending_written_out_takes_what_fits_by_its_content(tmp_path):
    written(tmp_path, "a.rows", '{"text": "a"}\n{"text": "b"}\n')
    assert values(read_rows(str(tmp_path / "*.rows"), silent)) == [{"text": "a"}, {"text": "b"}]
    written(tmp_path, "b.xlsx", "")
    with pytest.raises(DataError, match="spreadsheet"):
        read_rows(str(tmp_path / "*.xlsx"), silent)


def test_a_pattern_that_nothing_fits_is_refused(tmp_path):
    with pytest.raises(NotFound, match="no file fits this pattern"):
        read_rows(str(tmp_path / "*.jsonl"), silent)
    written(tmp_path, "README.md", "words")
    with pytest.raises(DataError, match=r"none of the files that fit is data by its name: .*README\.md"):
        read_rows(str(tmp_path / "*"), silent)


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    written(tmp_path, "a[1].jsonl", '{"text": "a"}\n')
    assert values(read_rows(str(tmp_path / "a[1].jsonl"), silent)) == [{"text": "a"}]


def test_an_empty_file_among_others_is_named(tmp_path):
    written(tmp_path, "a.jsonl", '{"text": "a"}\n')
    empty = written(tmp_path, "b.jsonl", "\n")
    with pytest.raises(DataError, match="no rows") as caught:
        read_rows(str(tmp_path), silent)
    assert caught.value.file == empty


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("data/rows.jsonl", "rows"),
        ("rows.jsonl.gz", "rows"),
        ("data/*.jsonl", "data"),
        ("data/**/*.jsonl", "data"),
        ("data/", "data"),
        ("*.csv", "data"),
        ("owner/name", "name"),
    ],
)
def test_what_is_made_from_data_is_called_after_it(name, expected):
    assert called(name) == expected
