"""Sets of a few rows that count as large, in a cache of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from token_sets import small_limits


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the token sets; 20 rows are a large set."""
    return small_limits(tmp_path / "home", monkeypatch)
