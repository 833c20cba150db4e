"""A score from Python that the user wrote: `grade(sample, item)`."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from luthier.evaluation.grading.contract import Grade, Item, ProcessGrader, Sample
from luthier.evaluation.grading.limited import Ended, Limits, run_limited

MOST_BYTES = 256 * 1024

_PROGRAM = """
def main(given, report):
    names = {"__name__": "grader"}
    exec(compile(given["source"], "grader", "exec"), names)
    score = names["grade"](given["sample"], given["item"])
    report(score if isinstance(score, (int, float)) else repr(score)[:200])
"""


def checked_source(source: str, name: str, called: str) -> str:
    """The source. Raises: ValueError, said in words, if it is too long, is no Python, or does not define a name."""
    if len(source.encode()) > MOST_BYTES:
        raise ValueError(f"has more than {MOST_BYTES:,} bytes")
    try:
        code = compile(source, name, "exec")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"is no Python ({error})") from None
    if name not in code.co_names:
        raise ValueError(f"must define {called}")
    return source


def _defines_grade(source: str) -> str:
    return checked_source(source, "grade", "grade(sample, item)")


class PythonSource(ProcessGrader):
    """The number that `grade(sample, item)` gives; both are dictionaries: sample has output_text and output_json, item the row."""

    kind: Literal["python"] = Field("python", alias="type")
    source: Annotated[str, AfterValidator(_defines_grade)] = Field(
        description="Python that defines grade(sample, item)."
    )
    limits: Limits = Field(default_factory=lambda: Limits(seconds=120), description="What it may use.")

    def grade(self, sample: Sample, item: Item) -> Grade:
        """See the class."""
        given = {
            "source": self.source,
            "sample": {"output_text": sample.text, "output_json": sample.json},
            "item": dict(item),
        }
        return _graded(run_limited(_PROGRAM, given, self.limits), self.limits)


def _graded(ended: Ended, limits: Limits) -> Grade:
    if ended.said:
        score = ended.said[-1]
        if isinstance(score, int | float) and math.isfinite(score):
            return Grade.of(score)
        return Grade(None, f"grade gave {score!r}, which is no number")
    if ended.how == "time":
        return Grade(None, f"grade took more than {limits.seconds:g} s")
    if ended.how == "memory":
        return Grade(None, f"grade wanted more than {limits.memory_mb} MB")
    last = ended.printed.strip().splitlines()
    return Grade(None, f"grade failed: {last[-1] if last else 'it ended without a word'}")
