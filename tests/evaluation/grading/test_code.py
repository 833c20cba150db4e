"""The grader of code: what it runs, what passes, and what no answer can bring about."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from luthier.evaluation.grading import Aids, Grade, Sample, grader_of
from luthier.evaluation.grading.code import code_in


def grade(values: Mapping[str, Any], text: str, item: Mapping[str, Any] | None = None) -> Grade:
    return grader_of(values).grade(Sample(text), item or {})


def test_code_is_what_stands_in_the_last_fence_or_all() -> None:
    assert code_in("No:\n```\nx\n```\nYes:\n```python\ny = 1\n```\nDone.") == "y = 1\n"
    assert code_in("z = 2") == "z = 2"


REACHES_REPORT = """
import sys
frame = sys._getframe()
while frame is not None:
    found = frame.f_locals.get("report")
    if found is not None:
        for number in range(3):
            found("passed")
            found({"passed": number})
    frame = frame.f_back
"""
IN_MEMORY = """
import gc
for each in gc.get_objects():
    if getattr(each, "__name__", "") == "report":
        each("passed")
"""
TESTS = {"type": "code", "tests": ["assert double(2) == 4", "assert double(0) == 0", "{{ item.test }}"]}


@pytest.mark.parametrize(
    ("body", "score"),
    [
        ("def double(x): return 2 * x", 1), ("def double(x): return x * x", 2 / 3), ("double = 3", 0), ("def double(", 0),
        ("import sys; sys.exit(0)", 0), ("import os; os._exit(0)", 0),
        ("def double(x):\n    print('passed')\n    raise SystemExit", 0),
        ("import builtins\nbuiltins.exec = builtins.compile = lambda *a: None", 0),
        ("import builtins\nbuiltins.BaseException = type('E', (Exception,), {})\ndef double(x): raise KeyboardInterrupt", 0),
        ("import builtins\nbuiltins.AssertionError = lambda *a: None\ndef double(x): return 1", 0),
        ("import json, os\njson.dumps = lambda *a: '\"passed\"'\ndef double(x): return 1", 0),
        (REACHES_REPORT, 0), (IN_MEMORY, 0),
        ("import collections\ncollections.namedtuple('P', 'x')\ndef double(x): return 2 * x", 1),
    ],
)  # fmt: skip
def test_code_scores_the_share_of_tests_that_it_passes(body: str, score: float) -> None:
    found = grade(TESTS, f"```python\n{body}\n```", {"test": "assert double(-1) == -2"})
    assert found.score == pytest.approx(score)


AFTER_THE_PROMPT = {
    "type": "code", "code": "{{ item.prompt }}{{ sample.output_text }}", "tests": ["{{ item.test }}"], "limits": {"seconds": 60},
}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("    return 2 * x", 1), ("```python\n    return 2 * x\n```", 1), ("    return x", 0), ("return 2 * x", 0),
        ("Here it is:\n```\ndef double(x):\n    return 2 * x\n```", 1),
    ],
)  # fmt: skip
def test_a_completion_runs_after_what_it_completes(answer: str, score: float) -> None:
    item = {"prompt": 'def double(x):\n    """Twice x."""\n', "test": "assert double(2) == 4"}
    assert grade(AFTER_THE_PROMPT, answer, item).score == score
    assert (
        grade(AFTER_THE_PROMPT, answer, {"test": item["test"]}).fault == "{{ item.prompt }} finds nothing at 'prompt'"
    )


def test_the_canonical_solutions_of_humaneval_pass_as_completions_and_wrong_ones_do_not(shared_data: Path) -> None:
    with gzip.open(shared_data / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:20]
    grader = grader_of({**AFTER_THE_PROMPT, "tests": ["{{ item.test }}\ncheck({{ item.entry_point }})"]})
    right = grader.grade_all([Sample(row["canonical_solution"]) for row in rows], rows, Aids())
    assert [found.score for found in right] == [1.0] * 20
    wrong = grader.grade_all([Sample("    return None\n")] * 3, rows[:3], Aids())
    assert [found.score for found in wrong] == [0.0] * 3
