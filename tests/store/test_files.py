"""Every write is whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from failing_disk import FailingAt, Fault, Kind, every_fault
from safetensors import SafetensorError

from luthier.errors import DataError, DiskFull, NotFound, ResourceError, UsageError
from luthier.store import disk, files
from luthier.store.files import (
    MANIFEST,
    append_line,
    folder_fault,
    leftovers,
    locked,
    make_folder,
    read_json,
    recover_folders,
    remove_folder,
    reserve_file,
    sha256_file,
    write_bytes,
    write_folder,
    write_json,
    write_text,
)

KINDS: list[Kind] = ["once", "full", "crash"]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def dead_owner() -> str:
    """The tag of a process that has ended."""
    code = "from luthier.store.owners import owner_tag; print(owner_tag())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def without_reserving(*_: int) -> None:
    """A file system that cannot keep room."""
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@pytest.mark.skipif(sys.platform != "linux", reason="room is kept by a call of Linux's")
@pytest.mark.parametrize("can_reserve", [True, False])
@pytest.mark.parametrize("num_bytes", [1, 3 * 2**20 + 5])
def test_a_reserved_file_is_zeros_and_has_its_room_on_the_disk(
    num_bytes: int, can_reserve: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_reserve:
        monkeypatch.setattr(os, "posix_fallocate", without_reserving)
    reserve_file(tmp_path / "room", num_bytes)
    assert (tmp_path / "room").read_bytes() == bytes(num_bytes)
    assert (tmp_path / "room").stat().st_blocks * 512 >= num_bytes, "no hole"


def test_more_than_the_disk_has_free_is_not_even_begun(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"the disk is full \([\d,]+ bytes free, [\d,]+ needed\)"):
        reserve_file(tmp_path / "room", shutil.disk_usage(tmp_path).total + 2**40)
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_on_the_way_leaves_no_file(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(DiskFull):
        reserve_file(tmp_path / "room", 2**20)
    assert names(tmp_path) == []


def test_what_is_written_is_read_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "text", "grün\n")
    write_json(tmp_path / "a" / "value.json", {"x": [1, None, 0.1]})
    assert (tmp_path / "a" / "b" / "text").read_bytes() == "grün\n".encode()
    assert read_json(tmp_path / "a" / "value.json") == {"x": [1, None, 0.1]}
    assert names(tmp_path / "a") == ["b", "value.json"]
    assert names(tmp_path / "a" / "b") == ["text"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_wholly_old_or_wholly_new_wherever_writing_it_fails(
    tmp_path: Path, failing_at: FailingAt, kind: Kind
) -> None:
    path = tmp_path / "file"
    old, new = b"old" * 1000, b"new" * 2000
    path.write_bytes(old)

    def check(fault: Fault) -> None:
        assert path.read_bytes() in (old, new)
        assert path.read_bytes() == new or fault.struck
        if kind == "once":
            assert names(tmp_path) == ["file"]
        path.write_bytes(old)

    assert every_fault(kind, failing_at, lambda: write_bytes(path, new), check) >= 5
    write_bytes(path, new)
    assert names(tmp_path) == ["file"], "the next write removes what dead processes left"


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_file_is_absent_or_whole_wherever_writing_it_fails(
    tmp_path: Path, failing_at: FailingAt, kind: Kind
) -> None:
    path = tmp_path / "deep" / "file"

    def check(fault: Fault) -> None:
        assert not path.exists() or path.read_bytes() == b"new" * 100
        path.unlink(missing_ok=True)

    assert every_fault(kind, failing_at, lambda: write_bytes(path, b"new" * 100), check) >= 5


def test_contents_reach_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for name in ("write", "fsync", "replace"):
        operation = vars(disk)[name]

        def noted(*args: object, name: str = name, operation: object = operation) -> object:
            asked.append(name)
            return operation(*args)  # type: ignore[operator]

        monkeypatch.setattr(disk, name, noted)
    write_bytes(tmp_path / "file", b"data")
    assert asked == ["write", "fsync", "replace", "fsync"]


def test_what_is_flushed_is_the_file_and_the_folder_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    write_bytes(tmp_path / "file", b"data")
    assert flushed == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_its_free_bytes_and_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk, "write", refuse)
    with pytest.raises(DiskFull, match=r"file could not be written.* bytes free, 4 needed") as caught:
        write_bytes(tmp_path / "file", b"data")
    assert "--out" in caught.value.mend
    assert names(tmp_path) == []


def test_a_write_that_the_system_stops_inside_safetensors_is_an_error_in_words(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
import numpy
from safetensors.numpy import save_file
from luthier.errors import ResourceError
from luthier.store.files import write_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_folder(Path(sys.argv[1]), lambda folder: save_file({"x": numpy.zeros(1000)}, folder / "x.safetensors"))
except ResourceError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "folder")], capture_output=True, text=True, check=True
    )
    assert "folder cannot be written: File too large." in result.stdout
    assert names(tmp_path) == []


def test_safetensors_own_wording_of_a_full_disk_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(DiskFull), disk.errors(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), disk.errors(tmp_path):
        raise SafetensorError("Error while deserializing header: invalid JSON")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_disk_that_may_not_be_written_is_a_resource_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk, "open_for_write", refuse)
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        write_bytes(tmp_path / "file", b"data")
    assert not isinstance(caught.value, DiskFull)


def test_a_path_through_a_file_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_text(tmp_path / "file" / "below", "x")


def test_unreadable_json_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"a": 1,\n oops}')
    with pytest.raises(DataError) as caught:
        read_json(tmp_path / "bad.json")
    assert caught.value.line == 2
    with pytest.raises(NotFound):
        read_json(tmp_path / "none.json")


def test_leftovers_of_dead_processes_go_with_the_next_write_and_those_of_the_living_stay(tmp_path: Path) -> None:
    own = tmp_path / files._hidden_sibling(tmp_path / "file", "new").name
    dead = tmp_path / f".file.{dead_owner()}.abcdef.new.partial"
    far = tmp_path / ".file.000000-1-1.abcdef.new.partial"
    far_old = tmp_path / ".file.000000-1-2.abcdef.new.partial"
    other = tmp_path / f".file2.{dead_owner()}.abcdef.new.partial"
    for path in (own, dead, far, far_old, other):
        path.write_text("half")
    os.utime(far_old, (time.time() - 7 * 24 * 3600,) * 2)
    assert leftovers(tmp_path) == sorted([dead, far_old, other])
    write_text(tmp_path / "file", "whole")
    assert names(tmp_path) == sorted([own.name, far.name, other.name, "file"])


# ── lines ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lines_are_added_in_order_and_a_torn_one_is_ended_first(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "one")
    append_line(path, "zwei ü")
    assert path.read_text("utf-8") == "one\nzwei ü\n"
    path.write_text("one\ntor")
    append_line(path, "three")
    assert path.read_text() == "one\ntor\nthree\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_line_leaves_the_lines_before_it_whole(tmp_path: Path, failing_at: FailingAt, kind: Kind) -> None:
    path = tmp_path / "lines"
    path.write_text("one\n")

    def check(fault: Fault) -> None:
        text = path.read_text()
        assert text.startswith("one\n")
        if not fault.struck:
            assert text == "one\ntwo\n"
        elif kind != "crash":
            assert text == "one\n", "what could not be written whole was cut off again"
        path.write_text("one\n")

    assert every_fault(kind, failing_at, lambda: append_line(path, "two"), check) >= 3


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def filler(word: str):  # type: ignore[no-untyped-def]
    def fill(folder: Path) -> None:
        write_text(folder / "a.txt", word)
        write_text(folder / "below" / "b.txt", word * 2)

    return fill


def words(folder: Path) -> tuple[str, str]:
    return (folder / "a.txt").read_text(), (folder / "below" / "b.txt").read_text()


def test_a_folder_has_a_manifest_of_all_its_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", filler("x"))
    listed = json.loads((tmp_path / "folder" / MANIFEST).read_text())["files"]
    assert set(listed) == {"a.txt", "below/b.txt"}
    assert listed["below/b.txt"] == {"bytes": 2, "sha256": sha256_file(tmp_path / "folder" / "below" / "b.txt")}
    assert folder_fault(tmp_path / "folder") is None
    assert names(tmp_path) == ["folder"]


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", filler("old"))
    with pytest.raises(UsageError, match="exists already"):
        write_folder(tmp_path / "folder", filler("new"))
    assert words(tmp_path / "folder") == ("old", "oldold")
    write_folder(tmp_path / "folder", filler("new"), replace=True)
    assert words(tmp_path / "folder") == ("new", "newnew")
    assert names(tmp_path) == ["folder"]


def test_every_fault_of_a_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, filler("word"))
    assert folder_fault(tmp_path / "none") == "it is not there"
    (folder / "a.txt").write_text("wOrd")
    assert "a.txt has other contents" in (folder_fault(folder) or "")
    assert folder_fault(folder, contents=False) is None
    (folder / "a.txt").write_text("words")
    assert folder_fault(folder, contents=False) == "a.txt has 5 bytes instead of 4"
    (folder / "a.txt").unlink()
    assert folder_fault(folder) == "a.txt is missing"
    (folder / MANIFEST).write_text('{"files": {"a.txt"')
    assert "cannot be read" in (folder_fault(folder) or "")
    (folder / MANIFEST).unlink()
    assert "never finished" in (folder_fault(folder) or "")


def test_what_the_filling_raises_comes_out_and_nothing_stays(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        write_text(folder / "a.txt", "x")
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        write_folder(tmp_path / "folder", fill)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_replaced_folder_is_wholly_old_or_wholly_new_wherever_it_fails(
    tmp_path: Path, failing_at: FailingAt, kind: Kind
) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, filler("old"))

    def check(fault: Fault) -> None:
        recover_folders(tmp_path)
        assert folder_fault(folder) is None
        assert words(folder) in (("old", "oldold"), ("new", "newnew"))
        assert words(folder)[0] == "new" or fault.struck
        write_folder(folder, filler("old"), replace=True)
        if kind != "once":
            assert names(tmp_path) == ["folder"], "leftovers are removed by the next write"

    attempt = lambda: write_folder(folder, filler("new"), replace=True)  # noqa: E731
    assert every_fault(kind, failing_at, attempt, check) >= 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_folder_is_absent_or_whole_wherever_it_fails(tmp_path: Path, failing_at: FailingAt, kind: Kind) -> None:
    folder = tmp_path / "deep" / "folder"

    def check(fault: Fault) -> None:
        recover_folders(tmp_path / "deep")
        if folder.exists():
            assert folder_fault(folder) is None
            assert words(folder) == ("new", "newnew")
            remove_folder(folder)
        else:
            assert fault.struck

    assert every_fault(kind, failing_at, lambda: write_folder(folder, filler("new")), check) >= 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_folder_is_whole_or_gone_wherever_deleting_it_fails(
    tmp_path: Path, failing_at: FailingAt, kind: Kind
) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, filler("x"))

    def check(fault: Fault) -> None:
        assert recover_folders(tmp_path) == [], "what was being deleted does not come back"
        assert not folder.exists() or folder_fault(folder) is None
        if not folder.exists():
            write_folder(folder, filler("x"))

    assert every_fault(kind, failing_at, lambda: remove_folder(folder), check) >= 3


def test_a_half_deleted_old_folder_is_faulty(tmp_path: Path, failing_at: FailingAt) -> None:
    write_folder(tmp_path / "folder", filler("x"))
    with failing_at(4, "once") as fault, pytest.raises(DiskFull):  # rename, two flushes of the name, then deletion
        remove_folder(tmp_path / "folder")
    assert fault.struck
    (hidden,) = tmp_path.iterdir()
    assert folder_fault(hidden) == "a.txt is missing"


def test_make_folder_says_whether_it_is_new(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b")
    assert not make_folder(tmp_path / "a" / "b")
    with pytest.raises(UsageError):
        make_folder(tmp_path / "a" / "b", exist_ok=False)


# ── locks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lock_is_held_by_one_at_a_time_and_the_waiting_is_announced(tmp_path: Path) -> None:
    order: list[str] = []
    said: list[str] = []
    held = threading.Event()

    def hold() -> None:
        with locked(tmp_path / "thing"):
            held.set()
            time.sleep(0.2)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with locked(tmp_path / "thing", 10, said.append):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert len(said) == 1
    assert "waiting" in said[0]


def test_a_lock_held_by_another_process_for_too_long_is_an_error_in_words(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from luthier.store.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "thing")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ResourceError, match="busy"), locked(tmp_path / "thing", 0.1):
            pass
        holder.kill()
    with locked(tmp_path / "thing", 5):
        pass  # the lock ended with its process
