"""Files → rows."""

from __future__ import annotations

import csv
import json
import os
import pickle
from pathlib import Path

import pyarrow
import pytest
from data_files import jsonl, lines, read, silent, values, written
from pyarrow import parquet

from luthier.data.hub import is_hub_name
from luthier.data.reading import iter_rows, read_rows
from luthier.errors import DataError, LuthierError, NetworkError, NotFound

ROWS = [{"prompt": "Wie heißt du?", "completion": "Ada"}, {"prompt": "2+2", "completion": "4\n(four)"}]


# ── every kind gives the same rows ──────────────────────────────────────────────────────────────────────────────────


def write_as(kind: str, folder: Path) -> str:
    path = folder / f"rows.{kind}"
    if kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    else:
        path.write_text(jsonl(ROWS), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path):
    assert values(read_rows(write_as(kind, tmp_path), silent)) == ROWS


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_an_unknown_ending_is_told_by_content(kind, tmp_path):
    path = Path(write_as(kind, tmp_path))
    assert values(read_rows(str(path.rename(path.with_suffix(".upload"))), silent)) == ROWS


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_a_byte_order_mark_changes_nothing(kind, tmp_path):
    path = Path(write_as(kind, tmp_path))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert values(read_rows(str(path), silent)) == ROWS


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_max_rows_takes_the_first_rows(kind, tmp_path):
    assert values(read_rows(write_as(kind, tmp_path), silent, max_rows=1)) == ROWS[:1]


def test_a_text_file_is_one_row(tmp_path):
    text = "First paragraph.\n\nSecond.\n"
    assert values(read_rows(written(tmp_path, "story.txt", text), silent)) == [{"text": text}]


def test_blank_lines_are_passed_over_and_lines_still_counted(tmp_path):
    rows = read_rows(written(tmp_path, "a.jsonl", '\n{"a": 1}\n   \n{"a": 2}\r\n'), silent)
    assert lines(rows) == [2, 4]


def test_only_a_line_feed_ends_a_line_of_jsonl(tmp_path):
    row = {"text": "one\u2028two\u0085three"}
    assert values(read_rows(written(tmp_path, "a.jsonl", jsonl([row, row])), silent)) == [row, row]


def test_a_csv_row_has_the_line_that_it_begins_on(tmp_path):
    rows = read_rows(written(tmp_path, "a.csv", 'a,b\n"one\ntwo",2\n\n3,4\n'), silent)
    assert values(rows) == [{"a": "one\ntwo", "b": "2"}, {"a": "3", "b": "4"}]
    assert lines(rows) == [2, 5]


def test_a_cell_may_be_longer_than_the_csv_module_allows_and_its_limit_stays(tmp_path):
    before = csv.field_size_limit()
    long = "x" * (before + 1)
    assert values(read_rows(written(tmp_path, "a.csv", f"text,b\n{long},1\n"), silent)) == [{"text": long, "b": "1"}]
    assert csv.field_size_limit() == before


def test_columns_separated_by_semicolons_are_read_and_said(tmp_path):
    said: list[str] = []
    rows = read_rows(written(tmp_path, "a.csv", "prompt;completion\nHi;Hello, you\n"), said.append)
    assert values(rows) == [{"prompt": "Hi", "completion": "Hello, you"}]
    assert "';'" in said[0]


@pytest.mark.parametrize("key", ["data", "rows", "examples", "train"])
def test_rows_may_stand_under_a_key_and_what_stands_beside_is_said(key, tmp_path):
    said: list[str] = []
    rows = read_rows(written(tmp_path, "a.json", json.dumps({"version": 1, key: ROWS})), said.append)
    assert values(rows) == ROWS
    assert lines(rows) == [1, 2]
    assert "'version'" in said[0]


def test_jsonl_named_json_is_read_and_said(tmp_path):
    said: list[str] = []
    assert values(read_rows(written(tmp_path, "a.json", jsonl(ROWS)), said.append)) == ROWS
    assert "JSONL" in said[0]


def test_several_files_follow_one_another_and_max_rows_counts_over_all(tmp_path):
    first = written(tmp_path, "a.jsonl", jsonl(ROWS))
    second = written(tmp_path, "b.jsonl", jsonl(ROWS))
    rows = read_rows((first, second), silent, max_rows=3)
    assert values(rows) == [*ROWS, ROWS[0]]
    assert [row.origin.file for row in rows] == [first, first, second]


def test_rows_come_one_by_one_before_what_is_wrong_later(tmp_path):
    rows = iter_rows(written(tmp_path, "a.jsonl", jsonl(ROWS) + "{"), silent)
    assert [next(rows).values, next(rows).values] == ROWS
    with pytest.raises(DataError, match="line 3"):
        next(rows)


@pytest.mark.parametrize(("kind", "broken"), [("csv", 'a,"b'), ("tsv", "a"), ("jsonl", "{"), ("conll", "a")])
def test_what_comes_after_max_rows_is_not_looked_at(kind, broken, tmp_path):
    good = {"csv": "text,n\nHi,1\n", "tsv": "text\tn\nHi\t1\n", "jsonl": '{"a": 1}\n', "conll": "Hi\tO\n\n"}[kind]
    assert len(read_rows(written(tmp_path, f"a.{kind}", good + broken), silent, max_rows=1)) == 1


def test_a_missing_file_is_told_before_any_is_read(tmp_path):
    first = written(tmp_path, "a.jsonl", jsonl(ROWS))
    with pytest.raises(NotFound):
        next(iter_rows((first, str(tmp_path / "b.jsonl")), silent))


def test_an_object_that_holds_rows_under_their_ids_gives_them_with_the_id(tmp_path):
    rows, said = read(written(tmp_path, "a.json", json.dumps({"7": {"Q": "a", "A": "b"}, "9": {"Q": "c"}})))
    assert rows == [{"id": "7", "Q": "a", "A": "b"}, {"id": "9", "Q": "c"}]
    assert "the key becomes the column id" in said
    own, said = read(written(tmp_path, "b.json", json.dumps({"7": {"id": 1}, "9": {"id": 2}})))
    assert own == [{"id": 1}, {"id": 2}]
    assert "the keys are not read" in said


def test_the_articles_of_squad_are_rows_as_they_stand(tmp_path):
    article = {"title": "Ada", "paragraphs": [{"context": "c", "qas": [{"id": "1", "question": "q", "answers": []}]}]}
    rows, said = read(written(tmp_path, "a.json", json.dumps({"data": [article, article], "version": "1.1"})))
    assert rows == [article, article]
    assert "'version'" in said


def test_the_only_list_of_objects_holds_the_rows_whatever_it_is_called(tmp_path):
    rows, said = read(written(tmp_path, "a.json", json.dumps({"made": "today", "tickets": ROWS})))
    assert rows == ROWS
    assert "'tickets'" in said


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "txt"])
def test_utf16_with_its_mark_is_read_and_said(kind, tmp_path):
    text = "a" if kind == "txt" else Path(write_as(kind, tmp_path)).read_text("utf-8")
    rows, said = read(written(tmp_path, f"wide.{kind}", text.encode("utf-16")))
    assert rows == ([{"text": "a"}] if kind == "txt" else ROWS)
    assert "UTF-16" in said


# ── what cannot be read ─────────────────────────────────────────────────────────────────────────────────────────────

WHOLE = r'{"a": "\ud83d\ude00"}'
HALF = r'{"a": "\ud83d"}'

BROKEN: dict[str, tuple[str, str | bytes, int | None, str, str]] = {
    # name: file, content, line, a fragment of what was found, a fragment of the mend
    "bad JSON on line 3": ("a.jsonl", '{"a": 1}\n\n{"a": \n', 3, "not JSON: Expecting value", "one whole JSON object"),
    "a half-written line": ("a.jsonl", '{"a": 1}\n{"a": "x', 2, "Unterminated string", "one whole JSON object"),
    "single quotes": ("a.jsonl", "{'a': 1}\n", 1, "double quotes", "one whole JSON object"),
    "two objects on a line": ("a.jsonl", '{"a": 1} {"a": 2}\n', 1, "Extra data", "one whole JSON object"),
    "a line that is a number": (
        "a.jsonl",
        '{"a": 1}\n7\n',
        2,
        "not an object: it is a number",
        "one whole JSON object",
    ),
    "a line that is a list": ("a.jsonl", "[1]\n", 1, "it is a list", "name it .json"),
    "an array over several lines": ("a.jsonl", '[\n{"a": 1}\n]', 1, "not JSON", "name it .json"),
    "thousands of brackets": ("a.jsonl", "[" * 100_000, 1, "cannot be read", "one whole JSON object"),
    "a number of 5000 digits": ("a.jsonl", '{"a": ' + "9" * 5000 + "}", 1, "cannot be read", "one whole JSON object"),
    "half of a character": ("a.jsonl", f"{WHOLE}\n{HALF}", 2, "\\ud83d", "whole character"),
    "half of a character in JSON": (
        "a.json",
        f"[{WHOLE}, {HALF}]",
        2,
        "\\ud83d",
        "whole character",
    ),
    "a broken array": ("a.json", '[\n{"a": 1},\n{"a" 2}\n]', 3, "at column 6", "array of objects"),
    "an array of numbers": ("a.json", '[{"a": 1}, 2]', 2, "row 2 is a number", "must be an object"),
    "a JSON string": ("a.json", '"rows"', None, "the document is text", "array of objects"),
    "an object without rows": ("a.json", '{"x": [], "y": 1}', None, "'x', 'y'", "under data, rows"),
    "columns under their names": (
        "a.json",
        '{"a": ["x", "y"], "b": ["u", "v"]}',
        None,
        "a column under each",
        "by rows",
    ),
    "columns as pandas writes them": (
        "a.json",
        '{"a": {"0": "x", "1": "y"}, "b": {"0": "u", "1": "v"}}',
        None,
        "a column under each",
        "orient='records'",
    ),
    "objects with nothing in common": ("a.json", '{"x": {"a": 1}, "y": {"b": 2}}', None, "'x', 'y'", "under its id"),
    "an object with two lists": ("a.json", '{"data": [{}], "train": [{}]}', None, "data and train", "one such array"),
    "no rows in an array": ("a.json", "[]", None, "no rows", "at least one row"),
    "an empty file": ("a.jsonl", "", None, "empty", "at least one row"),
    "an empty JSON file": ("a.json", "  \n", 2, "empty", "array of objects"),
    "blank lines alone": ("a.jsonl", "\n\n", None, "no rows", "at least one row"),
    "a header alone": ("a.csv", "a,b\n", None, "no rows", "at least one row"),
    "blank text": ("a.txt", " \n", None, "no rows", "at least one row"),
    "a cell too many": ("a.csv", "a,b\n1,2\n\n3,4,5\n", 4, "3 cells, but the header has 2", "double quotes"),
    "a cell too few": ("a.tsv", "a\tb\n1\n", 2, "1 cells", "hold a tab"),
    "a quote never closed": ("a.csv", 'a,b\n1,2\n"3,4\n5,6\n', 3, "unexpected end of data", "Close every double quote"),
    "text after a quote": ("a.csv", 'a,b\n1,2\n"3"x,4\n', 3, "expected after", "Close every double quote"),
    "a column twice": ("a.csv", "a,b,a\n1,2,3\n", 1, "'a' twice", "its own name"),
    "Latin-1 in JSONL": ("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', 2, "byte 0xE9, the 11. of its line", "UTF-8"),
    "Latin-1 in CSV": ("a.csv", b"a,b\n1,2\n3,\xfc\n", 3, "byte 0xFC, the 3. of its line", "UTF-8"),
    "UTF-16 cut in a character": ("a.csv", "a,b\n1,2\n".encode("utf-16")[:-1], 2, "UTF-16", "UTF-8"),
    "UTF-16 without its mark": ("a.csv", "a,b\n1,2\n".encode("utf-16-le"), None, "UTF-16", "UTF-8"),
    "a pickle": ("a.pkl", pickle.dumps([1]), None, "pickle", "can run code"),
    "a torch file": ("rows.pt", b"PK\x03\x04", None, "pickle", "can run code"),
    "a NumPy file": ("rows.npy", b"\x93NUMPY", None, "pickle", "can run code"),
    "a pickle named JSONL": ("a.jsonl", pickle.dumps([1]), None, "begins as a pickle", "can run code"),
    "a zip without an ending": ("rows", b"PK\x03\x04....", None, "zip", "JSONL"),
    "a zip": ("a.zip", b"PK\x03\x04", None, "archive", "Unpack"),
    "a tar, packed": ("a.tar.gz", b"\x1f\x8b", None, "archive", "Unpack"),
    "a tar by another name": ("a", b"\0" * 257 + b"ustar", None, "archive (tar)", "Unpack"),
    "an image": ("a.png", b"", None, "image", "JSONL"),
    "an image by another name": ("a.jsonl", b"\x89PNG\r\n\x1a\n", None, "image (PNG)", "JSONL"),
    "sound": ("a.wav", b"", None, "sound", "JSONL"),
    "a PDF": ("a.pdf", b"", None, "layout", ".txt"),
    "a PDF by another name": ("a", b"%PDF-1.7\n", None, "PDF", ".txt"),
    "an Arrow file": ("a", b"ARROW1\0\0", None, "Arrow", "Parquet"),
    "a database": ("a", b"SQLite format 3\0", None, "database", "JSONL"),
    "a pointer of git-lfs": ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid", None, "pointer", "lfs pull"),
    "a spreadsheet": ("a.xlsx", b"PK\x03\x04", None, "spreadsheet", "CSV"),
    "not Parquet": ("a.parquet", b"PAR1 and then nothing", None, "Parquet", "whole"),
    "binary of no known kind": ("rows", b"\x00\x01\x02", None, "not text", ".jsonl"),
    "text of no known kind": ("a.words", "I say\n", None, "neither its name nor its content", ".txt"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_name_the_line_and_the_mend(name, tmp_path):
    file, content, line, found, mend = BROKEN[name]
    path = written(tmp_path, file, content)
    with pytest.raises(DataError) as caught:
        read_rows(path, silent)
    error = caught.value
    assert (error.file, error.line) == (path, line)
    assert found in error.found
    assert mend in error.mend
    assert error.exit_code == 3


def test_a_pickle_is_refused_without_being_opened(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    with pytest.raises(DataError):
        read_rows(written(tmp_path, "a.pkl", pickle.dumps(Payload())), silent)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_not_found_and_near_names_are_given(tmp_path):
    written(tmp_path, "tickets.jsonl", "{}")
    with pytest.raises(NotFound, match=r"Did you mean .*tickets\.jsonl\?") as caught:
        read_rows(str(tmp_path / "ticket.json"), silent)
    assert caught.value.file == str(tmp_path / "ticket.json")
    assert caught.value.exit_code == 4


def test_a_missing_folder_is_not_found(tmp_path):
    with pytest.raises(NotFound, match="nowhere does not exist"):
        read_rows(str(tmp_path / "nowhere" / "a.jsonl"), silent)


def test_what_cannot_be_read_twice_is_refused(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"a pipe or a device.*Write the rows to a file"):
        read_rows(str(tmp_path / "rows.jsonl"), silent)


def test_a_parquet_value_that_python_cannot_hold_is_a_fault_of_the_file(tmp_path):
    far = pyarrow.array([2**62], pyarrow.timestamp("us"))
    parquet.write_table(pyarrow.table({"prompt": ["a"], "completion": ["b"], "when": far}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="not a Parquet file that can be read"):
        read_rows(str(tmp_path / "rows.parquet"), silent)


def test_no_files_at_all_is_an_error():
    with pytest.raises(DataError, match="at least one file"):
        read_rows((), silent)


# ── the hub ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("source", "is_hub"),
    [
        ("openai/gsm8k", True),
        ("teknium/OpenHermes-2.5", True),
        ("openai/gsm8k:main", True),
        ("openai/gsm8k:main:test", True),
        ("openai/gsm8k::test", True),
        ("openai/gsm8k:main:test:more", False),
        ("openai/gsm8k:", True),
        ("folder/train:main", False),
        ("data/train.jsonl:main", False),
        ("data/train.jsonl", False),
        ("data/train.jsn", False),
        ("./openai/gsm8k", False),
        ("/openai/gsm8k", False),
        ("a/b/c", False),
        ("gsm8k", False),
        ("folder/train", False),
    ],
)
def test_a_hub_name_is_owner_slash_name_without_ending_or_local_folder(source, is_hub, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(source) is is_hub


def test_a_hub_set_gives_its_train_split(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = {}

    def load(name, **options):
        asked.update(options, name=name)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    said: list[str] = []
    rows = read_rows("nobody/rows", said.append, max_rows=1)
    assert values(rows) == ROWS[:1]
    assert str(rows[0].origin) == "nobody/rows, line 1"
    assert asked == {"name": "nobody/rows", "split": "train", "streaming": True}
    assert "hub" in said[0]


@pytest.mark.parametrize("max_rows", [None, 1500])
def test_the_rows_of_a_hub_set_are_the_same_kept_or_streamed(max_rows, monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"number": number, "parts": [{"text": str(number)}]} for number in range(2500)]
    file = written(tmp_path, "rows.jsonl", jsonl(rows))
    load = datasets.load_dataset

    def load_local(name: str, **options: object) -> object:
        return load("json", data_files=file, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", load_local)
    assert values(read_rows("nobody/rows", silent, max_rows)) == rows[:max_rows]


def test_without_a_network_the_first_rows_come_from_what_was_kept_before(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(name: str, streaming: bool, **_: object) -> object:
        if streaming:
            raise ConnectionError("Couldn't reach it")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert values(read_rows("nobody/rows", silent, max_rows=1)) == ROWS[:1]


def hub_failures():
    datasets = pytest.importorskip("datasets")
    from huggingface_hub.errors import HfHubHTTPError

    http_error = HfHubHTTPError.__bases__[0]
    return [
        (ConnectionError("Couldn't reach it"), NetworkError, "network"),
        (http_error("read timed out"), NetworkError, "network"),
        (datasets.exceptions.DatasetNotFoundError("no such set"), NotFound, "hf auth login"),
        (datasets.exceptions.DataFilesNotFoundError("none"), DataError, "local file"),
        (ValueError('Unknown split "train". Should be one of [test]'), DataError, "Download the file"),
        (RuntimeError("Dataset scripts are no longer supported"), DataError, "Download the file"),
    ]


@pytest.mark.parametrize("index", range(6))
def test_each_failure_of_the_hub_is_told_with_its_mend(index, monkeypatch):
    datasets = pytest.importorskip("datasets")
    failure, expected, mend = hub_failures()[index]

    def load(*_: object, **__: object) -> None:
        raise failure

    def ask(*_: object) -> None:
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", ask)
    with pytest.raises(LuthierError) as caught:
        read_rows("nobody/rows", silent)
    assert type(caught.value) is expected
    assert mend in caught.value.mend
    assert caught.value.file == "nobody/rows"


@pytest.fixture
def on_the_hub(monkeypatch, tmp_path):
    """A set of two configurations, of which one has two splits; what the library is asked of the hub it reads here."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "nobody-parts"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: train, path: train.jsonl}\n"
        "  - {split: test, path: test.jsonl}\n- config_name: socratic\n  data_files:\n"
        "  - {split: test, path: other.jsonl}\n---\n"
    )
    for name in ("train", "test", "other"):
        (folder / f"{name}.jsonl").write_text(jsonl([{"prompt": name, "completion": "x"}]))
    for called in ("load_dataset", "get_dataset_config_names", "get_dataset_split_names"):
        monkeypatch.setattr(datasets, called, of_folder(getattr(datasets, called), str(folder)))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return folder


def of_folder(function, folder):
    return lambda name, *rest, **options: function(folder, *rest, **options)


@pytest.mark.parametrize(
    ("name", "first"),
    [("nobody/parts:main", "train"), ("nobody/parts:main:test", "test"), ("nobody/parts:socratic:test", "other")],
)
@pytest.mark.parametrize("max_rows", [None, 1])
def test_a_hub_name_chooses_the_configuration_and_the_split(name, first, max_rows, on_the_hub):
    said: list[str] = []
    rows = read_rows(name, said.append, max_rows)
    assert values(rows) == [{"prompt": first, "completion": "x"}]
    assert str(rows[0].origin) == f"{name}, line 1"
    configuration, split = [*name.split(":")[1:], "train"][:2]
    assert f"the split {split!r} of the configuration {configuration!r}" in said[0]


@pytest.mark.parametrize(
    ("name", "found", "mend"),
    [
        ("nobody/parts", "several configurations, and the name chooses none: main, socratic", "nobody/parts:main"),
        ("nobody/parts::test", "several configurations", "nobody/parts:main:test"),
        ("nobody/parts:mian", "no configuration 'mian', but main, socratic", "nobody/parts:main"),
        ("nobody/parts:socratic", "no split 'train', but 'test'", "nobody/parts:socratic:test"),
        ("nobody/parts:main:dev", "no split 'dev', but 'train', 'test'", "nobody/parts:main"),
    ],
)
@pytest.mark.parametrize("max_rows", [None, 1])
def test_a_part_that_the_set_has_not_is_told_with_those_that_it_has(name, found, mend, max_rows, on_the_hub):
    with pytest.raises(DataError) as caught:
        read_rows(name, silent, max_rows)
    assert found in caught.value.found
    assert caught.value.mend.endswith(f"such as {mend}.")
    assert caught.value.file == name
