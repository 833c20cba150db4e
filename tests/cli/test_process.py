"""Settings of the process: made only when asked, and told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.cli import process


def test_libraries_are_quiet_unless_the_user_wants_them_loud(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    process.quiet_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


@pytest.mark.skipif(not process.glibc_version(), reason="the C library is not glibc")
def test_kept_memory_is_told_and_big_blocks_come_back_without_new_pages(repository: Path):
    code = """
import resource, sys
from luthier.cli.process import keep_freed_memory
told = []
if sys.argv[1] != "leave":
    assert keep_freed_memory(told.append, saves_memory=sys.argv[1] == "save") and len(told) == 1
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(64 << 20)
    del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(); faults()
print(faults())
"""

    def faults(mode: str) -> int:
        command = [sys.executable, "-c", code, mode]
        return int(subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < faults("leave") / 10
    assert faults("save") > faults("leave") / 2


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "glibc_version", lambda: "")
    told: list[str] = []
    assert process.keep_freed_memory(told.append) is False
    assert told == []


def test_there_is_at_least_one_core():
    assert 1 <= process.usable_cores() <= (os.cpu_count() or 1)
