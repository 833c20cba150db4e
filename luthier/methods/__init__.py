"""Fine-tuning methods: one file each, and their list. What other packages add to it: `luthier.recipe.known_methods`."""

import types
from collections.abc import Iterable
from typing import Annotated, Any, Union

from pydantic import Discriminator, Tag

from luthier.methods.adalora import AdaLoRA
from luthier.methods.adamix import AdaMix
from luthier.methods.adapter import AdapterMethod
from luthier.methods.adapter_fusion import AdapterFusion
from luthier.methods.attention_fusion import AttentionFusion
from luthier.methods.bitfit import BitFit
from luthier.methods.boft import BOFT
from luthier.methods.compacter import Compacter
from luthier.methods.contract import ADAPTER, Attachment, Group, Kin, Method, StepDone, Traits
from luthier.methods.dora import DoRA
from luthier.methods.full import Full
from luthier.methods.houlsby import Houlsby
from luthier.methods.ia3 import IA3
from luthier.methods.ipt import IPT
from luthier.methods.krona import KronA
from luthier.methods.krona_b import KronAB
from luthier.methods.ladder import Ladder
from luthier.methods.lets import LeTS
from luthier.methods.ln_tuning import LNTuning
from luthier.methods.loftq import LoftQ
from luthier.methods.loha import LoHa
from luthier.methods.lokr import LoKr
from luthier.methods.lora import LoRA
from luthier.methods.loreft import LoReFT
from luthier.methods.mam import MAM
from luthier.methods.oft import OFT
from luthier.methods.p_tuning import PTuning
from luthier.methods.parallel import Parallel
from luthier.methods.pfeiffer import Pfeiffer
from luthier.methods.pissa import PiSSA
from luthier.methods.prefix_tuning import PrefixTuning
from luthier.methods.prompt_tuning import PromptTuning
from luthier.methods.rows import Rows
from luthier.methods.stack import Stack
from luthier.methods.top_layers import TopLayers
from luthier.methods.unipelt import UniPELT
from luthier.methods.vera import VeRA
from luthier.methods.warp import WARP

METHODS: tuple[type[Method], ...] = (
    LoRA,
    AdaLoRA,
    DoRA,
    PiSSA,
    LoftQ,
    VeRA,
    LoHa,
    LoKr,
    KronA,
    KronAB,
    OFT,
    BOFT,
    IA3,
    BitFit,
    LNTuning,
    Rows,
    TopLayers,
    Full,
    Houlsby,
    Pfeiffer,
    Parallel,
    Compacter,
    AdaMix,
    AdapterFusion,
    PromptTuning,
    PTuning,
    PrefixTuning,
    IPT,
    WARP,
    AttentionFusion,
    Ladder,
    LoReFT,
    MAM,
    UniPELT,
    Stack,
    LeTS,
)


def kind_of(method: type[Method]) -> str:
    """What a recipe calls a method."""
    return str(method.model_fields["kind"].default)


def one_of(methods: Iterable[type[Method]]) -> Any:
    """The type of a setting that is one of these methods, told apart by its kind."""
    tagged = tuple(Annotated[method, Tag(kind_of(method))] for method in methods)
    return Annotated[Union[tagged], Discriminator(_kind)]  # noqa: UP007 — no fixed list


def give_stack(methods: Iterable[type[Method]]) -> None:
    """Let a stack have these methods as its parts."""
    part = one_of(method for method in methods if issubclass(method, AdapterMethod) and method is not Stack)
    Stack.model_rebuild(_types_namespace={"AnyPart": part})
    parts: Any = types.GenericAlias(tuple, (part, ...))
    Stack.model_fields["parts"].annotation = parts
    Stack.model_rebuild(force=True)


def _kind(value: object) -> str:
    """The `kind` of a method as a recipe writes it; lora where it is left out."""
    if isinstance(value, dict):
        return str(value.get("kind", "lora"))
    return value.kind if isinstance(value, Method) else "lora"


give_stack(METHODS)

__all__ = [
    "ADAPTER",
    "BOFT",
    "IA3",
    "IPT",
    "MAM",
    "METHODS",
    "OFT",
    "WARP",
    "AdaLoRA",
    "AdaMix",
    "AdapterFusion",
    "AdapterMethod",
    "Attachment",
    "AttentionFusion",
    "BitFit",
    "Compacter",
    "DoRA",
    "Full",
    "Group",
    "Houlsby",
    "Kin",
    "KronA",
    "KronAB",
    "LNTuning",
    "Ladder",
    "LeTS",
    "LoHa",
    "LoKr",
    "LoRA",
    "LoReFT",
    "LoftQ",
    "Method",
    "PTuning",
    "Parallel",
    "Pfeiffer",
    "PiSSA",
    "PrefixTuning",
    "PromptTuning",
    "Rows",
    "Stack",
    "StepDone",
    "TopLayers",
    "Traits",
    "UniPELT",
    "VeRA",
    "give_stack",
    "kind_of",
    "one_of",
]
