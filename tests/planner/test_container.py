"""What a container may still take is read as Linux says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.planner.container import container_room


def group(folder: Path, **files: str) -> None:
    """A control group with these files; `__` in a name stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_the_nearest_bound_of_a_group_and_those_around_it_counts(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/one/two\n")
    root = tmp_path / "fs"
    group(root / "one" / "two", memory__max="max", memory__current="100")
    group(root / "one", memory__max="5000", memory__current="1500", memory__stat="anon 1\ninactive_file 400\nfile 900")
    group(root, memory__max="9000", memory__current="2000")
    assert container_room(tmp_path / "cgroup", root) == 5000 - 1500 + 400


def test_version_1_is_read_too_and_its_largest_number_is_no_bound(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("4:cpu,cpuacct:/x\n7:memory:/x\n")
    root = tmp_path / "fs"
    usage = {"memory__usage_in_bytes": "300", "memory__stat": "total_inactive_file 50"}
    group(root / "memory" / "x", memory__limit_in_bytes=str(2**63 - 4096), **usage)
    assert container_room(tmp_path / "cgroup", root) is None
    group(root / "memory" / "x", memory__limit_in_bytes="1000", **usage)
    assert container_room(tmp_path / "cgroup", root) == 1000 - 300 + 50


@pytest.mark.parametrize("text", ["0::/elsewhere\n", ""])
def test_in_a_container_whose_path_is_not_there_its_own_root_counts(text: str, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(text)
    group(tmp_path / "fs", memory__max="800", memory__current="900")
    assert container_room(tmp_path / "cgroup", tmp_path / "fs") == (0 if text else None)


def test_where_there_are_no_groups_there_is_no_bound(tmp_path: Path) -> None:
    assert container_room(tmp_path / "none", tmp_path) is None
