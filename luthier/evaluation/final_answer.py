"""Whether an answer comes to the right end, whatever leads there: of rows with a rationale, what each text marks as its answer.

The end of a text is what `luthier.data.formats.rationale.final_answer` finds: after its last ####, in its last \\boxed{}, or after
its last "answer is"; a single line that marks nothing is its own end. Numbers are equal as numbers, with or without what they
count; for all else case does not matter, nor do brackets and signs around it: (B), b and "B." are one.
"""

from __future__ import annotations

from fractions import Fraction

from luthier.data.formats.rationale import final_answer
from luthier.evaluation.grading.number import numbers_in

FINAL_ANSWER = "final-answer"


def same_final_answer(answer: str, reference: str) -> float | None:
    """1 if both texts come to the same, else 0; None for a reference of several lines that marks no answer."""
    wanted = _end(reference)
    if wanted is None:
        return None
    given = _end(answer)
    if given is None:
        return 0.0
    number = _whole_number(wanted)
    if number is not None:
        return float(numbers_in(given)[:1] == [number])
    return float(_bare(given) == _bare(wanted))


def marks_answer(text: str) -> bool:
    """Whether a text reasons and marks what it comes to: by a last line that begins with ####, or by \\boxed{}."""
    lines = text.strip().splitlines()
    return final_answer(text) is not None and ((len(lines) > 1 and lines[-1].startswith("####")) or r"\boxed{" in text)


def _end(text: str) -> str | None:
    marked = final_answer(text)
    if marked is not None:
        return marked
    alone = text.strip()
    return alone if alone and "\n" not in alone else None


def _whole_number(text: str) -> Fraction | None:
    """The number that a text is, and nothing else."""
    found = numbers_in(text)
    return found[0] if len(found) == 1 and not any(letter.isalpha() for letter in text) else None


def _bare(text: str) -> str:
    return text.strip().strip("()[]{}.,:;!\"'`*$ ").casefold()
