"""The bench of plans fails where they are further off than they may be."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from bench import planner


def case(tracked: float, process: float | None = None) -> dict[str, Any]:
    """Figures of a plan that is so far off; process None: too small to count."""
    planned = 10**9
    of_process = 10**8 if process is None else planned / (1 + process)
    return {
        "name": "a case",
        "planned_bytes": planned,
        "tracked_bytes": planned / (1 + tracked),
        "process_bytes": of_process,
    }


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        ([case(0.01, 0.07), case(-0.04), case(0.0)], []),
        ([case(0.03), case(0.03), case(0.0)], ["median error of tracked"]),
        ([case(0.0), case(0.0), case(-0.06)], ["worst error of tracked"]),
        ([case(0.0, 0.02), case(0.0, -0.09)], ["worst error of process"]),
    ],
)
def test_a_target_that_is_missed_is_told_and_ends_in_1(
    cases: list[dict[str, Any]], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planner.missed(cases)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))
    left = iter(cases)
    monkeypatch.setattr(planner, "_measured", lambda drawn, folder: next(left))
    options = argparse.Namespace(cases=len(cases), seed=1, results=tmp_path, json=False, jobs=1)
    assert planner.carried_out(planner.bench, options, "planner") == (1 if words else 0)
