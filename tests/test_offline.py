"""A whole training without a network: nothing asks for one, and nothing misses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment
from tiny_model import write_tiny_model
from tiny_runs import write_rows

# Runs in a process of its own, because an audit hook stays for good. It sees every socket that Python code makes, resolves
# a name for or connects, below the module `socket` and whatever library asks.
SCRIPT = """
import json, sys

attempts = []

def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        attempts.append(f"{event} {arguments!r}")
        raise ConnectionRefusedError(f"there is no network here: {event}")

sys.addaudithook(watch)

import luthier

values = json.loads(sys.argv[1])
run = luthier.train(values, out="run")
evaluation = luthier.evaluate("run", limit=4)
answer = luthier.load("run").generate("Where is order 3, the lamp?", max_new_tokens=4)
again = luthier.train({**values, "method": {"from": "run"}}, out="again")
print(json.dumps({"steps": run.steps + again.steps, "answer": answer, "rows": len(evaluation.answers), "attempts": attempts}))
"""

PROOF = """
import socket

import luthier

def reach(address):
    try:
        socket.create_connection((address, 80), timeout=1)
    except ConnectionRefusedError:
        pass
    else:
        raise SystemExit("the network was reached")

reach("127.0.0.1")
reach("localhost")
try:
    luthier.train({"model": "nobody/no-such-model", "data": {"train": "rows.jsonl"}}, out="never")
except luthier.LuthierError as error:
    print(json.dumps({"kind": type(error).__name__, "attempts": attempts}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a model and rows."""
    folder = tmp_path_factory.mktemp("offline")
    write_tiny_model(folder / "model")
    write_rows(folder / "rows.jsonl", 60)
    return folder


def run_python(script: str, folder: Path) -> dict[str, object]:
    """What a script prints as JSON; HF_HUB_OFFLINE and the like are unset."""
    values = {
        "model": "model",
        "data": {"train": "rows.jsonl", "max_length": 192},
        "training": {"steps": 3, "tokens_per_micro_batch": 192, "workers": 1, "trackers": ["tensorboard"]},
    }
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(values)],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def test_a_whole_training_asks_for_no_network(folder: Path) -> None:
    """Load, check, train, evaluate, generate, and train on from the adapter; every socket would be refused and noted."""
    found = run_python(SCRIPT, folder)
    assert found["attempts"] == []
    assert found["steps"] == 6
    assert found["rows"] == 4
    assert isinstance(found["answer"], str)


def test_the_watch_sees_who_asks_for_a_network(folder: Path) -> None:
    """The proof above would fail if anything tried: here something does."""
    opening = SCRIPT.partition("import luthier")[0]
    found = run_python(opening + PROOF, folder)
    attempts = found["attempts"]
    assert isinstance(attempts, list)
    assert len(attempts) > 2, "the two of the script and those of the hub"
    assert found["kind"] == "NetworkError"
