"""Contestants of the benches share the cores with other tests."""

from __future__ import annotations

import pytest

from bench import processes


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processes keep this one's limit of threads: two of torch's own number would wait for each other."""
    monkeypatch.setattr(processes, "_THREAD_LIMITS", ())
