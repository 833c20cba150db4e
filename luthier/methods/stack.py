"""Stack: several methods trained together as one adapter.

The parts are any adapter methods, with settings of their own; what each does is in its own paper. They sit in one model
under one name, train in one run, each at its own default rate in proportion to the recipe's, and are written together.
A place of the model has one part, so two that adapt the same layer, or both put virtual tokens before the document, are
refused; a LoRA of the attention (`targets`) and an adapter after the feed-forward go together.
The mixtures with papers of their own are methods of their own: `mam`, `unipelt`.

Merges: where all its parts do. Deep backward, over 4 bits: as its parts. Identity at the start: where all its parts do.
Trainable numbers: the sum of the parts'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.methods.adapter_files import OwnForm
from luthier.methods.composed import ComposedMethod
from luthier.methods.contract import Kin, Traits

if TYPE_CHECKING:
    from luthier.methods.adapter import AdapterMethod as AnyPart


class Stack(ComposedMethod):
    """Several methods as one adapter."""

    family: ClassVar[Kin] = "additive"
    paper: ClassVar[str] = "none"
    count: ClassVar[str] = "the sum of the parts'"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=False)
    default_lr: ClassVar[float] = 1e-3
    form: ClassVar[OwnForm] = OwnForm("stack")

    kind: Literal["stack"] = "stack"
    parts: tuple[AnyPart, ...] = Field(
        min_length=1, description="The methods, each as a method of its own: kind, and its settings."
    )
