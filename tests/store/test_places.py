"""A path as a person writes it is the one that is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.store.places import expanded


def test_a_tilde_is_the_home_folder_and_a_stranger_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/rows.jsonl") == Path("/home/me/rows.jsonl")
    assert expanded(Path("~/a b")) == Path("/home/me/a b")
    assert expanded("~nobody-of-this-name/rows.jsonl") == Path("~nobody-of-this-name/rows.jsonl")
    assert expanded("rows~.jsonl") == Path("rows~.jsonl")
