"""Packed files: what was packed comes out, and damage is told with the line reached."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import tracemalloc

import pyarrow
import pytest
from data_files import jsonl, lines, read, silent, values, written
from pyarrow import parquet

from luthier.data.reading import iter_rows, read_rows
from luthier.errors import DataError

ROWS = [{"prompt": "Wie heißt du?", "completion": "Ada"}, {"prompt": "2+2", "completion": "4"}]

PACKED = {
    ".gz": gzip.compress,
    ".bz2": lambda data: bz2.compress(data, 1),  # small blocks: what is cut is lost by the block
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
}

TEXTS = {
    ".jsonl": jsonl(ROWS),
    ".json": f"[{','.join(jsonl(ROWS).splitlines())}]",
    ".csv": "prompt,completion\nWie heißt du?,Ada\n2+2,4\n",
    ".tsv": "prompt\tcompletion\nWie heißt du?\tAda\n2+2\t4\n",
}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("kind", TEXTS)
def test_packed_text_of_every_kind_gives_the_same_rows(kind, packing, tmp_path):
    packed = PACKED[packing](TEXTS[kind].encode())
    assert read(written(tmp_path, f"rows{kind}{packing}", packed)) == (ROWS, "")


@pytest.mark.parametrize("packing", PACKED)
def test_a_packing_that_the_name_does_not_tell_is_told_by_content_and_said(packing, tmp_path):
    packed = PACKED[packing](TEXTS[".jsonl"].encode())
    assert read(written(tmp_path, f"rows{packing}", packed))[0] == ROWS
    rows, said = read(written(tmp_path, "rows.jsonl", packed))
    assert rows == ROWS
    assert "is packed with" in said


def test_a_file_that_only_its_name_says_is_packed_is_read_as_it_is_and_said(tmp_path):
    rows, said = read(written(tmp_path, "rows.jsonl.gz", TEXTS[".jsonl"]))
    assert rows == ROWS
    assert "not packed" in said


def test_packed_conll_and_plain_text_are_read(tmp_path):
    assert read(written(tmp_path, "a.conll.gz", gzip.compress(b"Hi\tO\n")))[0] == [{"tokens": ["Hi"], "tags": ["O"]}]
    assert read(written(tmp_path, "a.txt.gz", gzip.compress(b"Once.")))[0] == [{"text": "Once."}]


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_packed_files_one_after_another_in_one_file_are_all_read(packing, tmp_path):
    once = PACKED[packing](TEXTS[".jsonl"].encode())
    assert read(written(tmp_path, f"a.jsonl{packing}", once + once))[0] == ROWS * 2


def noise(num_rows: int) -> bytes:
    """Rows that pack badly, so that half of the packed file holds about half of the rows."""
    generator = random.Random(0)
    return "".join(f'{{"n": {n}, "x": "{generator.randbytes(50).hex()}"}}\n' for n in range(num_rows)).encode()


@pytest.mark.parametrize("packing", PACKED)
def test_a_cut_file_gives_the_rows_before_the_cut_and_then_names_the_line(packing, tmp_path):
    packed = PACKED[packing](noise(4000))
    path = written(tmp_path, f"a.jsonl{packing}", packed[: len(packed) // 2])
    got: list[int] = []
    with pytest.raises(DataError, match="damaged or cut short") as caught:
        got.extend(row.values["n"] for row in iter_rows(path, silent))
    assert caught.value.file == path
    assert got == list(range(len(got)))
    assert caught.value.line == len(got) + 1
    assert f"up to line {len(got)}" in caught.value.found
    assert "anew" in caught.value.mend
    assert len(got) > 1000


@pytest.mark.parametrize("packing", PACKED)
def test_a_file_damaged_from_its_beginning_is_refused(packing, tmp_path):
    packed = PACKED[packing](noise(1))
    with pytest.raises(DataError, match="no whole line comes out of it"):
        read_rows(written(tmp_path, f"a.jsonl{packing}", packed[: len(packed) // 2]), silent)


def test_flipped_bits_are_told_as_damage(tmp_path):
    packed = bytearray(gzip.compress(noise(100)))
    packed[-6] ^= 1  # of the checksum
    with pytest.raises(DataError, match="gzip, and is damaged"):
        read_rows(written(tmp_path, "a.jsonl.gz", bytes(packed)), silent)


def test_what_is_refused_is_refused_inside_a_packed_file_too(tmp_path):
    with pytest.raises(DataError, match="begins as a pickle"):
        read_rows(written(tmp_path, "a.jsonl.gz", gzip.compress(b"\x80\x04.")), silent)
    with pytest.raises(DataError, match="pickle, or a file that may hold one"):
        read_rows(written(tmp_path, "a.pkl.gz", gzip.compress(b"")), silent)
    with pytest.raises(DataError, match="packed twice"):
        read_rows(written(tmp_path, "a.jsonl.gz", gzip.compress(gzip.compress(b"{}"))), silent)


def test_packed_parquet_is_refused_with_the_mend(tmp_path):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    packed = gzip.compress((tmp_path / "a.parquet").read_bytes())
    with pytest.raises(DataError, match="Parquet file inside gzip") as caught:
        read_rows(written(tmp_path, "a.parquet.gz", packed), silent)
    assert "Unpack" in caught.value.mend


def test_a_packed_file_that_was_utf16_is_both_unpacked_and_decoded(tmp_path):
    rows = read_rows(written(tmp_path, "a.csv.gz", gzip.compress("text,n\nHé,1\n".encode("utf-16"))), silent)
    assert (values(rows), lines(rows)) == ([{"text": "Hé", "n": "1"}], [2])


def test_a_byte_that_is_no_utf8_is_told_with_its_line_inside_a_packed_file(tmp_path):
    with pytest.raises(DataError, match=r"byte 0xE9, the 2\. of its line") as caught:
        read_rows(written(tmp_path, "a.txt.gz", gzip.compress(b"one\ntwo\nt\xe9\n")), silent)
    assert caught.value.line == 3


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.zst", ".csv", ".tsv", ".conll"])
def test_a_file_is_read_with_a_fraction_of_its_size_in_memory(kind, tmp_path):
    text, num_rows = "x" * 400, 10_000
    line = {".jsonl": f'{{"text": "{text}"}}', ".csv": f"{text},1", ".tsv": f"{text}\t1", ".conll": f"{text}\tO\n"}
    content = (line[kind.removesuffix(".zst")] + "\n").encode() * num_rows
    path = written(tmp_path, f"a{kind}", PACKED[".zst"](content) if kind.endswith(".zst") else content)
    num_bytes = len(content)
    del content
    tracemalloc.start()
    num_read = sum(1 for _ in iter_rows(path, silent))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_read == num_rows
    assert peak_bytes < num_bytes / 2
