"""The metrics of answers that a run measured on its way: which there are, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PREFIX = "validation_"
_OTHERS = ("validation_loss", "validation_reward", "validation_answer_tokens")


def is_free(name: str) -> bool:
    """Whether a metric of answers may be called so: the other columns of held-out rows may not."""
    return not f"{PREFIX}{name}".startswith(_OTHERS)


def answer_columns(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of metrics.jsonl that hold them, in the order in which they come."""
    names = dict.fromkeys(name for row in metrics for name in row if name.startswith(PREFIX))
    return [name for name in names if not name.startswith(_OTHERS)]


def answer_lines(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """How each went, a sentence each."""
    lines = []
    for name in answer_columns(metrics):
        pairs = [(row["step"], row[name]) for row in metrics if name in row]
        step, best = max(pairs, key=lambda pair: pair[1])
        lines.append(
            f"Answers to held-out rows, {name.removeprefix(PREFIX)}: {pairs[-1][1]:.3f} at the end; "
            f"highest {best:.3f} after step {step}."
        )
    return lines
