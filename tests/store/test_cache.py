"""The cache lists what it holds, and deletes what it is told to."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from luthier.errors import NotFound
from luthier.store.cache import cache_root, clear, list_entries, mark_used
from luthier.store.files import write_folder, write_text


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder(tmp_path / "models" / "small", lambda folder: write_text(folder / "a" / "weights", "x" * 1000))
    write_text(tmp_path / "downloads" / "small.whl", "y" * 50)
    write_text(tmp_path / "fingerprints.json", "{}")
    (tmp_path / "models" / ".small.lock").touch()
    dead = tmp_path / "models" / ".big.000000-1-1.abcdef.new.partial"
    dead.mkdir()
    os.utime(dead, (0, 0))
    return tmp_path


def test_entries_have_kind_name_size_and_the_time_of_their_last_use(root: Path) -> None:
    before = datetime.now(UTC).timestamp() - 1
    entries = {f"{entry.kind}/{entry.name}": entry for entry in list_entries(root)}
    assert set(entries) == {
        "models/small",
        "downloads/small.whl",
        "index/fingerprints.json",
        "leftover/.big.000000-1-1.abcdef.new.partial",
    }
    manifest = root / "models" / "small" / "manifest.json"
    assert entries["models/small"].bytes == 1000 + manifest.stat().st_size
    assert entries["downloads/small.whl"].bytes == 50
    os.utime(root / "models" / "small", (0, 0))
    mark_used(root / "models" / "small")
    (model,) = [entry for entry in list_entries(root) if entry.kind == "models"]
    assert model.last_used.timestamp() >= before


def test_named_entries_are_deleted_and_nothing_else(root: Path) -> None:
    assert [entry.name for entry in clear(root, ["models/small", "small.whl"])] == ["small", "small.whl"]
    assert [entry.kind for entry in list_entries(root)] == ["index", "leftover"]


def test_without_names_all_is_deleted(root: Path) -> None:
    clear(root)
    assert list_entries(root) == []


def test_an_unknown_name_is_refused_with_a_near_one_before_anything_is_deleted(root: Path) -> None:
    with pytest.raises(NotFound) as caught:
        clear(root, ["small", "smal"])
    assert "small" in caught.value.mend
    assert len(list_entries(root)) == 4


def test_what_a_link_points_to_is_not_deleted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "mine").touch()
    (root / "models" / "linked").symlink_to(elsewhere)
    clear(root, ["linked"])
    assert (elsewhere / "mine").exists()
    assert not (root / "models" / "linked").is_symlink()


def test_there_may_be_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list_entries(tmp_path / "none") == []
    assert clear(tmp_path / "none") == []
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_root() == tmp_path / ".cache" / "luthier"
