"""One check of many answers, each within a time of its own: patterns, which some texts hold up for longer than anybody waits.

A backtracking match can take time exponential in the text, and cannot be stopped within this process. So the answers are checked
in one limited process (`limited.py`), where an alarm ends each check that takes too long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.evaluation.grading.contract import Grade
from luthier.evaluation.grading.limited import Limits, run_limited

SECONDS = 1.0
"""Most seconds that the check of one answer takes."""
_START_SECONDS = 30.0  # to start Python and import a library

_PROGRAM = """
import signal

class Late(BaseException):
    pass

def late(number, frame):
    raise Late

{check}

def main(given, report):
    check = checking(given["given"])
    signal.signal(signal.SIGALRM, late)
    for value in given["values"]:
        verdict = None
        try:
            signal.setitimer(signal.ITIMER_REAL, given["seconds"])
            verdict = bool(check(value))
            signal.setitimer(signal.ITIMER_REAL, 0)
        except (Late, RecursionError):
            signal.setitimer(signal.ITIMER_REAL, 0)
        report(verdict)
"""


def grades_of_each(check: str, given: Any, values: Sequence[Any], what: str) -> list[Grade]:
    """1 for each value that passes a check, else 0; no score where the check took longer than `SECONDS`.

    Args:
        check: Python that defines `checking(given)`, which gives a function from a value to whether it passes.
        given, values: as JSON holds them.
        what: is checked, for the words of a fault.
    """
    if not values:
        return []
    asked = {"given": given, "values": list(values), "seconds": SECONDS}
    seconds = min(600.0, _START_SECONDS + SECONDS * len(values))
    ended = run_limited(_PROGRAM.format(check=check), asked, Limits(seconds=seconds))
    said = [*ended.said, *[None] * (len(values) - len(ended.said))]
    fault = Grade(None, f"{what} took more than {SECONDS:g} s")
    return [fault if verdict is None else Grade.of(verdict) for verdict in said]
