"""Fine-tuning methods: one file each, and their list."""

from typing import Annotated

from pydantic import Discriminator, Tag

from luthier.methods.contract import ADAPTER, Attachment, Group, Method, Traits
from luthier.methods.full import Full
from luthier.methods.lora import LoRA

METHODS: tuple[type[Method], ...] = (LoRA, Full)


def _kind(value: object) -> str:
    """The `kind` of a method as a recipe writes it; lora where it is left out."""
    if isinstance(value, dict):
        return str(value.get("kind", "lora"))
    return str(value.kind) if isinstance(value, LoRA | Full) else "lora"


AnyMethod = Annotated[Annotated[LoRA, Tag("lora")] | Annotated[Full, Tag("full")], Discriminator(_kind)]

__all__ = ["ADAPTER", "METHODS", "AnyMethod", "Attachment", "Full", "Group", "LoRA", "Method", "Traits"]
