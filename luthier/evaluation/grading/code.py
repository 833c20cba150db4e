"""Whether the code in an answer passes tests."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Literal

from pydantic import Field

from luthier.evaluation.grading.contract import Grade, Item, ProcessGrader, Sample
from luthier.evaluation.grading.limited import Limits, run_limited
from luthier.evaluation.grading.templates import Missing, Template, filled

_FENCED = re.compile(r"```(?:[\w+-]*)\n(.*?)(?:```|\Z)", re.DOTALL)

# The answer runs on a stack of its own, from which `report` cannot be reached, and after all that judges it is bound.
_PROGRAM = """
import _thread

def attempted(code, test):
    run, make, wrong = exec, compile, BaseException
    ended, passed = _thread.allocate_lock(), []

    def attempt():
        try:
            names = {"__name__": "answer"}
            run(make(code, "answer", "exec"), names)
            run(make(test, "test", "exec"), names)
            passed.append(True)
        except wrong:
            pass
        finally:
            ended.release()

    ended.acquire()
    _thread.start_new_thread(attempt, ())
    ended.acquire()
    return passed == [True]

def main(given, report):
    if attempted(given["code"], given["test"]):
        report("passed")
"""


def code_in(text: str) -> str:
    """The code of an answer: its last fenced block, or all of it."""
    blocks = _FENCED.findall(text)
    return blocks[-1] if blocks else text


class Code(ProcessGrader):
    """The share of tests that the answer's Python passes, as HumanEval counts it (Chen et al. 2021, https://arxiv.org/abs/2107.03374).

    Each test is Python that raises where the code is wrong.
    Each test has a process of its own, in which the answer runs anew.
    """

    kind: Literal["code"] = Field("code", alias="type")
    code: Template = Field(
        "{{ sample.output_text }}",
        description="What is run before each test; {{ sample.output_text }} stands for the answer's last fenced block, or all of it. "
        "{{ item.prompt }}{{ sample.output_text }} runs a completion after what it completes.",
    )
    tests: tuple[Template, ...] = Field(min_length=1, description="Such as assert add(1, 2) == 3, or {{ item.tests }}.")
    limits: Limits = Field(
        default_factory=Limits, description="What the code may use; the seconds are for all tests together."
    )

    def grade(self, sample: Sample, item: Item) -> Grade:
        """See the class. Code that ends the process or takes too long fails the tests that it has not come to."""
        try:
            tests = [filled(test, sample, item) for test in self.tests]
            code = filled(self.code, replace(sample, text=code_in(sample.text)), item)
        except Missing as missing:
            return Grade(None, str(missing))
        began, passed = time.monotonic(), 0
        for test in tests:
            left = self.limits.seconds - (time.monotonic() - began)
            if left <= 0:
                break
            limits = self.limits.model_copy(update={"seconds": left})
            passed += run_limited(_PROGRAM, {"code": code, "test": test}, limits).said == ("passed",)
        return Grade.of(passed / len(tests))
