"""What a recipe says about the base model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.types import Settings


class ModelSettings(Settings):
    """Which base model, in which number format, on which device. A recipe may give the name alone."""

    name: str = Field(
        description="A built-in name (smollm2-135m), a local folder, a hub id (owner/model), or a .gguf file.",
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Number format of the frozen weights; 'auto' is fp32 on a CPU and bf16 on a GPU that has it.",
    )
    device: str = Field("auto", description="'auto', 'cpu', 'cuda', or 'cuda:N'.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
