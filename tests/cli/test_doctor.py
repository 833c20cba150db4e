"""The doctor's table of versions is that of the packaging, and its judgement follows from it."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from luthier.cli.doctor import PACKAGES, _numbers, _problems, _remarks, _text, examine


def test_the_oldest_versions_are_those_of_the_packaging(repository: Path):
    wanted = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["dependencies"]
    oldest = dict(re.fullmatch(r"([\w-]+)>=([\w.]+)", line).groups() for line in wanted)  # type: ignore[union-attr]
    assert {name: versions[0] for name, versions in PACKAGES.items()} == {name: oldest[name] for name in PACKAGES}


def test_the_tested_versions_are_those_of_the_constraints(repository: Path):
    pinned = dict(
        line.split("==") for line in (repository / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert {name: versions[1] for name, versions in PACKAGES.items()} == {name: pinned[name] for name in PACKAGES}


def test_versions_are_compared_as_numbers():
    assert _numbers("2.13.0+cpu") == (2, 13, 0)
    assert _numbers("2.9") < _numbers("2.13")
    assert _numbers("5.0rc1") == (5, 0)


def test_a_package_that_is_missing_or_old_is_a_problem_and_a_newer_one_a_remark():
    packages = {
        "a": {"installed": None, "oldest": "1", "tested": "2"},
        "b": {"installed": "0.9", "oldest": "1", "tested": "2"},
        "c": {"installed": "3", "oldest": "1", "tested": "2"},
    }
    assert [problem.split()[0] for problem in _problems(packages)] == ["a", "b"]
    plenty = {"memory_available_bytes": 10**11, "disk_free_bytes": 10**11, "cache": {"free_bytes": 10**11}}
    assert _remarks(plenty, packages) == ["c is 3, newer than the tested 2."]
    little = {"memory_available_bytes": 10**9, "disk_free_bytes": 10**9, "cache": {"free_bytes": 10**9}}
    assert len(_remarks(little, {})) == 3


def test_a_torch_that_cannot_be_loaded_is_a_problem_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    report = examine(tmp_path)
    (problem,) = report["problems"]
    assert problem.startswith("torch cannot be loaded")
    assert problem in _text(report)
    assert report["cores"] >= 1
