"""How many of the instructions that a row names the answer keeps to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from luthier.evaluation.grading.contract import Grade, Grader, Item, Sample
from luthier.evaluation.grading.following import Unknown, follows, variants

COLUMNS = ("instruction_id_list", "kwargs")


class Instructions(Grader):
    """The share of a row's instructions that the answer keeps to, or whether it keeps to all.

    The row names them as IFEval does: `instruction_id_list`, and `kwargs` with the arguments of each.
    """

    kind: Literal["instructions"] = Field("instructions", alias="type")
    counts: Literal["each", "all"] = Field(
        "each", description="each: the share kept; all: 1 if every one is kept, else 0."
    )
    loose: bool = Field(False, description="Whether a first or last line and asterisks may be taken away first.")

    def grade(self, sample: Sample, item: Item) -> Grade:
        """See the class."""
        try:
            named = _named(item)
            texts = variants(sample.text) if self.loose else (sample.text,)
            kept = [any(follows(name, given, text) for text in texts) for name, given in named]
        except Unknown as error:
            return Grade(None, str(error))
        parts = {name: float(is_kept) for (name, _), is_kept in zip(named, kept, strict=True)}
        score = float(all(kept)) if self.counts == "all" else sum(kept) / len(kept)
        return Grade(score, parts=parts)


def _named(item: Item) -> list[tuple[str, Mapping[str, Any]]]:
    """The row's instructions, each with its arguments. Raises: Unknown."""
    names, arguments = (item.get(column) for column in COLUMNS)
    if not isinstance(names, list) or not names:
        raise Unknown(f"the row has no list {COLUMNS[0]!r}")
    arguments = [{}] * len(names) if arguments is None else arguments
    if not isinstance(arguments, list) or len(arguments) != len(names):
        raise Unknown(f"the row's {COLUMNS[1]!r} is no list with an entry for each of its {len(names)} instructions")
    if not all(isinstance(given, Mapping) for given in arguments):
        raise Unknown(f"an entry of the row's {COLUMNS[1]!r} is no mapping")
    return [
        (str(name), {key: value for key, value in given.items() if value is not None})
        for name, given in zip(names, arguments, strict=True)
    ]
