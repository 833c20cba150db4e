"""What a recipe says about the number format of a frozen base."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from luthier.quantization.four_bit import BLOCKS
from luthier.types import Settings, fault_at

Kind = Literal["nf4", "fp4", "int8", "mxfp4", "gguf"]


class QuantizationSettings(Settings):
    """Hold the base's linear layers in few bits. What trains stays in fp32; embedding, norms, biases and head stay as they are."""

    kind: Kind = Field(
        "nf4",
        description="nf4: four bits that fit normally distributed weights. fp4: four-bit floats as bitsandbytes has them. mxfp4: four-bit floats of the Open Compute Project. int8: eight bits, a scale a row. gguf: what a .gguf file has its layers in, used as it is.",
    )
    double: bool | None = Field(
        None,
        description="nf4 and fp4: hold the blocks' scales in eight bits too (4.127 bits a number rather than 4.5). Unset: yes.",
    )
    block: int | None = Field(
        None, description="nf4 and fp4: how many numbers share a scale: a power of two from 32 to 4096. Unset: 64."
    )
    compute: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Number format of products with these weights; 'auto' is that of the model."
    )
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Layers to quantize, named as in method.targets; all-linear is every linear layer but the head.",
    )
    skip: tuple[str, ...] = Field(
        (), description="Layers among the targets to leave as they are, named in the same way."
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _one_name_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "all-linear" else value

    @model_validator(mode="after")
    def _blocks_suit_the_kind(self) -> Self:
        if self.kind not in ("nf4", "fp4"):
            for field, value in (("double", self.double), ("block", self.block)):
                if value is not None:
                    raise fault_at(
                        f"quantization.{field}",
                        f"{self.kind} has scales of its own form, so {field} says nothing; leave it out, or set kind to nf4.",
                    )
        elif self.block is not None and self.block not in BLOCKS:
            raise fault_at(
                "quantization.block",
                f"A block of {self.block} numbers is not one that files and kernels know; use one of "
                f"{', '.join(map(str, BLOCKS))}.",
            )
        return self
