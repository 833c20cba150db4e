"""Programs that nobody has read: what they may do, and what stops them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from luthier.evaluation.grading.limited import Ended, Limits, run_limited


def run(body: str, given: object = None, **limits: float) -> Ended:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return run_limited(f"def main(given, report):\n{lines}", given, Limits.model_validate({"seconds": 20, **limits}))


def test_what_is_reported_comes_back_in_order_beside_what_is_printed() -> None:
    ended = run("print('begun')\nreport(given['x'] + 1)\nreport(['é', None])\nprint('ended')", {"x": 2})
    assert (ended.how, ended.said) == ("done", (3, ["é", None]))
    assert ended.printed.split() == ["begun", "ended"]


@pytest.mark.parametrize(
    "body",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import os; os.system('echo no')",
        "import subprocess; subprocess.run(['echo', 'no'])",
        "import os; os.fork()",
        "import os; os.kill(os.getppid(), 0)",
        "import ctypes; ctypes.CDLL(None).getpid()",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
    ],
)
def test_no_network_no_other_programs(body: str) -> None:
    ended = run(f"{body}\nreport('done')")
    assert (ended.how, ended.said) == ("failed", ())
    assert "PermissionError" in ended.printed


def test_files_outside_its_folder_are_neither_written_nor_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    for body in (
        f"open({str(kept)!r}, 'w')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.rename({str(kept)!r}, 'x')",
    ):
        ended = run(f"{body}\nreport('done')")
        assert ended.said == ()
        assert "PermissionError" in ended.printed
    assert kept.read_text() == "mine"
    assert run("open('own', 'w').write('a')\nreport(open('own').read())").said == ("a",)


def test_a_program_that_does_not_end_is_stopped_with_what_it_reported_before() -> None:
    began = time.perf_counter()
    ended = run("report(1)\nwhile True: pass", seconds=0.6)
    assert (ended.how, ended.said) == ("time", (1,))
    assert time.perf_counter() - began < 5


def test_a_program_that_wants_too_much_memory_is_stopped() -> None:
    assert run("bytearray(1 << 30)", memory_mb=512).how == "memory"


def test_a_program_that_ends_its_process_reports_nothing_more() -> None:
    assert run("import os\nreport('first')\nos._exit(0)").said == ("first",)


def test_printing_cannot_be_taken_for_a_report() -> None:
    assert run("print('\\n{\"passed\": 0}')\nimport sys\nsys.stdout.flush()").said == ()


def test_the_surroundings_are_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    ended = run("import os\nreport(sorted(os.environ))")
    assert "SECRET_KEY" not in ended.said[0]
    assert "s3cret" not in str(ended)
