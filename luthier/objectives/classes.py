"""What objectives over classes share: the classes, settled by the rows or given, and finding a label among them."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Self

from pydantic import Field, field_validator

from luthier.errors import DataError
from luthier.objectives.contract import Objective
from luthier.types import Origin


class OverClasses(Objective):
    """An objective whose head has one logit for each class."""

    writes: ClassVar[bool] = False

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

    @property
    def settled_classes(self) -> tuple[str, ...]:
        """The classes, once the training rows have settled them."""
        assert self.classes is not None, "the classes are settled by the training rows"
        return self.classes

    def number_of(self, label: str | None, origin: Origin, field: str) -> int:
        """Which class a label is. Raises DataError, at its line, for a label that is no class."""
        if label not in self.settled_classes:
            raise DataError(
                f"The label {label!r} is none of the classes {', '.join(self.settled_classes)}.",
                "Add it to objective.classes, or leave this row out.",
                file=origin.file,
                line=origin.line,
                field=field,
            )
        return self.settled_classes.index(label)
