"""A score from Python that the user wrote: `metric(row, answer)`, for all rows in one process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from luthier.evaluation.grading.contract import Aids, Grade, Grader, Item, Sample
from luthier.evaluation.grading.limited import Ended, Limits, run_limited
from luthier.evaluation.grading.python_source import checked_source

_PROGRAM = """
def main(given, report):
    names = {"__name__": "metric"}
    exec(compile(given["source"], "metric", "exec"), names)
    for number, (row, answer) in enumerate(given["rows"]):
        try:
            score = names["metric"](row, answer)
            score = score + 0 if isinstance(score, (bool, int, float)) else repr(score)[:200]
            report({"row": number, "score": score})
        except Exception as error:
            report({"row": number, "fault": f"{type(error).__name__}: {error}"[:300]})
"""


def _defines_metric(source: str) -> str:
    return checked_source(source, "metric", "metric(row, answer)")


class OwnMetric(Grader):
    """The number that `metric(row, answer)` gives: row is the row's columns as a dictionary, answer the text."""

    kind: Literal["metric"] = Field("metric", alias="type")
    source: Annotated[str, AfterValidator(_defines_metric)] = Field(
        description="Python that defines metric(row, answer)."
    )
    limits: Limits = Field(
        default_factory=lambda: Limits(seconds=300), description="What it may use, for all rows together."
    )

    def grade(self, sample: Sample, item: Item) -> Grade:
        """The grade of one answer."""
        return self.grade_all([sample], [item], Aids())[0]

    def grade_all(self, samples: Sequence[Sample], items: Sequence[Item], aids: Aids) -> list[Grade]:
        """All answers, one after another in one process; those that a process that ended did not come to have no score."""
        rows = [[dict(item), sample.text] for sample, item in zip(samples, items, strict=True)]
        ended = run_limited(_PROGRAM, {"source": self.source, "rows": rows}, self.limits)
        said = {each["row"]: each for each in ended.said}
        return [
            _grade(said[row]) if row in said else Grade(None, self._why(ended), is_unjudged=True)
            for row in range(len(rows))
        ]

    def _why(self, ended: Ended) -> str:
        if ended.how == "time":
            return f"metric took more than {self.limits.seconds:g} s for all rows"
        if ended.how == "memory":
            return f"metric wanted more than {self.limits.memory_mb} MB"
        last = ended.printed.strip().splitlines()
        return f"metric failed: {last[-1] if last else 'it ended without a word'}"


def _grade(said: dict[str, Any]) -> Grade:
    if "fault" in said:
        return Grade(None, f"metric failed: {said['fault']}")
    score = said["score"]
    if isinstance(score, int | float) and math.isfinite(score):
        return Grade.of(score)
    return Grade(None, f"metric gave {score!r}, which is no number")
