"""Rows of bytes on disk: what is put is got, also by the next process, and what is damaged is as if it were not there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from luthier.store.rows import INDEX, ROWS, RowCache


def rows(count: int, seed: int, width: int = 12) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, width), dtype=np.uint8)


def test_what_is_put_is_got_and_the_next_process_finds_it(tmp_path: Path) -> None:
    cache = RowCache(tmp_path / "cache", 12)
    assert cache.get("a") is None
    for number, key in enumerate("abc", start=1):
        cache.put(key, rows(number, number))
    cache.close()
    again = RowCache(tmp_path / "cache", 12)
    assert len(again) == 3
    for number, key in enumerate("abc", start=1):
        found = again.get(key)
        assert found is not None
        assert np.array_equal(found, rows(number, number))
    again.put("d", rows(4, 4))
    found = again.get("d")
    assert found is not None
    assert np.array_equal(found, rows(4, 4))


def test_an_entry_that_is_there_stays(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, 12)
    cache.put("a", rows(2, 1))
    cache.put("a", rows(3, 2))
    found = cache.get("a")
    assert found is not None
    assert np.array_equal(found, rows(2, 1))


@pytest.mark.parametrize("damage", ["bytes", "cut", "half a line"])
def test_what_is_damaged_is_as_if_it_were_not_there_and_can_be_put_again(damage: str, tmp_path: Path) -> None:
    cache = RowCache(tmp_path, 12)
    cache.put("a", rows(2, 1))
    cache.put("b", rows(2, 2))
    cache.close()
    if damage == "bytes":
        data = bytearray((tmp_path / ROWS).read_bytes())
        data[30] ^= 1
        (tmp_path / ROWS).write_bytes(data)
    elif damage == "cut":
        (tmp_path / ROWS).write_bytes((tmp_path / ROWS).read_bytes()[:30])
    else:
        (tmp_path / INDEX).write_text((tmp_path / INDEX).read_text()[:-20])
    again = RowCache(tmp_path, 12)
    first = again.get("a")
    assert first is not None
    assert np.array_equal(first, rows(2, 1))
    assert again.get("b") is None
    again.put("b", rows(2, 2))
    second = again.get("b")
    assert second is not None
    assert np.array_equal(second, rows(2, 2))


def test_threads_may_put_and_get_at_once(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, 12)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cache.put(str(number % 40), rows(1 + number % 40 % 5, number % 40)), range(200)))
    for number in range(40):
        found = cache.get(str(number))
        assert found is not None
        assert np.array_equal(found, rows(1 + number % 5, number))
