"""Whether the code in an answer passes tests."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from luthier.evaluation.grading.contract import Grade, Item, ProcessGrader, Sample
from luthier.evaluation.grading.limited import Limits, run_limited
from luthier.evaluation.grading.templates import Missing, Template, filled

_FENCED = re.compile(r"```(?:[\w+-]*)\n(.*?)(?:```|\Z)", re.DOTALL)

_PROGRAM = """
def main(given, report):
    names = {"__name__": "answer"}
    exec(compile(given["code"], "answer", "exec"), names)
    for number, test in enumerate(given["tests"]):
        try:
            exec(compile(test, f"test {number + 1}", "exec"), dict(names))
        except BaseException as error:
            report({"failed": f"test {number + 1}: {type(error).__name__}: {error}"[:300]})
        else:
            report({"passed": number})
"""


def code_in(text: str) -> str:
    """The code of an answer: its last fenced block, or all of it."""
    blocks = _FENCED.findall(text)
    return blocks[-1] if blocks else text


class Code(ProcessGrader):
    """The share of tests that the answer's Python passes; each test is Python that raises where the code is wrong."""

    kind: Literal["code"] = Field("code", alias="type")
    tests: tuple[Template, ...] = Field(min_length=1, description="Such as assert add(1, 2) == 3, or {{ item.tests }}.")
    limits: Limits = Field(default_factory=Limits, description="What the code may use.")

    def grade(self, sample: Sample, item: Item) -> Grade:
        """See the class. Code that ends the process or takes too long fails the tests that it has not come to."""
        try:
            tests = [filled(test, sample, item) for test in self.tests]
        except Missing as missing:
            return Grade(None, str(missing))
        ended = run_limited(_PROGRAM, {"code": code_in(sample.text), "tests": tests}, self.limits)
        passed = {said["passed"] for said in ended.said if "passed" in said}
        return Grade.of(len(passed) / len(tests))
