"""Mapped files: what was read of them leaves the memory, and stays what it was."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import pytest

from luthier.store.mapped import forget_mapped

SIZE = 32 << 20


def held_of_files() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssFile:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the call is Linux's")
def test_pages_of_a_mapped_file_are_let_go_of_and_read_again(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    content = os.urandom(1 << 16) * (SIZE >> 16)
    (tmp_path / "file").write_bytes(content)
    os.sync()  # only pages that are on the disk can go
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        assert mapped[:] == content
        before = held_of_files()
        forget_mapped([tmp_path / "other"])
        assert held_of_files() > before - SIZE // 2
        forget_mapped([tmp_path / "link"])
        assert held_of_files() < before - SIZE // 2
        assert mapped[:] == content
        mapped[:4] = b"mine"
        forget_mapped([tmp_path / "link"])
        assert mapped[:4] == b"mine"


def test_elsewhere_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    forget_mapped([tmp_path])
