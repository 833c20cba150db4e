"""Token sets: the same from memory, from columns, from the cache and from several processes; and what faults say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing_disk import FailingAt, Fault, Kind, every_fault
from token_sets import all_of, content, loaded, write_chats

from luthier.data.dataset import Dataset
from luthier.data.facts import facts_of, remade
from luthier.data.gate import check_gate
from luthier.data.sequences import joined, taken
from luthier.data.tokens import sets
from luthier.data.tokens.columns import KeptExamples
from luthier.errors import DataError, GateRefusal
from luthier.store.files import folder_fault
from luthier.types import Example


def names_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize(
    "values", [{}, {"too_long": "truncate", "max_length": 40}, {"too_long": "drop", "max_length": 60}]
)
def test_a_set_is_the_same_from_memory_from_columns_from_the_cache_and_from_two_processes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    file = write_chats(tmp_path / "chats.jsonl", 35)
    found = {
        "columns": loaded(file, cache_gb=0, **values),
        "written": loaded(file, **values),
        "cache": loaded(file, **values),
    }
    if values.get("too_long") != "truncate":  # processes take a while to begin
        found["processes"] = loaded(file, cache_gb=0, processes=2, **values)
    assert len(names_in(cache)) == 1
    assert all(not isinstance(each.train, tuple) for each in found.values())
    with monkeypatch.context() as patch:
        patch.setattr(sets, "ROWS_TO_KEEP", 1000)
        memory = loaded(file, cache_gb=0, **values)
    assert isinstance(memory.train, tuple)
    gates = [check_gate(each) for each in (memory, *found.values())]
    assert all(gate == gates[0] for gate in gates)
    for name, each in found.items():
        assert content(each) == content(memory), name


def test_of_more_rows_than_the_form_is_told_from_all_are_taken_and_that_is_said(tmp_path: Path, cache: Path) -> None:
    file = write_chats(tmp_path / "chats.jsonl", 90)
    dataset = loaded(file, validation="none")
    assert [row.origin.line for row in dataset.train] == list(range(1, 91))
    assert any("from the first 40" in note for note in dataset.notes)
    assert content(loaded(file, validation="none")) == content(dataset)


def test_the_second_time_says_the_same_and_that_it_is_the_second_time(tmp_path: Path, cache: Path) -> None:
    file = write_chats(
        tmp_path / "chats.jsonl",
        30,
        rows={3: {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], "note": 1}},
    )
    first, second = list[str](), list[str]()
    loaded(file, first)
    loaded(file, second)
    assert "there from before" in second[0]
    assert second[1:] == first
    assert any("note" in text for text in first)


def most_held(file: str, **values: Any) -> int:
    """The most bytes that Python and numpy held at once while a set was made and gone through; maps of files do not count."""
    tracemalloc.start()
    try:
        dataset = loaded(file, validation="none", **values)
        assert sum(row.num_tokens for row in dataset.train) > 0
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_kept_set_may_be_larger_than_memory(tmp_path: Path, cache: Path) -> None:
    """What is held grows by less than a tenth of what a set's tokens and texts take that is held in memory."""
    files = [write_chats(tmp_path / f"{count}.jsonl", count) for count in (300, 3000)]
    for file in files:
        loaded(file, cache_gb=0)  # what is made once by the first of all
    in_memory, kept = ([most_held(file, **values) for file in files] for values in ({"cache_gb": 0}, {}))
    assert in_memory[1] - in_memory[0] > 1_000_000
    assert kept[1] - kept[0] < 0.1 * (in_memory[1] - in_memory[0])


def test_another_content_name_form_length_or_objective_is_another_set(tmp_path: Path, cache: Path) -> None:
    file = write_chats(tmp_path / "chats.jsonl", 30)
    before = loaded(file)
    for number, change in enumerate(
        ({"max_length": 400}, {"key": "other"}, {"learn": "all"}, {"max_rows": 25}), start=1
    ):
        loaded(file, **change)
        assert len(names_in(cache)) == 1 + number, change
    text = Path(file).read_text(encoding="utf-8")
    status = os.stat(file)
    Path(file).write_text(text.replace("order 7", "order X"), encoding="utf-8")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # neither size nor time tells
    assert content(loaded(file))["train"] != content(before)["train"]
    assert len(names_in(cache)) == 6
    Path(file).write_text(text, encoding="utf-8")
    assert content(loaded(file)) == content(before)
    assert len(names_in(cache)) == 6


def test_small_sets_and_unknown_objectives_are_not_kept(tmp_path: Path, cache: Path) -> None:
    small = loaded(write_chats(tmp_path / "small.jsonl", 20))
    assert isinstance(small.train, tuple)
    loaded(write_chats(tmp_path / "chats.jsonl", 30), key=None)
    assert not cache.exists() or names_in(cache) == []


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────

NO_ROLE = {"messages": [{"role": "poet", "content": "?"}, {"role": "assistant", "content": "!"}]}
LONG = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "one two " * 300}]}


@pytest.mark.parametrize(
    ("rows", "processes"),
    [({29: NO_ROLE}, 1), ({5: NO_ROLE, 29: NO_ROLE}, 1), ({28: LONG}, 2), ({3: LONG, 27: NO_ROLE}, 1)],
)
def test_a_fault_is_raised_each_time_as_it_is_without_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, rows: dict[int, Any], processes: int
) -> None:
    file = write_chats(tmp_path / "chats.jsonl", 30, rows=rows)
    told = []
    for _ in range(2):
        with pytest.raises(DataError) as raised:
            loaded(file, processes=processes)
        told.append(raised.value.as_json())
    monkeypatch.setattr(sets, "ROWS_TO_KEEP", 1000)
    with pytest.raises(DataError) as raised:
        loaded(file)
    assert told == [raised.value.as_json()] * 2
    assert names_in(cache) == []


def test_a_broken_line_behind_a_row_that_cannot_be_taken_is_told_first(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "chats.jsonl"
    write_chats(file, 30, rows={2: LONG})
    file.write_text(file.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    with pytest.raises(DataError) as raised:
        loaded(str(file))
    assert raised.value.line == 31


# ── the cache ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["once", "full", "crash"])
def test_a_maker_that_fails_or_dies_at_any_write_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, cache: Path, failing_at: FailingAt, kind: Kind
) -> None:
    file = write_chats(tmp_path / "chats.jsonl", 22)
    whole = content(loaded(file, cache_gb=0))

    def check(fault: Fault) -> None:
        said: list[str] = []
        assert content(loaded(file, said)) == whole
        assert not any("not whole" in text for text in said)
        for name in names_in(cache):
            assert folder_fault(cache / name) is None
            for path in sorted((cache / name).iterdir()):
                path.unlink()
            (cache / name).rmdir()

    assert every_fault(kind, failing_at, lambda: assert_same(content(loaded(file)), whole), check) > 10


def assert_same(found: Any, expected: Any) -> None:
    assert found == expected


@pytest.mark.parametrize("name", ["tokens", "targets", "records", "set.json", "manifest.json"])
def test_a_broken_file_is_told_and_the_set_made_anew(tmp_path: Path, cache: Path, name: str) -> None:
    file = write_chats(tmp_path / "chats.jsonl", 30)
    whole = content(loaded(file))
    (kept,) = names_in(cache)
    path = cache / kept / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data) if name != "manifest.json" else b"")
    said: list[str] = []
    assert content(loaded(file, said)) == whole
    assert any("not whole" in text and "made anew" in text for text in said)
    said.clear()
    assert content(loaded(file, said)) == whole
    assert "there from before" in said[0]


def test_the_sets_used_least_recently_go_first(tmp_path: Path, cache: Path) -> None:
    files = [write_chats(tmp_path / f"set{number}.jsonl", 30) for number in range(3)]
    loaded(files[0])
    (first,) = names_in(cache)
    room = 2.5 * sum(path.stat().st_size for path in (cache / first).iterdir()) / 1e9
    for hours, file in ((3, files[0]), (2, files[1])):
        loaded(file, cache_gb=room)
        used = next(path for path in cache.iterdir() if path.name.startswith(Path(file).stem + "-"))
        os.utime(used, (time.time() - 3600 * hours,) * 2)
    loaded(files[0], cache_gb=room)  # used again
    loaded(files[2], cache_gb=room)
    assert [name.partition("-")[0] for name in names_in(cache)] == ["set0", "set2"]


def test_a_set_that_takes_more_than_the_cache_may_is_held_in_memory_and_that_is_said(
    tmp_path: Path, cache: Path
) -> None:
    file = write_chats(tmp_path / "chats.jsonl", 30)
    said: list[str] = []
    dataset = loaded(file, said, cache_gb=1e-6)
    assert any("held in memory" in text and "data.cache_gb" in text for text in said)
    assert names_in(cache) == []
    assert content(dataset) == content(loaded(file, cache_gb=0))


PROGRAM = """
    import sys
    sys.path[:0] = {path!r}
    import pytest
    from pathlib import Path
    from token_sets import loaded, small_limits
    from luthier.data.tokens import cache, sets
    small_limits(Path({home!r}), pytest.MonkeyPatch())
    if {slow!r}:
        import time
        put = cache.disk.write
        def slowly(file, data):
            print("writing", flush=True)
            time.sleep(0.05)
            put(file, data)
        cache.disk.write = slowly
    said = []
    dataset = loaded({file!r}, said)
    print(len(dataset.train), "before" if "from before" in said[0] else "made", flush=True)
"""


def begun(file: str, home: Path, slow: bool) -> subprocess.Popen[str]:
    tests = [str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)]
    program = textwrap.dedent(PROGRAM).format(path=tests, home=str(home), slow=slow, file=file)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def test_a_maker_that_is_killed_leaves_no_set_and_the_next_makes_it(tmp_path: Path, cache: Path) -> None:
    file, home = write_chats(tmp_path / "chats.jsonl", 30), tmp_path / "home"
    process = begun(file, home, slow=True)
    assert process.stdout is not None
    for _ in range(10):
        assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert names_in(cache) == []
    assert any(".partial" in path.name for path in cache.iterdir())
    whole = content(loaded(file, cache_gb=0))
    assert content(loaded(file)) == whole
    assert not any(".partial" in path.name for path in cache.iterdir())
    assert content(loaded(file)) == whole


def test_two_processes_at_once_make_a_set_once(tmp_path: Path, cache: Path) -> None:
    file, home = write_chats(tmp_path / "chats.jsonl", 30), tmp_path / "home"
    first = begun(file, home, slow=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "writing\n"
    second = begun(file, home, slow=False)
    ends = [process.communicate(timeout=300)[0].splitlines()[-1].split() for process in (first, second)]
    assert [end[1] for end in ends] == ["made", "before"]
    assert ends[0][0] == ends[1][0]
    assert len(names_in(cache)) == 1


def test_a_set_stays_readable_while_it_is_deleted(tmp_path: Path, cache: Path) -> None:
    file = write_chats(tmp_path / "chats.jsonl", 30)
    dataset = loaded(file, validation="none")
    assert isinstance(dataset.train, KeptExamples)
    before = content(dataset)
    loaded(write_chats(tmp_path / "other.jsonl", 30), cache_gb=1e-5 * 3)
    assert [name.partition("-")[0] for name in names_in(cache)] == ["other"]
    assert content(dataset) == before


def test_the_gate_refuses_a_kept_set_as_it_does_one_in_memory(tmp_path: Path, cache: Path) -> None:
    silent = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "weight": 0}]}
    file = write_chats(tmp_path / "chats.jsonl", 30, rows={11: silent})
    found = []
    for _ in range(2):
        with pytest.raises(GateRefusal) as refused:
            check_gate(loaded(file, validation="none"))
        found.append((refused.value.found, refused.value.line))
    assert found == [(found[0][0], 12)] * 2


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the library finds whatever set of the hub it is asked for."""
    datasets = pytest.importorskip("datasets")
    file, load = tmp_path / "rows.jsonl", datasets.load_dataset

    def load_local(name: str, **options: Any) -> Any:
        return load("json", data_files=str(file), cache_dir=str(tmp_path / "hub"), **options)

    monkeypatch.setattr(datasets, "load_dataset", load_local)
    return file


def tokens_of(dataset: Dataset) -> list[list[int]]:
    return [example.parts[0].tokens_T.tolist() for example in dataset.train]


def test_a_set_of_the_hub_is_kept_and_found_again_by_its_content(tmp_path: Path, cache: Path, hub: Path) -> None:
    write_chats(hub, 60)
    first, second = list[str](), list[str]()
    made = loaded("nobody/chats", first, validation="none")
    found = loaded("nobody/chats", second, validation="none")
    assert len(names_in(cache)) == 1
    assert isinstance(found.train, KeptExamples)
    assert content(found) == content(made)
    assert tokens_of(found) == tokens_of(loaded(str(hub), validation="none"))
    assert sum("fetching" in text for text in first) == 1
    assert any("there from before" in text for text in second)

    write_chats(hub, 61)
    other = loaded("nobody/chats", validation="none")
    assert len(other.train) == 61
    assert len(names_in(cache)) == 3  # with that of the file itself


def test_of_a_set_of_the_hub_no_more_is_fetched_than_the_rows_wanted(cache: Path, hub: Path) -> None:
    write_chats(hub, 60)
    part = loaded("nobody/chats", validation="none", max_rows=30)
    assert len(part.train) == 30
    assert not cache.exists() or names_in(cache) == []


def test_the_facts_of_rows_that_are_made_anew_are_counted_once_and_are_those_of_the_rows(
    tmp_path: Path, cache: Path
) -> None:
    texts = loaded(write_chats(tmp_path / "chats.jsonl", 30)).train
    made: list[int] = []

    def reversed_tokens(row: Example) -> Example:
        made.append(row.document)
        return replace(row, token_N=row.token_N[::-1].copy(), weight_N=np.where(row.token_N % 2, 1.0, 0.0))

    rows = remade(reversed_tokens, texts)
    assert not isinstance(rows, tuple)
    expected = facts_of(tuple(map(reversed_tokens, texts)))
    made.clear()
    for found in (facts_of(rows), facts_of(rows), facts_of(joined([rows, rows]))[: len(rows)]):
        assert np.array_equal(found, expected)
    assert np.array_equal(facts_of(taken(rows, [3, 1])), expected[[3, 1]])
    assert made == [row.document for row in texts]
    assert all_of(rows) == all_of([reversed_tokens(row) for row in texts])
