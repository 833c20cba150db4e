"""Fine-tuning methods: one file each, and their list."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Discriminator, Tag

from luthier.methods.adapter import AdapterMethod
from luthier.methods.attention_fusion import AttentionFusion
from luthier.methods.bitfit import BitFit
from luthier.methods.contract import ADAPTER, Attachment, Group, Kin, Method, StepDone, Traits
from luthier.methods.full import Full
from luthier.methods.ladder import Ladder
from luthier.methods.ln_tuning import LNTuning
from luthier.methods.lora import LoRA
from luthier.methods.rows import Rows
from luthier.methods.top_layers import TopLayers

METHODS: tuple[type[Method], ...] = (LoRA, Full, AttentionFusion, Ladder, BitFit, LNTuning, Rows, TopLayers)


def kind_of(method: type[Method]) -> str:
    """What a recipe calls a method."""
    return str(method.model_fields["kind"].default)


def _kind(value: object) -> str:
    """The `kind` of a method as a recipe writes it; lora where it is left out."""
    if isinstance(value, dict):
        return str(value.get("kind", "lora"))
    return value.kind if isinstance(value, Method) else "lora"


if TYPE_CHECKING:
    AnyMethod = Method
else:  # one of the list, told apart by its kind
    AnyMethod = Annotated[
        Union[tuple(Annotated[method, Tag(kind_of(method))] for method in METHODS)],  # noqa: UP007 — no fixed list
        Discriminator(_kind),
    ]

__all__ = [
    "ADAPTER",
    "METHODS",
    "AdapterMethod",
    "AnyMethod",
    "Attachment",
    "AttentionFusion",
    "BitFit",
    "Full",
    "Group",
    "Kin",
    "LNTuning",
    "Ladder",
    "LoRA",
    "Method",
    "Rows",
    "StepDone",
    "TopLayers",
    "Traits",
    "kind_of",
]
