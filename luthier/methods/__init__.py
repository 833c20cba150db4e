"""Fine-tuning methods: one file each, and their list."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Discriminator, Tag

from luthier.methods.adapter import AdapterMethod
from luthier.methods.attention_fusion import AttentionFusion
from luthier.methods.contract import ADAPTER, Attachment, Group, Method, StepDone, Traits
from luthier.methods.full import Full
from luthier.methods.ipt import IPT
from luthier.methods.ladder import Ladder
from luthier.methods.lora import LoRA
from luthier.methods.p_tuning import PTuning
from luthier.methods.prefix_tuning import PrefixTuning
from luthier.methods.prompt_tuning import PromptTuning
from luthier.methods.warp import WARP

METHODS: tuple[type[Method], ...] = (
    LoRA,
    Full,
    AttentionFusion,
    Ladder,
    IPT,
    PTuning,
    PrefixTuning,
    PromptTuning,
    WARP,
)


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
    "IPT",
    "METHODS",
    "WARP",
    "AdapterMethod",
    "AnyMethod",
    "Attachment",
    "AttentionFusion",
    "Full",
    "Group",
    "Ladder",
    "LoRA",
    "Method",
    "PTuning",
    "PrefixTuning",
    "PromptTuning",
    "StepDone",
    "Traits",
    "kind_of",
]
