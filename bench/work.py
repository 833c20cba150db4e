"""The work that every contestant does: token ids, labels and the initial adapter, fixed in files before anyone starts.

Only the standard library is imported here: the process that starts the contestants stays small, because on Linux a
child's peak memory never reads lower than what its parent held when it was started.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

NOT_LEARNED = -100
FILE = "work.json"


class Job(Protocol):
    """What a peer must know of any work."""

    @property
    def model(self) -> str:
        """The folder of the base model."""

    @property
    def adapter(self) -> str:
        """The folder of the initial adapter."""

    @property
    def pad_id(self) -> int:
        """The token that pads, if the tokenizer names none."""

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step."""

    @property
    def peak_lr(self) -> float:
        """The highest learning rate."""

    @property
    def clip_norm(self) -> float:
        """The longest gradient."""


@dataclass(frozen=True)
class Linear:
    """A frozen linear layer with a LoRA; the first layer's attention inputs come from frozen tensors alone, so nothing
    needs a gradient there."""

    name: str
    inputs: int
    outputs: int
    needs_input_gradient: bool


@dataclass(frozen=True)
class Shape:
    """What the counting of arithmetic needs to know of the model and its adapter."""

    linears: tuple[Linear, ...]
    rank: int
    layers: int
    attention_width: int
    hidden: int
    vocabulary: int


@dataclass(frozen=True)
class WorkRow:
    """One row: its tokens, and for each the label, which is the token itself where it is learned."""

    input_ids: list[int]
    labels: list[int]

    @property
    def num_learned(self) -> int:
        """Learned tokens."""
        return sum(label != NOT_LEARNED for label in self.labels)


@dataclass(frozen=True)
class Work:
    """A whole run: `rows` in the order of training, `rows_per_step` of them to a step."""

    name: str
    model: str
    adapter: str
    recipe: str
    rows_per_step: int
    peak_lr: float
    clip_norm: float
    pad_id: int
    budget: int
    shape: Shape
    rows: tuple[WorkRow, ...]

    @property
    def steps(self) -> tuple[tuple[WorkRow, ...], ...]:
        """The rows of each step."""
        starts = range(0, len(self.rows), self.rows_per_step)
        return tuple(self.rows[start : start + self.rows_per_step] for start in starts)

    @property
    def real_tokens(self) -> list[int]:
        """Tokens of each step, padding not counted."""
        return [sum(len(row.input_ids) for row in step) for step in self.steps]

    @property
    def padding_factor(self) -> float:
        """Tokens of batches padded to their longest row, over real tokens."""
        padded = sum(len(step) * max(len(row.input_ids) for row in step) for step in self.steps)
        return padded / sum(self.real_tokens)


def write_work(folder: Path, work: Work) -> None:
    """Write the work as JSON into the folder."""
    (folder / FILE).write_text(json.dumps(asdict(work)), "utf-8")


def read_work(folder: Path) -> Work:
    """The work that lies in a folder."""
    values: dict[str, Any] = json.loads((folder / FILE).read_text("utf-8"))
    shape = values.pop("shape")
    linears = tuple(Linear(**linear) for linear in shape.pop("linears"))
    rows = tuple(WorkRow(**row) for row in values.pop("rows"))
    return Work(**values, shape=Shape(linears=linears, **shape), rows=rows)
