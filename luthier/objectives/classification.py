"""Classification: tell which of some classes a text, or a pair of texts, belongs to.

loss = − Σ_n log p(class_n | text_n) / N, over the N rows of the optimizer step, with p the softmax over the classes.

The target of a row is an ordinary one: its source is the token that the head reads (the first of an encoder's row, the
last of a decoder's), its token the number of the class, its weight 1.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from luthier.errors import DataError
from luthier.models.heads import ClassHead
from luthier.models.outputs import Outputs
from luthier.objectives.contract import Objective
from luthier.objectives.likelihood import nll_sum
from luthier.types import Example, Gives, Origin, Part, Rendered


class Classification(Objective):
    """Learn to tell classes apart."""

    takes: ClassVar[Gives] = "labels"

    kind: Literal["classification"] = "classification"
    classes: tuple[str, ...] | None = Field(
        None,
        min_length=2,
        description="The classes, in the order of the head's logits; unset: the labels of the training rows, sorted.",
    )

    @field_validator("classes")
    @classmethod
    def _no_class_is_named_twice(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        twice = [name for name, count in Counter(classes or ()).items() if count > 1]
        if twice:
            raise ValueError(f"The class {twice[0]!r} is named twice; name each class once.")
        return classes

    def settled(self, labels: tuple[str, ...]) -> Self:
        """With the classes that the rows have, where none are given."""
        return self if self.classes is not None else self.model_copy(update={"classes": labels})

    def head(self, seed: int) -> ClassHead:
        """A head for the classes."""
        return ClassHead(self._classes, seed)

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """One document with one target. Raises DataError, at its line, for a label that is no class."""
        if rendered.label not in self._classes:
            raise DataError(
                f"The label {rendered.label!r} is none of the classes {', '.join(self._classes)}.",
                "Add it to objective.classes, or leave this row out.",
                file=origin.file,
                line=origin.line,
                field="label",
            )
        length = len(rendered.tokens_T)
        return Example(
            parts=(Part(rendered.tokens_T),),
            source_N=np.array([0 if rendered.pooled == "first" else length - 1], dtype=np.int64),
            token_N=np.array([self._classes.index(rendered.label)], dtype=np.int64),
            weight_N=np.ones(1, dtype=np.float32),
            sample_N=np.zeros(1, dtype=np.int64),
            document=document,
            origin=origin,
            types_P=rendered.types_T,
        )

    def loss_sum(self, outputs: Outputs) -> Tensor:
        """Negative log-likelihood of the classes, summed."""
        return nll_sum(outputs.logprob_N, outputs.targets.weight_N)

    @property
    def _classes(self) -> tuple[str, ...]:
        assert self.classes is not None, "the classes are settled by the training rows"
        return self.classes
