"""Nothing leaves the machine: a whole run, from rows to answers, with every way to another machine blocked."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

import luthier


class WentOut(Exception):
    """Something asked for a connection or a name."""


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets that cannot connect, send or look up names."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise WentOut(f"{args[1:]}")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.mark.usefixtures("no_network")
def test_training_evaluating_and_asking_open_no_connection(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(WentOut):
        socket.create_connection(("127.0.0.1", 9))
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Where is parcel {i}?", "completion": "On its way."} for i in range(40)]
    Path("rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    recipe = {
        "model": str(tiny_model),
        "data": {"train": "rows.jsonl", "max_length": 64},
        "training": {"steps": 3, "trackers": ["tensorboard"]},
    }
    result = luthier.train(recipe)
    assert result.steps == 3
    assert luthier.evaluate(result.folder, limit=4).num_rows == 4
    assert isinstance(luthier.load(result.folder).generate("Where is parcel 3?", max_new_tokens=4), str)
