"""What tests of rewards share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def reward_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the body of a reward function into a file."""

    def write(body: str, name: str = "wish.py") -> Path:
        file = tmp_path / name
        file.write_text(f"def reward(prompts, answers, rows):\n    {body}\n")
        return file

    return write
