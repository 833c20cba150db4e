"""MAM: a prefix in the attention and a parallel adapter beside the feed-forward, the mix-and-match of the two.

He et al. 2021, https://arxiv.org/abs/2110.04366:  every layer's attention has a learned prefix of few tokens (`prefix-tuning`),
and beside every feed-forward stands a wide, scaled bottleneck (`parallel`):  h' = r + FFN(r) + 4 · f(r).

The paper's: 30 virtual tokens, and a bottleneck of half the model's width (512 beside 1024). Ours: a width of 64 by default,
the parts' own starts, and each part at its own default rate, where the paper has one for both.

Merges: no. Deep backward: yes. Over 4 bits: yes. Identity at the start: no, because of the prefix.
Trainable numbers: 2 L V K E + L (2 D H + D + H), the parts' own.
Shapes: L layers, V virtual tokens, K key/value heads, E head width, D width of the model, H width of the bottleneck.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.methods.adapter_files import OwnForm
from luthier.methods.composed import ComposedMethod, with_part_defaults
from luthier.methods.contract import Kin, Traits
from luthier.methods.parallel import Parallel
from luthier.methods.prefix_tuning import PrefixTuning

_DEFAULTS = {"prefix": {"num_virtual_tokens": 30}}


class MAM(ComposedMethod):
    """A prefix, and bottlenecks beside the feed-forward."""

    family: ClassVar[Kin] = "adapter"
    paper: ClassVar[str] = "https://arxiv.org/abs/2110.04366"
    count: ClassVar[str] = "2 L V K E + L (2 D H + D + H)"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=False)
    default_lr: ClassVar[float] = 3e-4
    form: ClassVar[OwnForm] = OwnForm("mam")

    kind: Literal["mam"] = "mam"
    prefix: PrefixTuning = Field(
        PrefixTuning(num_virtual_tokens=30), description="The prefix; 30 virtual tokens where it does not say how many."
    )
    adapter: Parallel = Field(Parallel(), description="The bottlenecks beside the feed-forward.")

    @model_validator(mode="before")
    @classmethod
    def _parts_have_their_defaults(cls, values: Any) -> Any:
        return with_part_defaults(values, _DEFAULTS)
